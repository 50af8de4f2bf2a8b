//! Watching a topic for its end.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    bus::{MessageBus, SharedTopic, clock},
    error::LeaseError,
    model::{Position, TopicName},
    topic::{Topic, WaiterId},
};

impl MessageBus {
    /// Watches a topic for its deletion, for a worker of a group that does not always wait for messages. The topic need
    /// not exist: it is created, and exists as long as the watch if nothing is published. `from` is where the group
    /// begins if it is new; what depends on the time is decided now. A topic that lives in an engine never ends.
    ///
    /// # Errors
    /// When the bus is closed.
    pub fn watch(&self, topic: &TopicName, from: Position) -> Result<TopicWatch, LeaseError> {
        let mut location = None;
        let mut topic = self.topic_ref(topic, &mut location);
        if topic.engine().is_some() {
            let watched = Watched::Engine(self.clone(), topic.name().clone());
            return Ok(TopicWatch { watched, watcher: None, from });
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
        Ok(TopicWatch { watched: Watched::Topic(Arc::clone(topic)), watcher: Some(watcher), from })
    }
}

/// A watch on a topic. It receives nothing, and ends when it is dropped.
#[derive(Debug)]
pub struct TopicWatch {
    watched: Watched,
    /// `None` in an engine.
    watcher: Option<WaiterId>,
    from: Position,
}

/// What is watched.
#[derive(Debug)]
pub(super) enum Watched {
    Topic(Arc<SharedTopic>),
    /// A topic that lives in an engine.
    Engine(MessageBus, TopicName),
}

impl TopicWatch {
    /// Whether the topic was deleted.
    pub fn is_deleted(&self) -> bool {
        match &self.watched {
            Watched::Topic(topic) => topic.lock().is_deleted(),
            Watched::Engine(..) => false,
        }
    }

    /// Ready when the topic was deleted. While the topic exists, the waker is called when it ends.
    pub fn poll_deleted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (Watched::Topic(topic), Some(watcher)) = (&self.watched, self.watcher) else {
            return Poll::Pending;
        };
        let mut topic = topic.lock();
        if topic.is_deleted() {
            return Poll::Ready(());
        }
        let replaced = topic.park_watcher(watcher, cx.waker());
        drop(topic);
        drop(replaced);
        Poll::Pending
    }

    pub(super) fn topic(&self) -> &Watched {
        &self.watched
    }

    pub(super) fn from(&self) -> Position {
        self.from
    }
}

impl Drop for TopicWatch {
    fn drop(&mut self) {
        let (Watched::Topic(topic), Some(watcher)) = (&self.watched, self.watcher) else { return };
        let mut locked = topic.lock();
        let own = locked.unwatch(watcher);
        topic.unlock_and_remove_if_abandoned(locked);
        drop(own);
    }
}
