//! A handle to one topic.

use std::sync::Arc;

use super::{
    map::{SharedTopic, TopicMap},
    op::Op,
    topic_ref::TopicRef,
};
use crate::{
    error::PublishError,
    model::{Message, NewMessage, Published, PublishedBatch, TopicName},
    options::BatchLimit,
    store::StoreError,
};

/// A handle that caches the location of a topic, so that repeated use needs no look-up by name.
///
/// The topic need not exist yet; it is created on first use. A handle does not keep its topic from being
/// deleted or removed as unused. The next publish creates it again. Clone the handle for another thread.
#[derive(Debug, Clone)]
pub struct TopicHandle {
    map: Arc<TopicMap>,
    name: TopicName,
    /// The topic when it was last used.
    location: Option<Arc<SharedTopic>>,
}

impl TopicHandle {
    pub(crate) fn new(map: Arc<TopicMap>, name: TopicName) -> Self {
        Self { map, name, location: None }
    }

    /// The topic's name.
    pub fn name(&self) -> &TopicName {
        &self.name
    }

    /// Publishes a message, see [`MessageBus::put`](crate::MessageBus::put).
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put(&mut self, message: impl Into<NewMessage>) -> Result<Published, PublishError> {
        self.topic_ref().publish(message.into()).wait()
    }

    /// Publishes as [`put`](Self::put) does, and is ready when the topic has kept the message.
    #[inline]
    pub fn publish(
        &mut self,
        message: impl Into<NewMessage>,
    ) -> Op<Result<Published, PublishError>> {
        self.topic_ref().publish(message.into())
    }

    /// Publishes messages in one step, see [`MessageBus::put_batch`](crate::MessageBus::put_batch).
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put_batch(&mut self, messages: Vec<NewMessage>) -> Result<PublishedBatch, PublishError> {
        self.topic_ref().publish_batch(messages).wait()
    }

    /// Pulls the oldest message that nobody has pulled, see [`MessageBus::get`](crate::MessageBus::get).
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn get(&mut self) -> Result<Option<Message>, StoreError> {
        self.topic_ref().get()
    }

    /// Pulls messages until a limit is reached, see
    /// [`MessageBus::get_batch`](crate::MessageBus::get_batch).
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn get_batch(&mut self, limit: BatchLimit) -> Result<Vec<Message>, StoreError> {
        self.topic_ref().pull(limit).wait()
    }

    pub(crate) fn topic_ref(&mut self) -> TopicRef<'_> {
        TopicRef::new(&self.map, &self.name, &mut self.location)
    }
}
