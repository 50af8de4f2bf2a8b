//! Helpers for the tests of several crates: a real server that can be stopped and restarted on the same port, and a
//! proxy that cuts connections.

#![expect(clippy::unwrap_used, reason = "a test may")]
#![expect(clippy::missing_panics_doc, reason = "a test may")]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use msgbus_core::{MessageBus, TopicName};
use msgbus_engine_testkit::server::free_port;
use msgbusd::{
    Bind, Drained, Server, Workers,
    auth::Keyring,
    config::{Config, DoorBind},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// A generous time limit for anything that is expected to happen.
const SOON: Duration = Duration::from_secs(300);

/// Awaits a future that must complete within five minutes.
pub async fn soon<F: Future>(future: F) -> F::Output {
    timeout(SOON, future).await.expect("it takes too long")
}

/// Waits until a condition holds, for five minutes at most, also while the clock of tokio is paused.
pub async fn until(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < SOON, "it takes too long");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Parses a topic name.
pub fn name(text: &str) -> TopicName {
    text.parse().unwrap()
}

/// A server that is bound. One that was stopped just now may still have its port and its directory for a moment: while this
/// process starts another one, that has copies of everything that is open.
pub fn bind(config: &Config, workers: impl Fn() -> Workers) -> Server {
    const MOMENT: Duration = Duration::from_secs(10);
    let start = Instant::now();
    loop {
        match Server::bind(config.clone(), workers()) {
            Err(_) if start.elapsed() < MOMENT => std::thread::sleep(Duration::from_millis(5)),
            bound => return bound.unwrap(),
        }
    }
}

/// A msgbusd server in this process.
#[derive(Debug)]
pub struct Daemon {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The bus of the server.
    pub bus: MessageBus,
    /// The endpoints of protocols other than HTTP.
    pub doors: Vec<DoorBind>,
    /// The keys, if the server requires any.
    pub keyring: Option<Arc<Keyring>>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Drained>,
}

impl Daemon {
    /// Starts a server on a free port, with the defaults.
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// Starts a server on a free port, after `set` has changed its configuration.
    pub fn with(set: impl FnOnce(&mut Config)) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), set)
    }

    /// Starts a server on an address, after `set` has changed its configuration.
    pub fn at(address: SocketAddr, set: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { bind: vec![Bind::Tcp(address)], ..Config::default() };
        config.timeouts.drain = Duration::from_secs(1);
        set(&mut config);
        Self::serve(bind(&config, Workers::current))
    }

    /// Runs a server that is bound already. If the daemon is dropped, it ends with the runtime.
    pub fn serve(server: Server) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self {
            address: server.local_addr().unwrap(),
            bus: server.bus().clone(),
            doors: server.door_endpoints().to_vec(),
            keyring: server.keyring().cloned(),
            stop,
            running: tokio::spawn(server.run(async {
                let _ = stopped.await;
            })),
        }
    }

    /// Tells the server to stop. The handle waits until it has ended.
    pub fn shut_down(self) -> JoinHandle<Drained> {
        self.stop.send(()).unwrap();
        self.running
    }

    /// Stops the server, and waits until it has ended.
    pub async fn stop(self) {
        soon(self.shut_down()).await.unwrap();
    }

    /// The address as a URI.
    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Publishes directly to the bus, and returns the id.
    pub fn put(&self, topic: &str, payload: impl Into<Vec<u8>>) -> u64 {
        self.bus.put(&name(topic), payload.into()).unwrap().id
    }

    /// Waits until the server has this many subscribers.
    pub async fn subscribers(&self, count: usize) {
        until(|| self.bus.stats().subscribers == count).await;
    }

    /// Waits until a pull waits at the topic, and this many messages were pulled from it before.
    pub async fn waits_after(&self, topic: &str, pulled: u64) {
        let topic = name(topic);
        let is_so = || {
            let stats = self.bus.topic(&topic);
            stats.is_some_and(|stats| stats.waiters == 1 && stats.counters.pulled == pulled)
        };
        until(is_so).await;
    }

    /// A sample of `/metrics`, for example `msgbus_server_refused_total{code="empty"}`.
    pub async fn metric(&self, sample: &str) -> u64 {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        soon(connection.read_to_string(&mut page)).await.unwrap();
        let value = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {sample} in {page}")).parse().unwrap()
    }
}

/// An address on which no server listens, and none will: until the end of the process its port is taken.
pub fn nowhere() -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    // Bound and not listening: it refuses connections.
    std::mem::forget(socket);
    address
}

/// An address on which no server listens yet, for one that comes later, or is stopped and started again: nobody else gets
/// its port meanwhile.
pub fn free_address() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// Forwards connections to a server, and can cut them.
#[derive(Debug)]
pub struct Proxy {
    /// The address that it listens on.
    pub address: SocketAddr,
    cut: watch::Sender<u64>,
    is_open: watch::Sender<bool>,
}

impl Proxy {
    /// Starts a proxy in front of a server.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(0);
        let (is_open, open) = watch::channel(true);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                // Before the check, so that a close after it cuts this connection too.
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                if !*open.borrow() {
                    continue;
                }
                tokio::spawn(async move {
                    // While the server is down, the connection is closed at once.
                    let Ok(mut far) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {
                            // Reset instead of an orderly close.
                            let _ = near.set_zero_linger();
                            let _ = far.set_zero_linger();
                        }
                    }
                });
            }
        });
        Self { address, cut, is_open }
    }

    /// Resets all connections.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// Resets all connections, and closes new ones at once until [`open`](Self::open).
    pub fn close(&self) {
        self.is_open.send_replace(false);
        self.cut();
    }

    /// Accepts connections again.
    pub fn open(&self) {
        self.is_open.send_replace(true);
    }

    /// The address as a URI.
    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }
}
