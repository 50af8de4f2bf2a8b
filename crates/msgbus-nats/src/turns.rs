//! Turns: of those who wait for messages of a group, each node lets some ask the server at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// The turns of each group, by its consumer.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<String, Weak<Semaphore>>>);

impl Turns {
    /// How many requests of a group wait at a time.
    const TOGETHER: usize = 32;
    /// How many groups are remembered before those of nobody are removed.
    const MANY: usize = 1024;

    /// Waits for a turn, until then. The others go on waiting for theirs, in order.
    pub(crate) async fn wait(&self, consumer: &str, end: Instant) -> Option<OwnedSemaphorePermit> {
        timeout_at(end, self.of(consumer).acquire_owned()).await.ok()?.ok()
    }

    fn of(&self, consumer: &str) -> Arc<Semaphore> {
        let mut turns = self.0.lock();
        if let Some(turn) = turns.get(consumer).and_then(Weak::upgrade) {
            return turn;
        }
        if turns.len() >= Self::MANY {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::new(Semaphore::new(Self::TOGETHER));
        turns.insert(consumer.to_owned(), Arc::downgrade(&turn));
        turn
    }
}
