//! Options of an engine.

use std::{fmt, time::Duration};

use async_nats::ServerAddr;
use tokio::runtime::Handle;

/// The options of an engine on NATS.
#[derive(Clone)]
pub struct NatsOptions {
    /// The addresses of servers, such as `nats://127.0.0.1:4222`, separated by commas.
    pub servers: String,
    /// The name of the stream, without spaces and dots. It is created if there is none, and another one with
    /// `-dead-letters` behind its name. Default `msgbus`.
    pub stream: String,
    /// The first token of all subjects, in those of dead letters with `-dead-letters` behind it. Default `msgbus`.
    pub prefix: String,
    /// How many servers keep each message, 1 to 5. Default 1.
    pub replicas: usize,
    /// How long messages are kept, except for dead letters. `None` is without limit. Default one hour.
    pub max_age: Option<Duration>,
    /// How many messages of each topic are kept. `None` is without limit. Default 65,536.
    pub max_messages_per_topic: Option<u32>,
    /// The maximum size of all topics together, in bytes. At the limit, the oldest messages are removed. `None` is
    /// without limit, which is the default.
    pub max_bytes: Option<u64>,
    /// How long the server remembers idempotency keys, at most [`max_age`](Self::max_age). Default two minutes.
    pub duplicate_window: Duration,
    /// How long leases last. Default 30 seconds.
    pub lease: Duration,
    /// How long to wait for an answer. Default 5 seconds.
    pub timeout: Duration,
    /// Makes the tokens of leases unguessable: the same on all nodes. `None` uses the secret that the stream was created
    /// with, which is in its description.
    pub secret: Option<String>,
    /// Runtimes that each get a connection of their own, on which they send what is published in them. What is published
    /// elsewhere is sent from the runtime in which the engine is made. Default none. A thread of such a runtime must not block
    /// until something is published, as `MessageBus::put` does.
    pub publish_from: Vec<Handle>,
}

impl NatsOptions {
    /// The defaults, with these servers.
    pub fn new(servers: impl Into<String>) -> Self {
        Self {
            servers: servers.into(),
            stream: "msgbus".to_owned(),
            prefix: "msgbus".to_owned(),
            replicas: 1,
            max_age: Some(Duration::from_secs(3600)),
            max_messages_per_topic: Some(65_536),
            max_bytes: None,
            duplicate_window: Duration::from_secs(120),
            lease: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            secret: None,
            publish_from: Vec::new(),
        }
    }

    /// Refuses addresses that no server can have. It connects to nothing.
    ///
    /// # Errors
    /// What is wrong. It does not repeat the address, which may have a password.
    pub fn check(&self) -> Result<(), &'static str> {
        for server in self.addresses() {
            let wanted = "write nats://HOST:PORT, several with commas";
            let address: ServerAddr = server.parse().map_err(|_| wanted)?;
            if address.host().is_empty() {
                return Err(wanted);
            }
            let url = address.into_inner();
            if !matches!(url.path(), "" | "/") || url.query().is_some() {
                return Err("the address of NATS has nothing after the port");
            }
        }
        Ok(())
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.servers.split(',').map(|server| server.trim().to_owned()).collect()
    }

    /// The addresses without credentials.
    pub(crate) fn places(&self) -> String {
        let addresses = self.addresses();
        let addresses = addresses.iter().filter_map(|text| text.parse().ok());
        let places =
            addresses.map(|address: ServerAddr| format!("{}:{}", address.host(), address.port()));
        places.collect::<Vec<_>>().join(", ")
    }

    /// Those of the stream of dead letters. They live until somebody deletes them.
    pub(crate) fn for_dead_letters(&self) -> Self {
        Self {
            stream: format!("{}-dead-letters", self.stream),
            prefix: format!("{}-dead-letters", self.prefix),
            max_age: None,
            max_bytes: None,
            publish_from: Vec::new(),
            ..self.clone()
        }
    }
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses may have a password.
        f.debug_struct("NatsOptions").field("stream", &self.stream).finish_non_exhaustive()
    }
}
