//! What engines are tested with: the contract of [`Engine`] as a test suite
//! that each must pass ([`conformance`]), [`accounts`] of what clients of several buses see while an engine is disturbed, and an
//! [engine in memory](MemoryEngine) that fails as it is told.

#![expect(clippy::unwrap_used, reason = "a test may")]
#![expect(clippy::missing_panics_doc, reason = "a test may")]

pub mod accounts;
pub mod conformance;
pub mod jobs;
mod memory;
mod proxy;
pub mod requests;
pub mod runtimes;
pub mod server;

use std::{sync::Arc, time::Duration};

use msgbus_core::{
    MessageBus, Options, TopicName,
    engine::{Engine, EngineRule},
};
use tokio::time::sleep;

pub use self::{
    memory::{Faults, MemoryEngine, Numbers},
    proxy::Proxy,
};

/// A generous time limit for anything that is expected to happen.
pub const SOON: Duration = Duration::from_secs(120);

/// Awaits a future that must complete soon.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("it takes too long")
}

/// Does something until it succeeds, which must be soon: an engine that was disturbed may refuse it for a moment.
pub async fn until_ok<T, E, F>(mut act: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
{
    let done = async {
        loop {
            match act().await {
                Ok(done) => return done,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    soon(done).await
}

/// A bus on which all topics live in an engine.
pub fn bus(engine: Arc<dyn Engine>) -> MessageBus {
    bus_with(engine, Options::default())
}

/// A bus on which all topics live in an engine.
pub fn bus_with(engine: Arc<dyn Engine>, options: Options) -> MessageBus {
    let rule = EngineRule { pattern: "**".parse().unwrap(), engine: Some(engine) };
    MessageBus::with_engines(options, None, vec![rule]).unwrap()
}

/// A topic that no other test has used, also on a server that keeps them.
pub fn fresh(what: &str) -> TopicName {
    format!("test/{what}/{:016x}", fastrand::u64(..)).parse().unwrap()
}
