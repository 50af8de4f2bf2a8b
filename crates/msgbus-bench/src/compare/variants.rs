//! msgbusd with one security option at a time, each measured next to the plain one.

use std::{fs, net::SocketAddr, path::Path, rc::Rc};

use msgbus_client::{Client, Roots};
use msgbus_load::{Connect, ConnectFn, Waiting};

use crate::{
    certificate::{self, Certificate},
    engines::EngineKind,
};

/// msgbusd with an option, and how clients use it.
#[derive(Debug, PartialEq, Eq)]
pub struct Variant {
    /// The name in tables.
    pub(super) name: &'static str,
    /// The command line flags. They refer to the files of [`write_files`].
    pub(super) flags: &'static [&'static str],
    /// The `Authorization` header of clients.
    pub(super) authorization: Option<&'static str>,
    /// The transport of clients.
    pub(super) transport: Transport,
    /// The kind of idle connections, if they are not websockets.
    pub(super) waiting: Option<Waiting>,
    /// Whether followers begin with the oldest message.
    pub(super) replays: bool,
    /// Whether workers pull without a group.
    pub(super) pulls_plainly: bool,
    /// Whether publishers ask a service, which one responder serves.
    pub(super) asks: bool,
    /// What uses `msgbus.v1`, if anything does.
    pub(super) v1: Option<V1>,
    /// The door of the clients, if it is not that of msgbus.
    pub(super) door: Option<Door>,
    /// Where topics live, if not in the server.
    pub(super) engine: Option<EngineKind>,
}

/// A door for clients of other systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Middleman,
    DrsWebsocket,
    DrsTcp,
}

impl Door {
    /// The flags that open it at this address.
    pub(super) fn flags(self, address: SocketAddr) -> [String; 2] {
        let (flag, scheme) = match self {
            Self::Middleman => ("--middleman", ""),
            Self::DrsWebsocket => ("--drs", "ws://"),
            Self::DrsTcp => ("--drs", "tcp://"),
        };
        [flag.to_owned(), format!("{scheme}{address}")]
    }
}

/// What clients do over `msgbus.v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum V1 {
    Publish,
    /// With this many subscriptions on each connection.
    Follow(usize),
    /// Asking a service, and serving it.
    Ask,
}

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// Unencrypted TCP.
    Plain,
    /// TLS with HTTP/1.1.
    Tls,
    /// The unix socket in the server's folder.
    Unix,
}

/// Each request carries a key.
pub(super) const WITH_KEYS: &Variant = &Variant {
    name: "msgbusd, keys",
    flags: &["--keys", KEYS],
    authorization: Some(BEARER),
    ..PLAIN
};
/// All clients share one rate limit, which is the most expensive case. It is never reached.
pub(super) const WITH_RATE: &Variant =
    &Variant { name: "msgbusd, rate", flags: &["--publish-rate", "10000000"], ..PLAIN };
pub(super) const WITH_TLS: &Variant = &Variant {
    name: "msgbusd, TLS",
    flags: certificate::FLAGS,
    transport: Transport::Tls,
    ..PLAIN
};
pub(super) const WITH_UNIX: &Variant = &Variant {
    name: "msgbusd, unix",
    flags: &["--bind", "unix:bus.sock"],
    transport: Transport::Unix,
    ..PLAIN
};

/// A response means that the message survives a power cut.
pub(super) const SYNCED: &Variant =
    &Variant { name: "msgbusd, synced", flags: &["--data", "data"], ..PLAIN };
/// A response means that the message survives the end of the server.
pub(super) const WRITTEN: &Variant =
    &Variant { name: "msgbusd, written", flags: &["--data", "data", "--sync", "1s"], ..PLAIN };

/// The topic is in memory.
pub(super) const REPLAY_HOT: &Variant = &Variant {
    name: "msgbusd, in memory",
    flags: &["--max-queue-size", "10000000", "--max-queue-bytes", "1GiB"],
    replays: true,
    ..PLAIN
};
/// All but the newest messages of the topic are only on disk, in the page cache of the kernel.
pub(super) const REPLAY_COLD: &Variant = &Variant {
    name: "msgbusd, on disk",
    flags: &[
        "--max-queue-size",
        "10000000",
        "--max-queue-bytes",
        "1GiB",
        "--data",
        "data",
        "--sync",
        "1s",
        "--memory-per-topic",
        "64KiB",
    ],
    replays: true,
    ..PLAIN
};

/// Workers pull without a group, and have nothing to acknowledge.
pub(super) const PLAIN_PULLS: &Variant =
    &Variant { name: "msgbusd, plain pulls", flags: DEEP, pulls_plainly: true, ..PLAIN };
/// Workers lease messages of a group, and acknowledge them.
pub(super) const LEASES: &Variant = &Variant { name: "msgbusd, leases", flags: DEEP, ..PLAIN };
/// One topic holds all messages of a work.
const DEEP: &[&str] = &["--max-queue-size", "10000000", "--max-queue-bytes", "1GiB"];

/// Publishes are requests to a service.
pub(super) const SERVICES: &Variant = &Variant { name: "msgbusd, services", asks: true, ..PLAIN };
/// The same over `msgbus.v1`.
pub(super) const SERVICES_V1: &Variant =
    &Variant { name: "msgbusd, services over v1", asks: true, v1: Some(V1::Ask), ..PLAIN };
/// The same by REQ and RES of middleman.
pub(super) const REQUESTS_MIDDLEMAN: &Variant =
    &Variant { name: "msgbusd, middleman", asks: true, door: Some(Door::Middleman), ..PLAIN };
/// The same by calls of drs.
pub(super) const CALLS_DRS: &Variant = &Variant {
    name: "msgbusd, drs on websockets",
    asks: true,
    door: Some(Door::DrsWebsocket),
    ..PLAIN
};
pub(super) const CALLS_DRS_TCP: &Variant =
    &Variant { name: "msgbusd, drs on TCP", asks: true, door: Some(Door::DrsTcp), ..PLAIN };
/// Publishes and subscriptions are PUB and SUB of middleman.
pub(super) const FOLLOW_MIDDLEMAN: &Variant =
    &Variant { name: "msgbusd, middleman", door: Some(Door::Middleman), ..PLAIN };
/// Publishes are operations on a websocket.
pub(super) const PUBLISH_V1: &Variant =
    &Variant { name: "msgbusd, v1", v1: Some(V1::Publish), ..PLAIN };
/// Subscriptions are operations on a websocket.
pub(super) const FOLLOW_V1: &Variant =
    &Variant { name: "msgbusd, v1", v1: Some(V1::Follow(1)), ..PLAIN };
pub(super) const FOLLOW_V1_10: &Variant = &Variant {
    name: "msgbusd, v1, 10 subscriptions",
    flags: MANY_SUBSCRIPTIONS,
    v1: Some(V1::Follow(10)),
    ..PLAIN
};
pub(super) const FOLLOW_V1_100: &Variant = &Variant {
    name: "msgbusd, v1, 100 subscriptions",
    flags: MANY_SUBSCRIPTIONS,
    v1: Some(V1::Follow(100)),
    ..PLAIN
};
const MANY_SUBSCRIPTIONS: &[&str] = &["--max-subscriptions", "200000"];
/// Subscribers follow a pattern, which matches all topics.
pub(super) const FOLLOW_PATTERN: &Variant =
    &Variant { name: "msgbusd, 1,000 topics by pattern", ..PLAIN };

/// Topics live in an engine, which keeps all messages of a work.
pub(super) const ON_NATS: &Variant =
    &Variant { name: "msgbusd on NATS", flags: ON_ENGINE, engine: Some(EngineKind::Nats), ..PLAIN };
pub(super) const ON_REDIS: &Variant = &Variant {
    name: "msgbusd on Redis",
    flags: ON_ENGINE,
    engine: Some(EngineKind::Redis),
    ..PLAIN
};
const ON_ENGINE: &[&str] =
    &["--max-queue-size", "10000000", "--max-connections", "20000", "--max-subscriptions", "20000"];

pub(super) const IDLE_SSE: &Variant =
    &Variant { name: "msgbusd, SSE", waiting: Some(Waiting::Sse), ..PLAIN };
pub(super) const IDLE_NDJSON: &Variant =
    &Variant { name: "msgbusd, NDJSON", waiting: Some(Waiting::Ndjson), ..PLAIN };
pub(super) const IDLE_KEEP_ALIVE: &Variant =
    &Variant { name: "msgbusd, keep-alive", waiting: Some(Waiting::NextRequest), ..PLAIN };

pub(super) const ONE_THREAD: &Variant =
    &Variant { name: "msgbusd, 1 thread", flags: &["--threads", "1"], ..PLAIN };
pub(super) const TWO_THREADS: &Variant =
    &Variant { name: "msgbusd, 2 threads", flags: &["--threads", "2"], ..PLAIN };
pub(super) const EIGHT_THREADS: &Variant =
    &Variant { name: "msgbusd, 8 threads", flags: &["--threads", "8"], ..PLAIN };

const PLAIN: Variant = Variant {
    name: "",
    flags: &[],
    authorization: None,
    transport: Transport::Plain,
    waiting: None,
    replays: false,
    pulls_plainly: false,
    asks: false,
    v1: None,
    door: None,
    engine: None,
};

const BEARER: &str = "Bearer mbk_of-a-server-that-lives-for-seconds";
const KEYS: &str = "keys.toml";
const KEYS_TEXT: &str = "[keys.bench]\n\
    hash = \"sha256:15584a45d917fc513d19b776647258f2c7c5ac75b375641f7afa3a30eb82a483\"\n\
    allow = [\"*:bench-00000000\", \"*:bench/*\"]\n";
pub(super) const SOCKET: &str = "bus.sock";

/// Writes the files of the flags to the server's working directory.
pub(super) fn write_files(folder: &Path) -> anyhow::Result<()> {
    fs::write(folder.join(KEYS), KEYS_TEXT)?;
    Ok(Certificate::make()?.write(folder)?)
}

impl Transport {
    /// Connects to a server with this address and working directory.
    pub(super) fn connect(
        self,
        address: SocketAddr,
        folder: &Path,
    ) -> anyhow::Result<Rc<dyn Connect>> {
        let client = match self {
            Self::Plain => return Ok(Rc::new(address)),
            Self::Tls => {
                let roots = Roots::from_pem(&fs::read(folder.join(certificate::CHAIN))?)?;
                Client::new(&format!("https://{address}"))?.with_roots(roots)
            }
            Self::Unix => Client::new(&format!("unix:{}", folder.join(SOCKET).display()))?,
        };
        let connector = client.connector().clone();
        Ok(Rc::new(ConnectFn(move || {
            let connector = connector.clone();
            async move { connector.connect().await }
        })))
    }
}
