//! Watching a topic for its end.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    bus::{MessageBus, SharedTopic, clock},
    error::LeaseError,
    model::{Position, TopicName},
    store::StoreError,
    topic::{Topic, WaiterId},
};

impl MessageBus {
    /// Watches a topic for its deletion, for a worker of a group that does not always wait for messages. The topic need
    /// not exist: it is created, and exists as long as the watch if nothing is published. `from` is where the group
    /// begins if it is new; what depends on the time is decided now.
    ///
    /// # Errors
    /// When the bus is closed, or the topic lives in an engine.
    pub fn watch(&self, topic: &TopicName, from: Position) -> Result<TopicWatch, LeaseError> {
        let mut location = None;
        let mut topic = self.topic_ref(topic, &mut location);
        if let Some(engine) = topic.engine() {
            return Err(StoreError::from(engine.unsupported("watch topics")).into());
        }
        let from = topic.map().resume(from);
        let watch = |topic: &mut Topic| -> Result<_, LeaseError> {
            let watcher = topic.watch()?;
            let from = match from {
                Position::New | Position::Ago(_) => {
                    Position::Id(topic.resolve(from, clock::now()).0)
                }
                from => from,
            };
            Ok((watcher, from))
        };
        let (topic, (watcher, from)) = topic.with_or_create(|_, topic| watch(topic))?;
        Ok(TopicWatch { topic: Arc::clone(topic), watcher, from })
    }
}

/// A watch on a topic. It receives nothing, and ends when it is dropped.
#[derive(Debug)]
pub struct TopicWatch {
    topic: Arc<SharedTopic>,
    watcher: WaiterId,
    from: Position,
}

impl TopicWatch {
    /// Whether the topic was deleted.
    pub fn is_deleted(&self) -> bool {
        self.topic.lock().is_deleted()
    }

    /// Ready when the topic was deleted. While the topic exists, the waker is called when it ends.
    pub fn poll_deleted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut topic = self.topic.lock();
        if topic.is_deleted() {
            return Poll::Ready(());
        }
        let replaced = topic.park_watcher(self.watcher, cx.waker());
        drop(topic);
        drop(replaced);
        Poll::Pending
    }

    pub(super) fn topic(&self) -> &Arc<SharedTopic> {
        &self.topic
    }

    pub(super) fn from(&self) -> Position {
        self.from
    }
}

impl Drop for TopicWatch {
    fn drop(&mut self) {
        let mut topic = self.topic.lock();
        let own = topic.unwatch(self.watcher);
        self.topic.unlock_and_remove_if_abandoned(topic);
        drop(own);
    }
}
