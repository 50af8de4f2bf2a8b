//! The lock over one topic.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::{message::TopicInfo, name::TopicName, topic::Topic};

/// A topic, as the map and its subscriptions share it.
#[derive(Debug)]
pub(crate) struct TopicCell {
    info: Arc<TopicInfo>,
    topic: Mutex<Topic>,
}

impl TopicCell {
    pub(crate) fn new(topic: Topic) -> Self {
        Self { info: Arc::clone(topic.info()), topic: Mutex::new(topic) }
    }

    pub(crate) fn name(&self) -> &TopicName {
        &self.info.name
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Topic> {
        self.topic.lock()
    }
}
