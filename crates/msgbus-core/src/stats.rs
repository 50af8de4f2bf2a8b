//! Counters. They balance: every published message is retained, or counted once for why it left.

use std::{iter::Sum, ops::AddAssign, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use crate::{
    model::{GroupName, GroupSettings, TopicInfo, TopicName},
    options::TopicSettings,
    store::Durability,
};

/// What happened to the messages of a topic or of a whole bus.
///
/// At every moment `published = retained + expired.total + evicted.total + deleted.total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Messages accepted.
    pub published: u64,
    /// Messages pulled.
    pub pulled: u64,
    /// Messages received by subscriptions, counted once per subscription.
    pub delivered: u64,
    /// Messages that left the log before a subscription received them, counted once per subscription.
    pub missed: u64,
    /// Messages that expired.
    pub expired: RemovalCount,
    /// Messages that were evicted because a limit was reached.
    pub evicted: RemovalCount,
    /// Messages that were deleted with their topic.
    pub deleted: RemovalCount,
}

/// How many messages left the log for one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemovalCount {
    /// All of them, pulled or not.
    pub total: u64,
    /// Those that nobody had pulled.
    pub unpulled: u64,
}

impl RemovalCount {
    pub(crate) fn count(&mut self, was_pulled: bool) {
        self.total += 1;
        self.unpulled += u64::from(!was_pulled);
    }
}

impl AddAssign for RemovalCount {
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
    /// The topic's name, epoch, creation time and TTL.
    pub topic: Arc<TopicInfo>,
    /// What happened to its messages.
    pub counters: Counters,
    /// Messages in the log.
    pub retained: u64,
    /// Messages in the log that nobody has pulled.
    pub unpulled: u64,
    /// The size of the log as the limits count it, in bytes.
    pub bytes: u64,
    /// The settings that the topic was created with.
    pub settings: TopicSettings,
    /// What an accepted message survives.
    pub durability: Durability,
    /// The id of the oldest message in the log, or `next_id` if the log is empty.
    pub first_id: u64,
    /// The id of the next message.
    pub next_id: u64,
    /// Live subscriptions.
    pub subscribers: usize,
    /// Waiting pulls, those of groups included.
    pub waiters: usize,
}

/// The sums of some topics' counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicSums {
    /// How many topics.
    pub topics: usize,
    /// What happened to their messages.
    pub counters: Counters,
    /// Messages in their logs.
    pub retained: u64,
    /// Messages in their logs that nobody has pulled.
    pub unpulled: u64,
    /// The size of their logs as the limits count it, in bytes.
    pub bytes: u64,
    /// Live subscriptions.
    pub subscribers: usize,
    /// Waiting pulls, those of groups included.
    pub waiters: usize,
}

impl TopicSums {
    /// The counters of one topic.
    pub fn of(stats: &TopicStats) -> Self {
        let &TopicStats { counters, retained, unpulled, bytes, subscribers, waiters, .. } = stats;
        Self { topics: 1, counters, retained, unpulled, bytes, subscribers, waiters }
    }
}

impl Sum for TopicSums {
    fn sum<I: Iterator<Item = Self>>(sums: I) -> Self {
        sums.fold(Self::default(), |mut sum, one| {
            sum.topics += one.topics;
            sum.counters += one.counters;
            sum.retained += one.retained;
            sum.unpulled += one.unpulled;
            sum.bytes += one.bytes;
            sum.subscribers += one.subscribers;
            sum.waiters += one.waiters;
            sum
        })
    }
}

/// One of a topic's subscriptions at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriberStats {
    /// The label that it was created with.
    pub label: Option<Arc<str>>,
    /// The id of the next message that it can receive, or `next_id` of the topic if it has caught up.
    pub next_id: u64,
    /// What it has received and missed, and what is pending (its lag).
    pub stats: SubscriptionStats,
}

/// A pattern that is followed, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternStats {
    /// The id of the oldest reference to a message in the order of the pattern, or `next_id` if there is none.
    pub first_id: u64,
    /// The id of the next message.
    pub next_id: u64,
    /// What its subscriptions have received and missed: `delivered` and `missed`. The others are 0.
    pub counters: Counters,
    /// Its subscriptions.
    pub subscribers: Vec<SubscriberStats>,
}

/// What happened to the messages of one group, since it was created or moved.
///
/// At every moment the number of messages published to the group is `pending + leased + waiting` of [`GroupStats`]
/// plus `acked + dead_lettered + expired + evicted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupCounters {
    /// Leases given.
    pub delivered: u64,
    /// Leases given for messages that had been delivered before.
    pub redelivered: u64,
    /// Messages acknowledged.
    pub acked: u64,
    /// Leases that a worker has given back.
    pub nacked: u64,
    /// Leases whose time ended.
    pub lease_expired: u64,
    /// Messages that became dead letters.
    pub dead_lettered: u64,
    /// Attempts to make a dead letter that its topic refused.
    pub dead_letters_refused: u64,
    /// Messages that expired before they were acknowledged.
    pub expired: u64,
    /// Messages that were evicted before they were acknowledged.
    pub evicted: u64,
}

/// One group at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStats {
    /// The name of the group.
    pub name: GroupName,
    /// Its settings.
    pub settings: GroupSettings,
    /// The id of the next message that the group has not been given.
    pub next_id: u64,
    /// Messages that the group has not been given.
    pub pending: u64,
    /// Messages that are leased.
    pub leased: u64,
    /// Messages that were delivered before and will be delivered again, those with a delay included.
    pub waiting: u64,
    /// What happened to messages.
    pub counters: GroupCounters,
    /// When the oldest message was published that is not acknowledged.
    pub oldest_unacked: Option<DateTime<Utc>>,
    /// Waiting pulls.
    pub waiters: usize,
}

/// One lease at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStats {
    /// The id of the message.
    pub id: u64,
    /// How often the group was given the message.
    pub deliveries: u32,
    /// The label of the worker, see [`LeaseOptions::holder`](crate::LeaseOptions::holder). `None` after a restart.
    pub holder: Option<Arc<str>>,
    /// When the lease began, to the second. After a restart, when that was.
    pub since: DateTime<Utc>,
    /// When it ends.
    pub expires: DateTime<Utc>,
}

/// A whole bus at one moment. The counters include removed topics, so they never decrease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusStats {
    /// Topics.
    pub topics: usize,
    /// Live subscriptions, those to patterns included.
    pub subscribers: usize,
    /// Patterns that are followed, or were followed in the last minutes.
    pub patterns: usize,
    /// References to messages that patterns have.
    pub references: u64,
    /// Messages in all logs.
    pub retained: u64,
    /// Bytes reserved of [`Options::max_bytes`](crate::Options::max_bytes).
    pub bytes: u64,
    /// What happened to messages.
    pub counters: Counters,
}

/// One subscription at one moment. `received + missed + pending` is the number of messages published since
/// its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubscriptionStats {
    /// Messages received.
    pub received: u64,
    /// Messages that left the log before it received them.
    pub missed: u64,
    /// Messages in the log that it has not received yet.
    pub pending: u64,
}

/// What happened to the requests of one service.
///
/// At every moment `asked` is the sum of `replied`, `failed`, `timed_out`, `refused`, `given_up`, and of the requests that
/// are pending (`queued`, `in_hand` and `away` of [`ServiceStats`]).
///
/// A request counts at the bus where it was asked, whichever bus has its responder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServiceCounters {
    /// Requests made.
    pub asked: u64,
    /// Requests that got a reply.
    pub replied: u64,
    /// Requests whose responder failed or left.
    pub failed: u64,
    /// Requests without a reply in time.
    pub timed_out: u64,
    /// Requests that no responder was given: nobody served, or a limit was reached.
    pub refused: u64,
    /// Requests whose requester left.
    pub given_up: u64,
    /// Replies that nobody waited for.
    pub not_wanted: u64,
    /// How long requests waited for their replies.
    pub reply_times: ReplyTimes,
}

/// A histogram of times. [`BOUNDS`](Self::BOUNDS) has its upper bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplyTimes {
    /// The number of times up to each bound, and above the one before it. The last one is for longer times.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// The sum of all times.
    pub sum: Duration,
}

impl ReplyTimes {
    /// The upper bounds, in microseconds.
    pub const BOUNDS: [u64; 8] =
        [100, 1_000, 5_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000];

    pub(crate) fn record(&mut self, time: Duration) {
        let index = Self::BOUNDS.partition_point(|bound| Duration::from_micros(*bound) < time);
        self.counts[index] += 1;
        self.sum += time;
    }
}

/// One service at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceStats {
    /// The name of the service.
    pub name: TopicName,
    /// Responders that wait for requests.
    pub responders: usize,
    /// Requests that wait for a responder.
    pub queued: usize,
    /// Requests that responders have.
    pub in_hand: usize,
    /// Requests that other buses have, or for which one is sought.
    pub away: usize,
    /// Requests of other buses that wait here for a responder, or that responders here have.
    pub visiting: usize,
    /// Requests of other buses that have come here.
    pub taken: u64,
    /// What happened to requests that were asked here.
    pub counters: ServiceCounters,
}

/// What a purge has removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Purged {
    /// Expired messages.
    pub messages: usize,
    /// Unused topics.
    pub topics: usize,
}
