//! What a bus may be told: when it is made, and when somebody reads from it.

use std::time::Duration;

use crate::model::{Position, TopicName, TopicPattern};

/// The settings of a bus. `Options::default()` is a bus that needs no thought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The settings of topics that no rule speaks of.
    pub topic: TopicSettings,
    /// Exceptions for topics by name or pattern. Of the rules that match a name and set a thing,
    /// the one with the most specific pattern wins. Settings are fixed when a topic is made.
    pub rules: Vec<TopicRule>,
    /// The most topics at a time. Default 100,000. At it, a publish or subscribe that would need a
    /// new topic is refused.
    pub max_topics: usize,
    /// The most bytes that all topics together may hold. Default 1 GiB. At it, a topic that drops
    /// its oldest gives up its own; where that does not help the publish is refused.
    ///
    /// A message counts for its payload plus [`Message::OVERHEAD`](crate::Message::OVERHEAD), a
    /// topic for its name plus 512 bytes. Topics take from the total in blocks, so the sum may
    /// reach the bound while up to a quarter of it is set aside and not yet used.
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
    /// How long a message lives; `None` for ever. Default one hour.
    pub ttl: Option<Duration>,
    /// The most messages retained, at least 1. Default 65,536.
    pub max_messages: usize,
    /// The most bytes retained, counted as [`Options::max_bytes`] says. Default 64 MiB.
    pub max_bytes: u64,
    /// What happens to a publish when one of the two is reached.
    pub overflow: Overflow,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            ttl: Some(Duration::from_secs(3600)),
            max_messages: 65_536,
            max_bytes: 64 << 20,
            overflow: Overflow::DropOldest,
        }
    }
}

/// What a full topic does with a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The oldest messages leave to make room.
    #[default]
    DropOldest,
    /// Messages that were pulled leave to make room; when none is left the publish is refused.
    Reject,
}

/// Settings for the topics that a pattern matches; `None` leaves a setting to the next rule or the
/// default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRule {
    /// Which topics the rule is about.
    pub pattern: TopicPattern,
    /// Sets [`TopicSettings::ttl`]; the inner `None` is for ever.
    pub ttl: Option<Option<Duration>>,
    /// Sets [`TopicSettings::max_messages`].
    pub max_messages: Option<usize>,
    /// Sets [`TopicSettings::max_bytes`].
    pub max_bytes: Option<u64>,
    /// Sets [`TopicSettings::overflow`].
    pub overflow: Option<Overflow>,
}

impl TopicRule {
    /// A rule that sets nothing yet.
    pub fn new(pattern: TopicPattern) -> Self {
        Self { pattern, ttl: None, max_messages: None, max_bytes: None, overflow: None }
    }
}

impl Options {
    /// The settings that a topic of this name gets.
    pub fn settings_for(&self, name: &TopicName) -> TopicSettings {
        let mut rules: Vec<&TopicRule> =
            self.rules.iter().filter(|rule| rule.pattern.matches(name)).collect();
        rules.sort_by(|a, b| b.pattern.cmp(&a.pattern));
        // From the least specific to the most: the last word stands.
        let defaults = TopicSettings { max_messages: self.topic.max_messages.max(1), ..self.topic };
        rules.into_iter().fold(defaults, |settings, rule| TopicSettings {
            ttl: rule.ttl.unwrap_or(settings.ttl),
            max_messages: rule.max_messages.unwrap_or(settings.max_messages).max(1),
            max_bytes: rule.max_bytes.unwrap_or(settings.max_bytes),
            overflow: rule.overflow.unwrap_or(settings.overflow),
        })
    }
}

/// How to subscribe. A bare [`Position`] converts to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubscribeOptions {
    /// Where to start; by default with the next message published.
    pub from: Position,
    /// What to do after falling behind what is retained; by default go on and be told.
    pub lag: LagPolicy,
    /// What the subscription is called in [`MessageBus::subscribers`](crate::MessageBus::subscribers),
    /// as the address of a peer.
    pub label: Option<Box<str>>,
}

impl From<Position> for SubscribeOptions {
    fn from(from: Position) -> Self {
        Self { from, ..Self::default() }
    }
}

/// What a subscription does when messages have left the log before it got to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LagPolicy {
    /// It is told how many, and goes on with the oldest message there is.
    #[default]
    Skip,
    /// It ends with [`RecvError::Lagged`](crate::RecvError::Lagged).
    Disconnect,
}

/// The bounds of what is taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimit {
    /// The most events, or messages; at least one is taken where there is one.
    pub events: usize,
    /// No further message is taken once the payloads come to this many bytes.
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
