//! Topics that live in an engine (docs/engines.md): several servers, and real servers of NATS, Redis and Valkey.

mod away;
mod bounds;
mod doors;
mod groups;
mod hop;
mod identity;
mod services;
mod settings;
mod shared;

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::{FutureExt as _, future::join_all};
use msgbus_engine_testkit::server::{Kind, Program, Server};
use msgbusd::config::{Config, EngineConfig, EngineTopics};
use tokio::time::sleep;

use crate::support::{Daemon, soon};

/// The servers of all kinds of engines.
fn programs() -> Vec<Program> {
    [Kind::Nats, Kind::Redis].into_iter().flat_map(Kind::programs).collect()
}

/// Runs a test on each engine, all at the same time.
async fn on_each(test: impl AsyncFn(Server)) {
    let programs = programs();
    let run =
        async |program: &Program| AssertUnwindSafe(test(Server::new(program))).catch_unwind().await;
    let ended = join_all(programs.iter().map(run)).await;
    let failed: Vec<_> = programs.iter().zip(ended).filter(|(_, ended)| ended.is_err()).collect();
    assert!(failed.is_empty(), "see above; failed on {failed:?}");
}

/// Runs a test on two servers in front of each engine.
async fn on_each_pair(test: impl AsyncFn(Server, Daemon, Daemon)) {
    on_each(async |mut engine| {
        engine.run();
        let (one, other) = (door(&engine).ready().await, door(&engine).ready().await);
        test(engine, one, other).await;
    })
    .await;
}

/// A server whose topics all live in this engine, which is not killed: it may take its time.
fn door(engine: &Server) -> Daemon {
    door_with(engine, |config| config.engines[0].timeout = Duration::from_secs(60))
}

fn door_with(engine: &Server, set: impl FnOnce(&mut Config)) -> Daemon {
    Daemon::with(|config| {
        live_in(engine, config);
        set(config);
    })
}

/// Lets all topics live in this engine.
pub(crate) fn live_in(engine: &Server, config: &mut Config) {
    config.engines = vec![EngineConfig::new("main", &engine.url())];
    let pattern = "**".parse().unwrap();
    config.engine_topics = vec![EngineTopics { pattern, engine: Some("main".to_owned()) }];
}

impl Daemon {
    /// Waits until the engine can be used.
    async fn ready(self) -> Self {
        self.wait_for_engine().await;
        self
    }

    pub(crate) async fn wait_for_engine(&self) {
        let is_ready = async {
            while self.get("/readyz").await.status != 200 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        soon(is_ready).await;
    }
}
