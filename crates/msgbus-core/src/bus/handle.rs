//! A topic at hand.

use std::sync::Arc;

use super::{
    map::{SharedTopic, TopicMap},
    topic_ref::TopicRef,
};
use crate::{
    error::PublishError,
    model::{Draft, Message, Published, PublishedBatch, TopicName},
    options::BatchLimit,
};

/// A topic of a [`MessageBus`](crate::MessageBus), for those who use the same one often: it is not looked up by its name
/// each time.
///
/// It is as good as the name: a topic that was deleted is made anew by the next publish, and is not
/// kept from being forgotten. For another thread, clone it.
#[derive(Debug, Clone)]
pub struct TopicHandle {
    map: Arc<TopicMap>,
    name: TopicName,
    /// Where the topic was when it was last used.
    topic: Option<Arc<SharedTopic>>,
}

impl TopicHandle {
    pub(crate) fn new(map: Arc<TopicMap>, name: TopicName) -> Self {
        Self { map, name, topic: None }
    }

    /// The topic's name.
    pub fn name(&self) -> &TopicName {
        &self.name
    }

    /// Publishes a message, as [`MessageBus::put`](crate::MessageBus::put) does.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put(&mut self, message: impl Into<Draft>) -> Result<Published, PublishError> {
        self.topic_ref().put(message.into())
    }

    /// Publishes messages in one step, as [`MessageBus::put_all`](crate::MessageBus::put_all) does.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put_all(&mut self, messages: Vec<Draft>) -> Result<PublishedBatch, PublishError> {
        self.topic_ref().put_all(messages)
    }

    /// Pulls the oldest message that nobody has pulled yet, as [`MessageBus::get`](crate::MessageBus::get) does.
    pub fn get(&mut self) -> Option<Message> {
        self.topic_ref().get()
    }

    /// Pulls messages until a limit is reached or none is left, as [`MessageBus::get_all`](crate::MessageBus::get_all) does.
    pub fn get_all(&mut self, limit: BatchLimit) -> Vec<Message> {
        self.topic_ref().get_all(limit)
    }

    pub(crate) fn topic_ref(&mut self) -> TopicRef<'_> {
        TopicRef::new(&self.map, &self.name, &mut self.topic)
    }
}
