//! The bus as programs use it. Only this module and its children lock anything or read a clock.

use std::{convert::Infallible, future::poll_fn, sync::Arc};

use self::wake_queue::Driver;
use crate::{
    error::{DeleteError, PublishError, SubscribeError},
    model::{Message, NewMessage, Peek, Position, Published, PublishedBatch, TopicName},
    options::{BatchLimit, Options, SubscribeOptions},
    receive::Subscription,
    stats::{BusStats, Purged, SubscriberStats, TopicStats},
    store::{Store, StoreError},
};

mod burials;
pub(crate) mod clock;
mod engines;
mod groups;
mod handle;
mod locked_topic;
mod map;
mod op;
mod page_reader;
mod patterns;
mod services;
mod stored;
mod timer;
mod topic_ref;
mod wake_queue;
mod walk;

pub use self::{
    burials::{DeadLetterError, RefusedDeadLetter},
    engines::{ServiceSink, WindowSink},
    handle::TopicHandle,
    op::Op,
    timer::Due,
    walk::{StatsWalk, TopicPage},
};
pub(crate) use self::{
    engines::{Away, Follow, PAGE, Read, SharedEngine, history},
    locked_topic::LockedTopic,
    map::{SharedTopic, TopicMap},
    page_reader::PageReader,
    patterns::{SharedPattern, StoredPages},
    services::SharedService,
    topic_ref::TopicRef,
};

/// A message bus: a set of topics by name. Each topic is a bounded log that can be published to, pulled from
/// and subscribed to. Clones are cheap and refer to the same bus.
///
/// The bus starts no thread. Using a topic frees its expired messages. A long-lived program also calls
/// [`purge_expired`](Self::purge_expired) every few seconds, for topics that are not in use.
#[derive(Debug, Clone)]
pub struct MessageBus(Arc<TopicMap>);

impl MessageBus {
    /// Creates an empty bus. All topics are only in memory.
    pub fn new(options: Options) -> Self {
        Self(TopicMap::new(options, None, None))
    }

    /// Creates a bus with a store, and with the topics that the store has kept. [`TopicSettings::promise`] says which
    /// topics are durable. Blocks until they are read.
    ///
    /// Operations on durable topics wait until the store has kept what the topic promises. Those that return their
    /// result block the thread until then; those that return an [`Op`] are futures.
    ///
    /// [`TopicSettings::promise`]: crate::TopicSettings::promise
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open(options: Options, store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let map = TopicMap::new(options, Some(store), None);
        map.recover()?;
        Ok(Self(map))
    }

    /// The options that the bus was created with.
    pub fn options(&self) -> &Options {
        self.0.options()
    }

    /// Publishes a message. Creates the topic if there is none. On return the message has its id, everybody
    /// can see it, and every consumer that waits for it has been woken, or will be by a
    /// [driver](Self::drive_wakes). A publish never blocks on a subscriber.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put(
        &self,
        topic: &TopicName,
        message: impl Into<NewMessage>,
    ) -> Result<Published, PublishError> {
        self.publish(topic, message).wait()
    }

    /// Publishes all messages or none, in one step: nobody sees some of them before the others, and no other
    /// message comes between. An empty batch creates no topic. It returns the id of the next message, and
    /// epoch 0 if there is no topic.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put_batch(
        &self,
        topic: &TopicName,
        messages: Vec<NewMessage>,
    ) -> Result<PublishedBatch, PublishError> {
        self.publish_batch(topic, messages).wait()
    }

    /// Publishes as [`put`](Self::put) does, and is ready when the topic has kept the message.
    pub fn publish(
        &self,
        topic: &TopicName,
        message: impl Into<NewMessage>,
    ) -> Op<Result<Published, PublishError>> {
        self.topic_ref(topic, &mut None).publish(message.into())
    }

    /// Publishes as [`put_batch`](Self::put_batch) does, and is ready when the topic has kept the messages.
    pub fn publish_batch(
        &self,
        topic: &TopicName,
        messages: Vec<NewMessage>,
    ) -> Op<Result<PublishedBatch, PublishError>> {
        self.topic_ref(topic, &mut None).publish_batch(messages)
    }

    /// Pulls as [`get_batch`](Self::get_batch) does, and is ready when nobody else can get the messages, not even after
    /// a crash.
    pub fn pull(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
    ) -> Op<Result<Vec<Message>, StoreError>> {
        self.topic_ref(topic, &mut None).pull(limit)
    }

    /// Subscribes as [`subscribe`](Self::subscribe) does, and is ready when the position in the topic is known.
    pub fn follow(
        &self,
        topic: &TopicName,
        options: impl Into<SubscribeOptions>,
    ) -> Op<Result<Subscription, SubscribeError>> {
        self.topic_ref(topic, &mut None).follow(options.into())
    }

    /// Pulls the oldest message of a topic that nobody has pulled yet. `None` if there is none. A message is
    /// pulled at most once. It stays in the log for subscriptions that replay it, until it expires or is
    /// evicted.
    ///
    /// # Errors
    /// When the topic is durable and its store does not keep the new position of pulls. Nothing was pulled then.
    pub fn get(&self, topic: &TopicName) -> Result<Option<Message>, StoreError> {
        self.topic_ref(topic, &mut None).get()
    }

    /// Pulls messages until a limit is reached or none is left. Empty if there are none. From a durable topic it may be
    /// fewer: as many as were read from the store at once.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub fn get_batch(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
    ) -> Result<Vec<Message>, StoreError> {
        self.pull(topic, limit).wait()
    }

    /// Returns messages without taking them: from a position on, or those that nobody has pulled. `None` if
    /// there is no such topic. There may be fewer than the limit allows, and more after them.
    pub fn peek(
        &self,
        topic: &TopicName,
        from: Option<Position>,
        limit: BatchLimit,
    ) -> Op<Result<Option<Peek>, StoreError>> {
        self.topic_ref(topic, &mut None).peek(from, limit)
    }

    /// The size of the first payload from a position on, or of the oldest that nobody has pulled, in bytes. `None` if
    /// there is none.
    pub fn next_size(&self, topic: &TopicName, from: Option<Position>) -> Option<usize> {
        self.topic_ref(topic, &mut None).next_size(from)
    }

    /// Returns a handle that caches the topic's location. The topic need not exist yet and is created on
    /// first use.
    pub fn handle(&self, topic: &TopicName) -> TopicHandle {
        TopicHandle::new(Arc::clone(&self.0), topic.clone())
    }

    pub(crate) fn topic_ref<'a>(
        &'a self,
        name: &'a TopicName,
        location: &'a mut Option<Arc<SharedTopic>>,
    ) -> TopicRef<'a> {
        TopicRef::new(&self.0, name, location)
    }

    /// The names of all topics in order. Visits every topic in one call; for many topics see
    /// [`topic_page`](Self::topic_page).
    pub fn topics(&self) -> Vec<TopicName> {
        let mut page = self.topic_page("", "", usize::MAX);
        while page.step(|_| true) {}
        page.into_names().0
    }

    /// The first `max` names that begin with `prefix` and come after `after`, to be found slice by slice.
    pub fn topic_page(&self, prefix: &str, after: &str, max: usize) -> TopicPage {
        TopicPage::new(Arc::clone(&self.0), prefix, after, max)
    }

    /// The counters of all topics and of the bus, to be read slice by slice.
    pub fn walk_stats(&self) -> StatsWalk {
        StatsWalk::new(Arc::clone(&self.0))
    }

    /// The counters of one topic. `None` if there is no such topic.
    pub fn topic(&self, topic: &TopicName) -> Option<TopicStats> {
        self.topic_ref(topic, &mut None)
            .with_expired_removed(|topic| topic.stats(clock::monotonic()))
    }

    /// Whether a pattern that is followed, or was in the last minutes, matches a topic.
    pub fn is_in_pattern(&self, topic: &TopicName) -> bool {
        self.0.patterns.matches(topic)
    }

    /// The subscriptions of one topic. Empty if there is no such topic.
    pub fn subscribers(&self, topic: &TopicName) -> Vec<SubscriberStats> {
        self.topic_ref(topic, &mut None)
            .with_expired_removed(|topic| topic.subscribers(clock::monotonic()))
            .unwrap_or_default()
    }

    /// The counters of the whole bus. Visits every topic in one call; for many topics see
    /// [`walk_stats`](Self::walk_stats).
    pub fn stats(&self) -> BusStats {
        self.walk_stats().finish()
    }

    /// Deletes a topic with its messages and ends its subscriptions. Its result says whether there was one. It is ready
    /// when the topic cannot come back after a crash, or when the store has refused that.
    pub fn delete(&self, topic: &TopicName) -> Op<Result<bool, DeleteError>> {
        match self.topic_ref(topic, &mut None).engine() {
            Some(engine) => engine.delete(topic),
            None => self.0.delete(topic),
        }
    }

    /// Frees expired messages, a few hundred under each lock, and removes unused topics: those without
    /// messages, subscriptions, waiting pulls, and any publish for ten times their TTL (at least 10
    /// minutes). May take long: do not call it on a thread that serves clients.
    pub fn purge_expired(&self) -> Purged {
        self.0.purge_expired()
    }

    /// Wakes subscribers on behalf of publishers. Runs until it is dropped.
    ///
    /// While an executor polls this future, a publish wakes up to 128 sleeping subscribers itself and leaves
    /// the rest to the future, which wakes as many at each poll. Without it a publish wakes all subscribers
    /// before it returns. It pays off with hundreds of subscribers to a topic.
    ///
    /// # Cancel safety
    /// When dropped, it wakes the subscribers that are left. If it is kept but not polled, they are not woken.
    pub async fn drive_wakes(&self) -> Infallible {
        let driver = Driver::new(&self.0.wake_queue);
        poll_fn(|cx| driver.poll(cx)).await
    }

    /// Closes the bus. Publishing and new subscriptions fail from now on. Retained messages can still be
    /// pulled, and received by existing subscriptions, which end after the last message. With a store it blocks until
    /// all durable messages are safe from a power cut. After that, nothing can be pulled from durable topics.
    ///
    /// # Errors
    /// When the store could not keep something. Its publishers have been told.
    pub fn close(&self) -> Result<(), StoreError> {
        self.0.close()
    }
}
