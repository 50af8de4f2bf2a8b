//! Following a pattern.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
};

use super::{SharedPattern, retained::Retained};
use crate::{
    bus::{
        MessageBus, clock,
        map::{SharedTopic, TopicMap},
        op::Op,
    },
    error::SubscribeError,
    model::{Now, Position, StartPosition, TopicPattern},
    options::SubscribeOptions,
    receive::Subscription,
    stats::PatternStats,
    store::StoreError,
    topic::CursorKey,
};

impl MessageBus {
    /// Subscribes to all topics that match a pattern: those that exist, and those that are created later. It blocks while
    /// it visits the topics; [`follow_pattern`](Self::follow_pattern) does not.
    ///
    /// All subscriptions to a pattern receive the messages in the same order, in which the messages of each topic are in
    /// their order. Positions are those of this order. It has its own epoch, begins with the first subscription, and is
    /// dropped 5 minutes after the last one has ended. A position of an order that was dropped is one before a
    /// restart: the subscription starts with the oldest messages that the topics retain.
    ///
    /// Like a topic, the order holds a limited number of messages: [`TopicSettings::max_messages`] of
    /// [`Options::topic`]. What expired, was evicted or was deleted with its topic by its turn counts as missed.
    ///
    /// [`TopicSettings::max_messages`]: crate::TopicSettings::max_messages
    /// [`Options::topic`]: crate::Options::topic
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn subscribe_pattern(
        &self,
        pattern: &TopicPattern,
        options: impl Into<SubscribeOptions>,
    ) -> Result<Subscription, SubscribeError> {
        self.follow_pattern(pattern, options).wait()
    }

    /// Subscribes as [`subscribe_pattern`](Self::subscribe_pattern) does, and is ready when the position in the order is
    /// known.
    pub fn follow_pattern(
        &self,
        pattern: &TopicPattern,
        options: impl Into<SubscribeOptions>,
    ) -> Op<Result<Subscription, SubscribeError>> {
        if let Err(refusal) = self.0.refuse_pattern(pattern) {
            return Op::ready(Err(StoreError::from(refusal).into()));
        }
        Op::running(follow(Arc::clone(&self.0), pattern.clone(), options.into()))
    }

    /// The order of a pattern and its subscriptions. `None` if nobody has followed the pattern in the last minutes.
    pub fn pattern(&self, pattern: &TopicPattern) -> Option<PatternStats> {
        Some(self.0.patterns.find(pattern)?.lock().stats())
    }
}

async fn follow(
    map: Arc<TopicMap>,
    pattern: TopicPattern,
    options: SubscribeOptions,
) -> Result<Subscription, SubscribeError> {
    loop {
        if map.is_closed() {
            return Err(SubscribeError::Closed);
        }
        let shared = map.patterns.get_or_create(&map, &pattern)?;
        let (asks_for_retained, is_filled) = {
            let log = shared.lock();
            (log.asks_for_retained(shared.epoch, options.from), log.is_filled())
        };
        if asks_for_retained && !is_filled {
            shared.fill(&map).await;
        } else if !shared.is_complete.load(Relaxed) {
            shared.visit_topics(&map, |_| 0).await;
        }
        let is_cut = asks_for_retained && shared.lock().is_cut();
        let mut retained = None;
        if is_cut {
            retained = Some(shared.count_retained(&map, options.from).await);
        }
        if let Some(subscribed) = shared.subscribe(&map, options.clone(), retained) {
            let (key, start) = subscribed?;
            return Ok(Subscription::of_pattern(shared, key, start));
        }
    }
}

impl SharedPattern {
    /// Adds a cursor. `None` if the log was dropped meanwhile.
    fn subscribe(
        &self,
        map: &TopicMap,
        options: SubscribeOptions,
        retained: Option<u64>,
    ) -> Option<Result<(CursorKey, StartPosition), SubscribeError>> {
        let mut log = self.lock();
        if log.is_dropped() {
            return None;
        }
        if map.is_closed() {
            log.close();
        }
        Some(log.subscribe(self.epoch, options, retained, clock::now()))
    }

    /// Lets a topic feed the log. Returns `false` if it was deleted.
    fn is_fed_by(self: &Arc<Self>, topic: &SharedTopic) -> bool {
        let mut topic = topic.lock();
        let exists = !topic.is_deleted();
        if exists {
            topic.attach(self);
        }
        exists
    }

    /// Calls `visit` with every topic that matches, after it feeds the log, and lets other tasks run in between. `visit`
    /// returns how many messages it has visited.
    async fn visit_topics(
        self: &Arc<Self>,
        map: &TopicMap,
        mut visit: impl FnMut(&SharedTopic) -> usize,
    ) {
        /// Topics and messages that are visited at once.
        const SLICE: usize = 4096;
        let mut visited = 0;
        for shard in 0..TopicMap::SHARDS {
            for topic in map.topics_matching(shard, &self.pattern) {
                if !self.is_fed_by(&topic) {
                    continue;
                }
                visited += 16 + visit(&topic);
                if visited >= SLICE {
                    visited = 0;
                    let_others_run().await;
                }
            }
        }
        self.is_complete.store(true, Relaxed);
    }

    /// Puts what the topics retain at the beginning of the log.
    async fn fill(self: &Arc<Self>, map: &TopicMap) {
        let mut retained = Retained::new(self.lock().capacity());
        self.visit_topics(map, |topic| retained.add(topic, self)).await;
        let (references, is_cut) = retained.finish();
        let unused = self.lock().fill(references, is_cut);
        drop(unused);
    }

    /// How many messages the topics retain from a position on.
    async fn count_retained(self: &Arc<Self>, map: &TopicMap, from: Position) -> u64 {
        let now: Now = clock::now();
        let mut count = 0;
        let count_of = |topic: &SharedTopic| {
            count += topic.lock_and_expire().count_retained(from, now);
            0
        };
        self.visit_topics(map, count_of).await;
        count
    }
}

/// Yields once.
async fn let_others_run() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
