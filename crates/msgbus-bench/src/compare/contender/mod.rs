//! The servers that are compared: what each of them is, and its protocol.

mod start;

use std::{path::Path, process::Command, rc::Rc};

use msgbus_load::{
    Drs, FollowV1, Http, Middleman, MsgbusV1, PlainPulls, Protocol, Replaying, Server, Services,
    ServicesV1, Streaming, Target, Waiting,
};

use super::{
    peers::{self, Beanstalk, JetStream, Nats, NatsRequests, Redis, RedisStream},
    variants::{Door, Transport, V1, Variant},
};
use crate::{bare::Push, engines::EngineKind, running::Running};

/// A server to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// This project.
    Msgbusd,
    /// This project with an option.
    With(&'static Variant),
    /// A bare server, which sets the limit.
    Bare(Push),
    /// nginx with nchan.
    Nchan,
    /// Redis as a queue.
    RedisList,
    /// Redis as a queue in an append-only file.
    RedisFile(Syncing),
    /// Redis as a stream with a consumer group, in memory.
    RedisStream,
    /// Redis as a channel.
    RedisChannel,
    /// NATS core.
    Nats,
    /// NATS core with requests and replies.
    NatsRequests,
    /// NATS with a stream.
    JetStream(Syncing),
    /// beanstalkd, with its write-ahead log if it writes anything.
    Beanstalk(Syncing),
    /// The server of an engine, used as msgbusd would use it.
    Native(EngineKind),
    /// The same, with all requests of all clients on one connection.
    Alone(EngineKind),
}

/// How many messages of a topic msgbusd keeps, if nothing else is configured.
const MAX_MESSAGES: u32 = 65_536;

/// When a server syncs what it has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syncing {
    /// Before it answers.
    Always,
    /// At its default interval.
    Later,
    /// It writes nothing: everything is in memory.
    Never,
}

impl Contender {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Msgbusd => "msgbusd",
            Self::With(variant) => variant.name,
            Self::Bare(Push::Nowhere) => "bare hyper",
            Self::Bare(Push::Proxy) => "bare proxy",
            Self::Bare(Push::Synced) => "bare group commit",
            Self::Bare(Push::Each) => "bare, a write each",
            Self::Bare(Push::Batches) => "bare, batches",
            Self::Bare(Push::AtOnce) => "bare, at once",
            Self::Nchan => "nchan",
            Self::RedisList => "redis (list)",
            Self::RedisFile(Syncing::Always) => "redis (list, synced)",
            Self::RedisFile(Syncing::Later | Syncing::Never) => "redis (list, file)",
            Self::RedisStream => "redis (stream)",
            Self::RedisChannel => "redis (channel)",
            Self::Nats => "nats",
            Self::NatsRequests => "nats (requests)",
            Self::JetStream(Syncing::Always) => "nats (stream, synced)",
            Self::JetStream(Syncing::Later) => "nats (stream)",
            Self::JetStream(Syncing::Never) => "nats (stream in memory)",
            Self::Beanstalk(Syncing::Always) => "beanstalkd, synced",
            Self::Beanstalk(Syncing::Later) => "beanstalkd, written",
            Self::Beanstalk(Syncing::Never) => "beanstalkd",
            Self::Native(EngineKind::Nats) => "nats (stream), 64 connections",
            Self::Native(EngineKind::Redis) => "redis (stream, file), 64 connections",
            Self::Alone(EngineKind::Nats) => "nats (stream), one connection",
            Self::Alone(EngineKind::Redis) => "redis (stream, file), one connection",
        }
    }

    /// The program, and the arguments that make it print its version.
    fn program(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Self::Msgbusd | Self::With(_) | Self::Bare(_) => None,
            Self::Native(EngineKind::Nats) | Self::Alone(EngineKind::Nats) => Self::Nats.program(),
            Self::Native(EngineKind::Redis) | Self::Alone(EngineKind::Redis) => {
                Self::RedisStream.program()
            }
            Self::Nchan => Some(("nginx", &["-v"])),
            Self::RedisList | Self::RedisFile(_) | Self::RedisStream | Self::RedisChannel => {
                Some(("redis-server", &["--version"]))
            }
            Self::Nats | Self::NatsRequests | Self::JetStream(_) => {
                Some(("nats-server", &["--version"]))
            }
            Self::Beanstalk(_) => Some(("beanstalkd", &["-v"])),
        }
    }

    /// The version; `None` if the server is not installed, or too old.
    pub fn version(self) -> Option<String> {
        if self.engine().is_some_and(|kind| Self::Native(kind).version().is_none()) {
            return None;
        }
        let program = if self.engine().is_some() { None } else { self.program() };
        let Some((program, words)) = program else {
            return Some(concat!("msgbus ", env!("CARGO_PKG_VERSION")).to_owned());
        };
        if self == Self::Nchan && nchan_module().is_none() {
            return None;
        }
        let output = Command::new(program).args(words).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        let version = String::from_utf8_lossy(&said).lines().next()?.trim().to_owned();
        let is_too_old =
            self == Self::JetStream(Syncing::Always) && !peers::can_sync_always(&version);
        (!is_too_old).then_some(version)
    }

    /// Whether its publishers ask a service.
    pub(super) fn asks(self) -> bool {
        match self {
            Self::With(variant) => variant.asks,
            _ => self == Self::NatsRequests,
        }
    }

    /// The engine that it stores its topics in.
    pub(super) fn engine(self) -> Option<EngineKind> {
        match self {
            Self::With(variant) => variant.engine,
            _ => None,
        }
    }

    fn transport(self) -> Transport {
        match self {
            Self::With(variant) => variant.transport,
            _ => Transport::Plain,
        }
    }

    fn protocol(self, port: u16) -> Rc<dyn Protocol> {
        let host = format!("127.0.0.1:{port}");
        let http = Http { host, ..Http::default() };
        match self {
            // It pushes nothing, so its followers can only be idle.
            Self::Bare(Push::Nowhere | Push::Synced) => {
                Rc::new(Streaming { http, waiting: Waiting::NextRequest })
            }
            Self::Msgbusd | Self::Bare(_) => Rc::new(http),
            Self::With(Variant { door: Some(door), asks, .. }) => {
                let (host, asks) = (http.host, *asks);
                match door {
                    Door::Middleman => Rc::new(Middleman { host, asks }),
                    Door::DrsWebsocket => Rc::new(Drs { host, has_frames: true }),
                    Door::DrsTcp => Rc::new(Drs { host, has_frames: false }),
                }
            }
            Self::With(variant) => {
                let authorization = variant.authorization.map(str::to_owned);
                let http = Http { authorization, ..http };
                match variant.waiting {
                    Some(waiting) => Rc::new(Streaming { http, waiting }),
                    None if variant.replays => Rc::new(Replaying(http)),
                    None if variant.pulls_plainly => Rc::new(PlainPulls(http)),
                    None => match variant.v1 {
                        Some(V1::Publish) => Rc::new(MsgbusV1(http)),
                        Some(V1::Follow(subscriptions)) => {
                            Rc::new(FollowV1 { http, subscriptions })
                        }
                        Some(V1::Ask) => Rc::new(ServicesV1(http)),
                        None if variant.asks => Rc::new(Services(http)),
                        None => Rc::new(http),
                    },
                }
            }
            Self::Nchan => Rc::new(Http { raw: true, ..http }),
            Self::RedisList | Self::RedisFile(_) => Rc::new(Redis::List),
            Self::RedisStream => Rc::new(RedisStream { max_messages: None }),
            Self::RedisChannel => Rc::new(Redis::Channel),
            Self::Nats => Rc::new(Nats),
            Self::NatsRequests => Rc::new(NatsRequests),
            Self::JetStream(_) | Self::Native(EngineKind::Nats) | Self::Alone(EngineKind::Nats) => {
                Rc::new(JetStream)
            }
            Self::Native(EngineKind::Redis) | Self::Alone(EngineKind::Redis) => {
                Rc::new(RedisStream { max_messages: Some(MAX_MESSAGES) })
            }
            Self::Beanstalk(_) => Rc::new(Beanstalk),
        }
    }

    /// Its running server as a target for load.
    ///
    /// # Errors
    /// The processes of the server cannot be inspected.
    pub fn target(self, server: &Running) -> anyhow::Result<Target> {
        let address = server.address();
        Ok(Target {
            connector: self.transport().connect(address, server.folder())?,
            protocol: self.protocol(address.port()),
            server: Some(Server::new([vec![server.pid()], server.children()?].concat())),
        })
    }
}

fn nchan_module() -> Option<&'static str> {
    ["/usr/lib/nginx/modules/ngx_nchan_module.so", "/usr/lib64/nginx/modules/ngx_nchan_module.so"]
        .into_iter()
        .find(|path| Path::new(path).exists())
}
