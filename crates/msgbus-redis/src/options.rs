//! Options of an engine.

use std::{fmt, sync::Arc, time::Duration};

use redis::TlsCertificates;
use tokio::runtime::Handle;

use crate::{ConnectError, connection::client};

/// The options of an engine on Redis.
#[derive(Clone)]
pub struct RedisOptions {
    /// The address of the server, such as `redis://127.0.0.1:6379` or `rediss://user:password@host:6380/0`. With the scheme
    /// `rediss` the connection has TLS.
    pub url: String,
    /// The name of the user, instead of that in the address.
    pub user: Option<String>,
    /// The password of the user, instead of that in the address.
    pub password: Option<String>,
    /// Finds out the password before each connection, instead of [`password`](Self::password), which counts if there is none.
    /// It may block.
    pub find_password: Option<FindPassword>,
    /// Credentials and trust for TLS, instead of the certificates of the system.
    pub tls: Option<TlsCertificates>,
    /// The beginning of all keys and channels, without braces. Default `msgbus`.
    pub prefix: String,
    /// When a publish is acknowledged. Default [`Acknowledge::Server`].
    pub acknowledge: Acknowledge,
    /// How long messages are kept. `None` is without limit. Default one hour.
    pub max_age: Option<Duration>,
    /// How many messages of each topic are kept. From 1,000 on it may be up to a hundred more. `None` is without limit.
    /// Default 65,536.
    pub max_messages_per_topic: Option<u32>,
    /// How long the server remembers idempotency keys. Default two minutes.
    pub duplicate_window: Duration,
    /// A topic to which nobody has published for so long is forgotten, with its groups. It is at least twice
    /// [`max_age`](Self::max_age). Default 30 days.
    pub forget_after: Duration,
    /// How long to wait for an answer. Default 5 seconds.
    pub timeout: Duration,
    /// Runtimes that each get a connection of their own, on which they send what is published in them. What is published
    /// elsewhere is sent from the runtime in which the engine is made. Default none. A thread of such a runtime must not block
    /// until something is published, as `MessageBus::put` does.
    pub publish_from: Vec<Handle>,
}

/// See [`RedisOptions::find_password`].
pub type FindPassword = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// When a publish is acknowledged. What is more than [`Server`](Self::Server) takes time: publishes that wait for it at the
/// same moment share the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acknowledge {
    /// When the server has acknowledged it. With `appendfsync always` its disk has it then. Otherwise a power cut may take the
    /// last second (`everysec`), or more.
    #[default]
    Server,
    /// When so many replicas have it in memory, too (`WAIT`). A failover may still take it.
    Replicas(u32),
    /// When the disk of the server has it, and the disks of so many replicas (`WAITAOF`). It needs Redis 7.2 or Valkey, with
    /// `appendonly yes`.
    Synced {
        /// How many replicas.
        replicas: u32,
    },
}

impl RedisOptions {
    /// The defaults, with this server.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            find_password: None,
            tls: None,
            prefix: "msgbus".to_owned(),
            acknowledge: Acknowledge::default(),
            max_age: Some(Duration::from_secs(3600)),
            max_messages_per_topic: Some(65_536),
            duplicate_window: Duration::from_secs(120),
            forget_after: Duration::from_secs(30 * 24 * 3600),
            timeout: Duration::from_secs(5),
            publish_from: Vec::new(),
        }
    }

    /// Checks what can be checked without a server.
    ///
    /// # Errors
    /// When the address, the prefix or the certificates are invalid.
    pub fn check(&self) -> Result<(), ConnectError> {
        client(self).map(drop)
    }

    /// How long messages are kept, in milliseconds. 0 is without limit.
    pub(crate) fn max_age_ms(&self) -> u64 {
        self.max_age.map_or(0, |age| millis(age).max(1))
    }

    /// How long a topic is kept that is not used, in milliseconds.
    pub(crate) fn keep_ms(&self) -> u64 {
        millis(self.forget_after).max(self.max_age_ms() * 2).max(1)
    }
}

/// At most a hundred years.
pub(crate) fn millis(duration: Duration) -> u64 {
    const MAX: u64 = 100 * 366 * 24 * 3600 * 1000;
    u64::try_from(duration.as_millis()).unwrap_or(MAX).min(MAX)
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may have a password.
        f.debug_struct("RedisOptions").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
