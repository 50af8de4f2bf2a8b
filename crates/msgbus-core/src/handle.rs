//! A topic at hand.

use std::sync::Arc;

use crate::{
    access::Access,
    cell::TopicCell,
    error::{PublishError, SubscribeError},
    map::TopicMap,
    message::{Draft, Message, Published, PublishedBatch},
    name::TopicName,
    options::{BatchLimit, SubscribeOptions},
    pull::Pull,
    subscription::Subscription,
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
    cell: Option<Arc<TopicCell>>,
}

impl TopicHandle {
    pub(crate) fn new(map: Arc<TopicMap>, name: TopicName) -> Self {
        Self { map, name, cell: None }
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
        self.access().put(message.into())
    }

    /// Publishes messages in one step, as [`MessageBus::put_all`](crate::MessageBus::put_all) does.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put_all(&mut self, messages: Vec<Draft>) -> Result<PublishedBatch, PublishError> {
        self.access().put_all(messages)
    }

    /// Pulls the oldest message that nobody has pulled yet, as [`MessageBus::get`](crate::MessageBus::get) does.
    pub fn get(&mut self) -> Option<Message> {
        self.access().get()
    }

    /// Pulls messages until a limit is reached or none is left, as [`MessageBus::get_all`](crate::MessageBus::get_all) does.
    pub fn get_all(&mut self, limit: BatchLimit) -> Vec<Message> {
        self.access().get_all(limit)
    }

    /// Pulls messages as soon as there are any, as [`MessageBus::wait`](crate::MessageBus::wait) does.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn wait(&mut self, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        self.access().wait(limit)
    }

    /// Subscribes to the topic, as [`MessageBus::subscribe`](crate::MessageBus::subscribe) does.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn subscribe(
        &mut self,
        options: impl Into<SubscribeOptions>,
    ) -> Result<Subscription, SubscribeError> {
        self.access().subscribe(options.into())
    }

    fn access(&mut self) -> Access<'_> {
        Access::new(&self.map, &self.name, &mut self.cell)
    }
}
