//! The connections to a server, while it can be used.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, Cmd, Value, aio::MultiplexedConnection};
use tokio::{runtime::Id, sync::OnceCell};

use crate::{
    Acknowledge,
    script::Script,
    server::{Failure, Server},
};

/// What is open to the server: it is lost and made again as a whole.
pub(crate) struct Link {
    pub(crate) connection: MultiplexedConnection,
    /// The connections of all runtimes from which something is sent, among them the one above.
    pub(crate) by_runtime: Mutex<HashMap<Id, Arc<OnceCell<MultiplexedConnection>>>>,
    pub(crate) config: AsyncConnectionConfig,
    /// Hears of what is new. It is another one, because the server limits what waits for a client that is subscribed.
    pub(crate) news: MultiplexedConnection,
    /// Waits for replicas or disks. It is another one, because what comes after that command waits, too.
    pub(crate) waiting: Option<MultiplexedConnection>,
    /// Identifies it among the connections of the engine. Never 0.
    pub(crate) generation: u64,
    /// Since when the server is what it is, as scripts take it. Empty if it is not known.
    pub(crate) run: Arc<str>,
    pub(crate) server: Server,
    /// The hashes of scripts.
    pub(crate) hashes: Arc<[String]>,
}

impl Link {
    /// The connections on which several runtimes publish. A runtime that is busy reads an answer late.
    pub(crate) fn publishers(&self) -> Vec<MultiplexedConnection> {
        const LIMIT: Duration = Duration::from_secs(5);
        let by_runtime = self.by_runtime.lock();
        let mut open: Vec<_> = by_runtime.values().filter_map(|one| one.get().cloned()).collect();
        for connection in &mut open {
            connection.set_response_timeout(LIMIT);
        }
        open
    }

    /// A command that runs a script.
    pub(crate) fn command(
        &self,
        script: Script,
        keys: &[String],
        arguments: impl Fn(&mut Cmd),
    ) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hashes[script as usize]).arg(keys.len()).arg(keys);
        arguments(&mut command);
        command
    }
}

/// Whether a server answers in time.
pub(crate) async fn answers(connection: &MultiplexedConnection) -> bool {
    redis::cmd("PING").query_async::<Value>(&mut connection.clone()).await.is_ok()
}

/// Refuses a server that cannot confirm what it is to confirm.
pub(crate) async fn check_wait(
    acknowledge: Acknowledge,
    connection: &mut MultiplexedConnection,
) -> Result<(), Failure> {
    if let Acknowledge::Synced { .. } = acknowledge {
        let mut command = redis::cmd("WAITAOF");
        command.arg(1).arg(0).arg(1);
        command.query_async::<Value>(connection).await.map_err(|error| match error.code() {
            Some("ERR") => {
                let operation = "confirm that a disk has a message: it needs Redis 7.2 or Valkey, \
                                 with appendonly";
                Failure::not_supported(operation, error.to_string())
            }
            _ => error.into(),
        })?;
    }
    Ok(())
}
