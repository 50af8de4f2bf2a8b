//! The bus as programs use it.

use std::{convert::Infallible, future::poll_fn, sync::Arc};

use self::{map::TopicMap, wake_queue::Driver};
use crate::{
    error::PublishError,
    model::{Draft, Message, Peek, Position, Published, PublishedBatch, TopicName},
    options::{BatchLimit, Options},
    stats::{BusStats, Purged, SubscriberStats, TopicStats},
};

pub(crate) mod clock;
mod handle;
mod locked_topic;
mod map;
mod topic_ref;
mod wake_queue;
mod walk;

pub use self::{
    handle::TopicHandle,
    walk::{StatsWalk, TopicPage},
};
pub(crate) use self::{locked_topic::LockedTopic, map::SharedTopic, topic_ref::TopicRef};

/// A message bus: topics by name, each a bounded log that can be published to, pulled from and
/// subscribed to. Cheap to clone; all clones are the same bus.
///
/// It starts no thread: memory of expired messages is given back by use, and by
/// [`purge_expired`](Self::purge_expired), which a long-lived program calls every few seconds.
#[derive(Debug, Clone)]
pub struct MessageBus(Arc<TopicMap>);

impl MessageBus {
    /// Makes an empty bus.
    pub fn new(options: Options) -> Self {
        Self(TopicMap::new(options))
    }

    /// The settings that the bus was made with.
    pub fn options(&self) -> &Options {
        self.0.options()
    }

    /// Publishes a message, creating the topic if need be. When this returns, the message has its
    /// number and its place, and everyone who waits for it has been woken, or will be by a
    /// [driver](Self::drive_wakes). It never blocks on a subscriber.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put(
        &self,
        topic: &TopicName,
        message: impl Into<Draft>,
    ) -> Result<Published, PublishError> {
        self.at(topic, &mut None).put(message.into())
    }

    /// Publishes messages in one step, all or none: nobody sees some of them before the others, and
    /// no other message comes between. An empty batch creates no topic; it is told where the next message
    /// would go, and epoch 0 where there is no topic.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put_all(
        &self,
        topic: &TopicName,
        messages: Vec<Draft>,
    ) -> Result<PublishedBatch, PublishError> {
        self.at(topic, &mut None).put_all(messages)
    }

    /// Pulls the oldest message of a topic that nobody has pulled yet; `None` when there is none.
    /// Each message is pulled once at most. It stays in the log for subscriptions that replay it,
    /// until it expires or a bound is reached.
    pub fn get(&self, topic: &TopicName) -> Option<Message> {
        self.at(topic, &mut None).get()
    }

    /// Pulls messages until a limit is reached or none is left; empty when there is none.
    pub fn get_all(&self, topic: &TopicName, limit: BatchLimit) -> Vec<Message> {
        self.at(topic, &mut None).get_all(limit)
    }

    /// Looks at messages without taking them: from a position on, or those that nobody has pulled.
    /// `None` when there is no such topic.
    pub fn peek(
        &self,
        topic: &TopicName,
        from: Option<Position>,
        limit: BatchLimit,
    ) -> Option<Peek> {
        self.at(topic, &mut None).peek(from, limit)
    }

    /// A topic at hand: what is done through it need not be found by its name each time. There need
    /// be no such topic, and none is made before one is needed.
    pub fn handle(&self, topic: &TopicName) -> TopicHandle {
        TopicHandle::new(Arc::clone(&self.0), topic.clone())
    }

    pub(crate) fn at<'a>(
        &'a self,
        name: &'a TopicName,
        cell: &'a mut Option<Arc<SharedTopic>>,
    ) -> TopicRef<'a> {
        TopicRef::new(&self.0, name, cell)
    }

    /// The names of all topics, sorted: for few topics. See [`topic_page`](Self::topic_page).
    pub fn topics(&self) -> Vec<TopicName> {
        let mut page = self.topic_page("", "", usize::MAX);
        while page.step(|_| true) {}
        page.into_names().0
    }

    /// The first `max` names that begin with `prefix` and come after the text `after`, to be found slice by
    /// slice.
    pub fn topic_page(&self, prefix: &str, after: &str, max: usize) -> TopicPage {
        TopicPage::new(Arc::clone(&self.0), prefix, after, max)
    }

    /// The counters of all topics and of the bus, to be read slice by slice.
    pub fn walk_stats(&self) -> StatsWalk {
        StatsWalk::new(Arc::clone(&self.0))
    }

    /// The counters of one topic; `None` when there is no such topic.
    pub fn topic(&self, topic: &TopicName) -> Option<TopicStats> {
        self.at(topic, &mut None).with_exact(|topic| topic.stats(clock::monotonic()))
    }

    /// The subscriptions of one topic; none when there is no such topic.
    pub fn subscribers(&self, topic: &TopicName) -> Vec<SubscriberStats> {
        self.at(topic, &mut None)
            .with_exact(|topic| topic.subscribers(clock::monotonic()))
            .unwrap_or_default()
    }

    /// The counters of the whole bus. Visits every topic: for few topics. See
    /// [`walk_stats`](Self::walk_stats).
    pub fn stats(&self) -> BusStats {
        self.walk_stats().finish()
    }

    /// Deletes a topic with its messages and ends its subscriptions. Says whether there was one.
    pub fn delete(&self, topic: &TopicName) -> bool {
        self.0.delete(topic)
    }

    /// Frees the memory of expired messages, a few hundred under each lock, and forgets topics that are not in use: without
    /// messages, subscriptions, and any publish for ten times their ttl (10 minutes at least). Takes a
    /// while where there is much to free: not for a thread that serves.
    pub fn purge_expired(&self) -> Purged {
        self.0.purge_expired()
    }

    /// Wakes subscribers that publishes have left to it; runs until it is dropped.
    ///
    /// While this future is polled by some executor, a publish wakes up to 128 sleeping subscribers
    /// itself and leaves the rest to it, which wakes as many at each poll. Without it, a publish wakes
    /// all of them before it returns. Worth a task in a program with hundreds of subscribers to a topic.
    ///
    /// # Cancel safety
    /// When it is dropped, it wakes whoever is left. When it is kept and not polled, they sleep on.
    pub async fn drive_wakes(&self) -> Infallible {
        let driver = Driver::new(&self.0.wakes);
        poll_fn(|cx| driver.poll(cx)).await
    }

    /// Closes the bus: publishing and subscribing end at once; what is retained can still be
    /// pulled, and received by subscriptions, which end after it.
    pub fn close(&self) {
        self.0.close();
    }
}
