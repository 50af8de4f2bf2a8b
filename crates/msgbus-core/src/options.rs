//! Options of a bus, of its topics, and of those who read from them.

use std::{sync::Arc, time::Duration};

use crate::{
    model::{GroupSettings, Position, TopicName, TopicPattern},
    store::Promise,
};

/// The options of a bus. The defaults suit most programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The settings of topics that no rule matches.
    pub topic: TopicSettings,
    /// Exceptions for topics by name or pattern. For each setting, the rule with the most specific matching
    /// pattern that sets it wins. The settings of a topic are fixed when it is created.
    pub rules: Vec<TopicRule>,
    /// The maximum number of topics that were published to. Default 100,000. At the limit, a publish that
    /// needs a new topic is refused.
    pub max_topics: usize,
    /// The maximum size of all topics together, in bytes. Default 1 GiB. At the limit, a topic evicts its own
    /// oldest messages, if its overflow policy allows it. If that does not help, the publish is refused.
    ///
    /// A message counts for its payload, its headers and [`Message::OVERHEAD`](crate::Message::OVERHEAD); a
    /// topic for its name and 512 bytes. Topics reserve bytes in blocks, so the limit may be reached while up
    /// to a quarter of it is reserved and not yet used.
    pub max_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            topic: TopicSettings::default(),
            rules: Vec::new(),
            max_topics: 100_000,
            max_bytes: 1 << 30,
        }
    }
}

/// The settings of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSettings {
    /// How long a message is kept; `None` is without limit. Default one hour.
    pub ttl: Option<Duration>,
    /// The maximum number of retained messages, at least 1. Default 65,536.
    pub max_messages: usize,
    /// The maximum size of retained messages, in bytes as [`Options::max_bytes`] counts them. Default 64 MiB.
    pub max_bytes: u64,
    /// What happens to a publish that would exceed one of the two limits.
    pub overflow: Overflow,
    /// How much of a durable topic is in memory, in bytes as [`Options::max_bytes`] counts them. Older messages are only
    /// in the store, and count for 32 bytes each. Default 16 MiB.
    pub memory_bytes: u64,
    /// What the topic promises about accepted messages, if the bus has a store. Default [`Promise::Memory`].
    pub promise: Promise,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            ttl: Some(Duration::from_secs(3600)),
            max_messages: 65_536,
            max_bytes: 64 << 20,
            overflow: Overflow::DropOldest,
            memory_bytes: 16 << 20,
            promise: Promise::Memory,
        }
    }
}

/// What a full topic does with a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The oldest messages are evicted.
    #[default]
    DropOldest,
    /// The oldest messages are evicted if they have been pulled. Otherwise the publish is refused.
    Reject,
}

/// Settings for the topics that a pattern matches. `None` leaves a setting to the next rule or the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRule {
    /// The topics to which the rule applies.
    pub pattern: TopicPattern,
    /// Sets [`TopicSettings::ttl`]. The inner `None` is without limit.
    pub ttl: Option<Option<Duration>>,
    /// Sets [`TopicSettings::max_messages`].
    pub max_messages: Option<usize>,
    /// Sets [`TopicSettings::max_bytes`].
    pub max_bytes: Option<u64>,
    /// Sets [`TopicSettings::overflow`].
    pub overflow: Option<Overflow>,
    /// Sets [`TopicSettings::memory_bytes`].
    pub memory_bytes: Option<u64>,
    /// Sets [`TopicSettings::promise`].
    pub promise: Option<Promise>,
}

impl TopicRule {
    /// A rule without settings.
    pub fn new(pattern: TopicPattern) -> Self {
        Self {
            pattern,
            ttl: None,
            max_messages: None,
            max_bytes: None,
            overflow: None,
            memory_bytes: None,
            promise: None,
        }
    }
}

impl Options {
    /// The settings of a topic with this name.
    pub fn settings_for(&self, name: &TopicName) -> TopicSettings {
        let mut rules: Vec<&TopicRule> =
            self.rules.iter().filter(|rule| rule.pattern.matches(name)).collect();
        rules.sort_by(|a, b| b.pattern.cmp(&a.pattern));
        // From the least specific to the most specific, so that the last one wins.
        let mut defaults =
            TopicSettings { max_messages: self.topic.max_messages.max(1), ..self.topic };
        if name.is_of_dead_letters() {
            (defaults.ttl, defaults.overflow) = (None, Overflow::Reject);
        }
        rules.into_iter().fold(defaults, |settings, rule| TopicSettings {
            ttl: rule.ttl.unwrap_or(settings.ttl),
            max_messages: rule.max_messages.unwrap_or(settings.max_messages).max(1),
            max_bytes: rule.max_bytes.unwrap_or(settings.max_bytes),
            overflow: rule.overflow.unwrap_or(settings.overflow),
            memory_bytes: rule.memory_bytes.unwrap_or(settings.memory_bytes),
            promise: rule.promise.unwrap_or(settings.promise),
        })
    }
}

/// How to subscribe. A bare [`Position`] converts to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubscribeOptions {
    /// The position to start from. By default the next message to be published.
    pub from: Position,
    /// What to do after missing messages. By default the subscription continues and receives a count.
    pub lag: LagPolicy,
    /// The name of the subscription in [`MessageBus::subscribers`](crate::MessageBus::subscribers), such as the
    /// address of a peer.
    pub label: Option<Arc<str>>,
}

impl From<Position> for SubscribeOptions {
    fn from(from: Position) -> Self {
        Self { from, ..Self::default() }
    }
}

/// How to lease messages for a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseOptions {
    /// How long a lease lasts, at most [`LeaseToken::MAX_TIME`](crate::LeaseToken::MAX_TIME). Default 30 seconds.
    pub lease: Duration,
    /// The maximum number of messages, and of their bytes. Default one.
    pub limit: BatchLimit,
    /// The position of the group, if it is new. Default the oldest message.
    pub from: Position,
    /// The name of the worker in [`LeaseStats`](crate::LeaseStats), such as the address of a peer.
    pub holder: Option<Arc<str>>,
}

impl Default for LeaseOptions {
    fn default() -> Self {
        let lease = Duration::from_secs(30);
        Self { lease, limit: BatchLimit::ONE, from: Position::All, holder: None }
    }
}

/// What to set of a group. `None` leaves a setting as it is, or at its default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupConfig {
    /// Sets [`GroupSettings::max_deliveries`].
    pub max_deliveries: Option<u32>,
    /// Sets [`GroupSettings::max_leases`], within its bounds.
    pub max_leases: Option<u32>,
    /// Sets [`GroupSettings::dead_letters`].
    pub dead_letters: Option<TopicName>,
    /// Moves the group: it begins anew at this position, and its leases are lost. A new group begins at the oldest
    /// message by default.
    pub from: Option<Position>,
}

impl GroupConfig {
    pub(crate) fn apply(&self, settings: &mut GroupSettings) {
        let GroupConfig { max_deliveries, max_leases, dead_letters, from: _ } = self;
        settings.max_deliveries = max_deliveries.unwrap_or(settings.max_deliveries);
        let max_leases = max_leases.unwrap_or(settings.max_leases);
        settings.max_leases = max_leases.clamp(1, GroupSettings::MAX_LEASES);
        if let Some(topic) = dead_letters {
            settings.dead_letters = Some(topic.clone());
        }
    }
}

/// What a subscription does when messages have left the log before it received them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LagPolicy {
    /// It receives their count and continues with the oldest retained message.
    #[default]
    Skip,
    /// It ends with [`RecvError::Lagged`](crate::RecvError::Lagged).
    Disconnect,
}

impl BatchLimit {
    /// One event or message, of any size.
    pub const ONE: Self = Self { events: 1, bytes: usize::MAX };
}

/// The limits of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimit {
    /// The maximum number of events or messages. At least one is taken if there is one.
    pub events: usize,
    /// No further message is taken once the payloads reach this size, in bytes.
    pub bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_rule_wins_setting_by_setting() {
        let rule = |pattern: &str| TopicRule::new(pattern.parse().unwrap());
        let options = Options {
            rules: vec![
                TopicRule { max_messages: Some(1), ..rule("orders/eu") },
                TopicRule { ttl: Some(None), max_messages: Some(2), ..rule("orders/**") },
                TopicRule { max_messages: Some(3), max_bytes: Some(4), ..rule("**") },
            ],
            ..Options::default()
        };
        let settings = |name: &str| options.settings_for(&name.parse().unwrap());

        let eu = settings("orders/eu");
        assert_eq!((eu.max_messages, eu.ttl, eu.max_bytes), (1, None, 4));
        let us = settings("orders/us");
        assert_eq!((us.max_messages, us.ttl, us.max_bytes), (2, None, 4));
        let other = settings("other");
        assert_eq!((other.max_messages, other.ttl), (3, TopicSettings::default().ttl));
    }
}
