//! Runtimes from which something is published, as from the threads that serve connections.

use std::sync::Arc;

use msgbus_core::{
    TopicName,
    engine::{Engine, EngineError, Receipt},
};
use tokio::runtime::{Builder, Runtime};

use crate::{soon, until_ok};

/// Runtimes of one thread each.
pub fn runtimes(count: usize) -> Vec<Runtime> {
    let runtime = || Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    (0..count).map(|_| runtime()).collect()
}

/// Publishes from a runtime.
///
/// # Errors
/// Those of the engine.
pub async fn publish<E: Engine + 'static>(
    from: &Runtime,
    engine: &Arc<E>,
    topic: &TopicName,
    text: String,
) -> Result<Receipt, EngineError> {
    let (engine, topic) = (Arc::clone(engine), topic.clone());
    let published = from.spawn(async move { engine.publish(&topic, vec![text.into()]).await });
    soon(published).await.unwrap()
}

/// Publishes from a runtime until the engine has accepted it.
pub async fn published<E: Engine + 'static>(
    from: &Runtime,
    engine: &Arc<E>,
    topic: &TopicName,
    text: &str,
) {
    until_ok(|| publish(from, engine, topic, text.to_owned())).await;
}
