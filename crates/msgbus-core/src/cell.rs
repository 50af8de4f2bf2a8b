//! The lock over one topic.

use parking_lot::{Mutex, MutexGuard};

use crate::{name::TopicName, topic::Topic};

/// A topic, as the map and its subscriptions share it.
#[derive(Debug)]
pub(crate) struct TopicCell {
    name: TopicName,
    topic: Mutex<Topic>,
}

impl TopicCell {
    pub(crate) fn new(topic: Topic) -> Self {
        Self { name: topic.info().name.clone(), topic: Mutex::new(topic) }
    }

    pub(crate) fn name(&self) -> &TopicName {
        &self.name
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Topic> {
        self.topic.lock()
    }
}
