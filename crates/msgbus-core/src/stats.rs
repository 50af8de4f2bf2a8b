//! The books: what happened to messages, counted so that they balance.

use std::{iter::Sum, ops::AddAssign, sync::Arc};

use crate::{model::TopicInfo, options::TopicSettings};

/// What happened to the messages of a topic or of a whole bus.
///
/// At every moment `published = retained + expired.total + evicted.total + deleted.total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Messages accepted.
    pub published: u64,
    /// Messages taken by pull.
    pub pulled: u64,
    /// Messages handed to subscriptions, each counted once per subscription.
    pub delivered: u64,
    /// Messages that left the log before a subscription got to them, once per subscription.
    pub missed: u64,
    /// Messages that left because their time was over.
    pub expired: Departed,
    /// Messages that left because a bound was reached.
    pub evicted: Departed,
    /// Messages that left with their topic.
    pub deleted: Departed,
}

/// How many messages left the log for one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Departed {
    /// All of them.
    pub total: u64,
    /// Those that nobody had pulled.
    pub unpulled: u64,
}

impl Departed {
    pub(crate) fn count(&mut self, was_pulled: bool) {
        self.total += 1;
        self.unpulled += u64::from(!was_pulled);
    }
}

impl AddAssign for Departed {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.unpulled += other.unpulled;
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.published += other.published;
        self.pulled += other.pulled;
        self.delivered += other.delivered;
        self.missed += other.missed;
        self.expired += other.expired;
        self.evicted += other.evicted;
        self.deleted += other.deleted;
    }
}

impl Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// One topic at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicStats {
    /// Name, epoch, creation and ttl.
    pub topic: Arc<TopicInfo>,
    /// What happened to its messages.
    pub counters: Counters,
    /// Messages in the log.
    pub retained: u64,
    /// Of these, the ones that nobody has pulled.
    pub unpulled: u64,
    /// What the log counts for in the bounds by bytes.
    pub bytes: u64,
    /// The bounds it was made with.
    pub settings: TopicSettings,
    /// The id of the oldest message in the log; `next_id` when the log is empty.
    pub first_id: u64,
    /// The id that the next message will get: how many were ever published.
    pub next_id: u64,
    /// Live subscriptions.
    pub subscribers: usize,
    /// Pulls that wait.
    pub waiters: usize,
}

/// One of a topic's subscriptions at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriberStats {
    /// What it was called when it was made.
    pub label: Option<Box<str>>,
    /// The id of the next message it can receive; `next_id` of the topic when it has them all.
    pub next_id: u64,
    /// What it has received, missed and still before it: its lag.
    pub stats: SubscriptionStats,
}

/// A whole bus at one moment. Counters include the topics that are gone, so they never fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusStats {
    /// Topics there are.
    pub topics: usize,
    /// Live subscriptions.
    pub subscribers: usize,
    /// Messages in all logs.
    pub retained: u64,
    /// What topics and messages have set aside of [`Options::max_bytes`](crate::Options::max_bytes).
    pub bytes: u64,
    /// What happened to messages.
    pub counters: Counters,
}

/// One subscription at one moment: `received + missed + pending` is what was published since its
/// start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubscriptionStats {
    /// Messages received.
    pub received: u64,
    /// Messages that left the log first.
    pub missed: u64,
    /// Messages in the log that wait to be received.
    pub pending: u64,
}

/// What a sweep has dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Purged {
    /// Expired messages.
    pub messages: usize,
    /// Topics that nobody used any more.
    pub topics: usize,
}
