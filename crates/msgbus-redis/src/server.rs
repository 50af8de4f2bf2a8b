//! What the server is, and what it promises.

use std::{collections::HashMap, sync::Arc};

use msgbus_core::engine::EngineError;
use redis::{ErrorKind, RedisError, Value, aio::MultiplexedConnection};
use tracing::warn;

use crate::{
    error::{Request, request_error},
    message::Answer as _,
};

/// Why there is no connection.
pub(crate) struct Failure {
    pub(crate) why: EngineError,
    pub(crate) details: String,
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        let details = match error.kind() {
            ErrorKind::Parse => {
                "it does not answer as Redis does; is the address right?".to_owned()
            }
            _ => error.to_string(),
        };
        Self { why: request_error(&error, Request::Harmless), details }
    }
}

impl Failure {
    pub(crate) fn not_supported(operation: &'static str, details: String) -> Self {
        Self { why: EngineError::NotSupported { engine: "redis", operation }, details }
    }
}

/// A server that leads.
#[derive(Clone)]
pub(crate) struct Server {
    /// Identifies its process and what it leads: another one when it is restarted, or leads again. Empty if it is not known.
    pub(crate) identity: Arc<str>,
    /// Whether everything that it acknowledges is on its disk, from which alone it has its data: nothing comes from another
    /// server, and no other one has it, so that a copy which lags cannot take its place.
    pub(crate) is_safe: bool,
    /// What it may do to topics.
    pub(crate) warning: Option<&'static str>,
}

/// All keys of topics expire, so every policy but `noeviction` may choose them.
const EVICTS: &str = "it has a limit of memory (maxmemory), at which it removes topics that are in use: set its \
                      maxmemory-policy to noeviction";

impl Server {
    /// Refuses a server that is too old, or does not lead.
    pub(crate) async fn of(connection: &mut MultiplexedConnection) -> Result<Self, Failure> {
        let text = match info(connection).await {
            Ok(text) => text,
            Err(error) if error.code() == Some("NOPERM") => {
                warn!(
                    "the user of Redis may not use INFO: after a restart, ids may be given again"
                );
                return Ok(Self { identity: "".into(), is_safe: false, warning: None });
            }
            Err(error) => return Err(error.into()),
        };
        let value = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or_default().trim()
        };
        let version = value("redis_version");
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_some_and(|major| major < 7) {
            let operation = "work with this server: it needs Redis 7 or Valkey";
            return Err(Failure::not_supported(operation, format!("it is Redis {version}")));
        }
        let unavailable = |details: &str| {
            Err(Failure { why: EngineError::Unavailable, details: details.to_owned() })
        };
        if value("role") != "master" {
            return unavailable("it is a replica");
        }
        // Until it has read its log, it says that it writes none.
        if value("loading") == "1" {
            return unavailable("it reads its data");
        }
        // The second is that of the server from which it has taken over. The first changes when a replica comes.
        let identity = format!("{}/{}", value("run_id"), value("master_replid2"));
        let is_alone = value("master_replid2").bytes().all(|digit| digit == b'0')
            && value("connected_slaves") == "0";
        let is_safe = is_alone && value("aof_enabled") == "1" && syncs_always(connection).await?;
        let has_limit = !matches!(value("maxmemory"), "" | "0");
        let evicts = has_limit && value("maxmemory_policy") != "noeviction";
        Ok(Self { identity: identity.into(), is_safe, warning: evicts.then_some(EVICTS) })
    }

    /// Refuses a connection that leads to another server.
    pub(crate) async fn check_same(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Failure> {
        if Self::of(connection).await?.identity == self.identity {
            return Ok(());
        }
        let details = "two connections lead to two servers".to_owned();
        Err(Failure { why: EngineError::Unavailable, details })
    }
}

async fn info(connection: &mut MultiplexedConnection) -> Result<String, RedisError> {
    let found = redis::cmd("INFO").query_async::<Value>(connection).await?;
    Ok(match found {
        Value::VerbatimString { text, .. } => text,
        other => other.text().unwrap_or_default(),
    })
}

/// Whether each write is on the disk before it is answered. If the server does not tell, it may not be.
async fn syncs_always(connection: &mut MultiplexedConnection) -> Result<bool, RedisError> {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg("appendfsync");
    match command.query_async::<HashMap<String, String>>(connection).await {
        Ok(found) => Ok(found.get("appendfsync").is_some_and(|value| value == "always")),
        Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => Ok(false),
        Err(error) => Err(error),
    }
}
