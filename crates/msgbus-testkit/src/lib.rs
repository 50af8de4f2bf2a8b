//! Helpers for the tests of several crates: a real server that can be stopped and restarted on the same port, and a
//! proxy that cuts connections.

#![expect(clippy::unwrap_used, reason = "a test may")]
#![expect(clippy::missing_panics_doc, reason = "a test may")]

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
    time::Duration,
};

use msgbus_core::{MessageBus, TopicName};
use msgbusd::{Bind, Drained, Server, auth::Keyring, config::Config};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

/// A generous time limit for anything that is expected to happen.
const SOON: Duration = Duration::from_secs(60);

/// Awaits a future that must complete within a minute.
pub async fn soon<F: Future>(future: F) -> F::Output {
    timeout(SOON, future).await.expect("it takes too long")
}

/// Parses a topic name.
pub fn name(text: &str) -> TopicName {
    text.parse().unwrap()
}

/// A msgbusd server in this process.
#[derive(Debug)]
pub struct Daemon {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The bus of the server.
    pub bus: MessageBus,
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
    pub fn at(bind: SocketAddr, set: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { bind: vec![Bind::Tcp(bind)], ..Config::default() };
        config.timeouts.drain = Duration::from_secs(1);
        set(&mut config);
        let server = Server::bind(config).unwrap();
        let (stop, stopped) = oneshot::channel();
        Self {
            address: server.local_addr().unwrap(),
            bus: server.bus().clone(),
            keyring: server.keyring().cloned(),
            stop,
            running: tokio::spawn(server.run(async {
                let _ = stopped.await;
            })),
        }
    }

    /// Stops the server, and waits until it has ended.
    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        soon(self.running).await.unwrap();
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
        soon(async {
            while self.bus.stats().subscribers != count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

/// An address on which no server listens.
pub fn nowhere() -> SocketAddr {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Forwards connections to a server, and can cut them.
#[derive(Debug)]
pub struct Proxy {
    /// The address that it listens on.
    pub address: SocketAddr,
    cut: watch::Sender<u64>,
}

impl Proxy {
    /// Starts a proxy in front of a server.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
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
        Self { address, cut }
    }

    /// Resets all connections.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// The address as a URI.
    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }
}
