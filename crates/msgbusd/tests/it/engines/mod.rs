//! Topics that live in an engine (docs/engines.md): several servers, and real servers of NATS.

mod away;
mod groups;
mod hop;
mod settings;
mod shared;

use std::time::Duration;

use msgbus_engine_testkit::nats::{NatsServer, programs};
use msgbusd::config::{Config, EngineConfig, EngineTopics};
use tokio::time::sleep;

use crate::support::{Daemon, soon};

/// A server whose topics all live in this engine, which is not killed: it may take its time.
fn door(nats: &NatsServer) -> Daemon {
    door_with(nats, |config| config.engines[0].timeout = Duration::from_secs(60))
}

fn door_with(nats: &NatsServer, set: impl FnOnce(&mut Config)) -> Daemon {
    Daemon::with(|config| {
        config.engines = vec![EngineConfig::new("main", &nats.url())];
        let pattern = "**".parse().unwrap();
        config.engine_topics = vec![EngineTopics { pattern, engine: Some("main".to_owned()) }];
        set(config);
    })
}

impl Daemon {
    /// Waits until the engine can be used.
    async fn ready(self) -> Self {
        let is_ready = async {
            while self.get("/readyz").await.status != 200 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        soon(is_ready).await;
        self
    }
}

/// Two servers in front of one NATS, for each version of it.
async fn pairs() -> Vec<(NatsServer, Daemon, Daemon)> {
    let mut pairs = Vec::new();
    for program in programs() {
        let nats = NatsServer::start(&program);
        let (one, other) = (door(&nats).ready().await, door(&nats).ready().await);
        pairs.push((nats, one, other));
    }
    pairs
}
