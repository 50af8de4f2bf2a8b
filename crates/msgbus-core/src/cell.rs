//! The lock over one topic.

use parking_lot::{Mutex, MutexGuard};

use crate::topic::Topic;

/// A topic, as the map and its subscriptions share it.
#[derive(Debug)]
pub(crate) struct TopicCell(Mutex<Topic>);

impl TopicCell {
    pub(crate) fn new(topic: Topic) -> Self {
        Self(Mutex::new(topic))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Topic> {
        self.0.lock()
    }
}
