//! The position in each topic that a pattern has matched.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use msgbus_core::{Message, TopicName};

/// Which messages of each topic a subscription to a pattern has received.
///
/// The order of a pattern is kept by the server in memory, and begins anew after a restart of the server or some minutes
/// after the last subscriber has left. The server then sends all messages that the topics retain, and these positions tell
/// which of them were received before.
#[derive(Debug, Clone, Default)]
pub struct TopicPositions {
    topics: HashMap<TopicName, Last>,
    /// Counts what was noted, to forget the topics that were silent for the longest.
    noted: u64,
    /// When the subscription began, by the server's clock, unless it began with the oldest messages.
    begin: Option<DateTime<Utc>>,
    /// Whether the order of the pattern began anew, so that messages may be received again.
    has_restarted: bool,
}

/// The last message of a topic.
#[derive(Debug, Clone, Copy)]
struct Last {
    /// When the topic was created. A topic that is created anew has other messages.
    created: DateTime<Utc>,
    id: u64,
    noted: u64,
}

impl TopicPositions {
    /// The number of topics that are kept. If a pattern matches more, those that were silent for the longest are forgotten:
    /// what is received again of these after the order of the pattern began anew is not recognised.
    pub const MAX_TOPICS: usize = 100_000;

    /// The topics, when each was created, and the id of the last message that was received of it.
    pub fn iter(&self) -> impl Iterator<Item = (&TopicName, DateTime<Utc>, u64)> {
        self.topics.iter().map(|(name, last)| (name, last.created, last.id))
    }

    /// Whether no message was received.
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Notes that a topic, which was created at this time, was received up to this id.
    pub fn insert(&mut self, topic: TopicName, created: DateTime<Utc>, id: u64) {
        self.noted += 1;
        self.topics.insert(topic, Last { created, id, noted: self.noted });
        if self.topics.len() > Self::MAX_TOPICS {
            let limit = self.noted - Self::MAX_TOPICS as u64 / 2;
            self.topics.retain(|_, last| last.noted > limit);
        }
    }

    /// When the subscription began, by the server's clock; `None` if it began with the oldest messages, or the server did
    /// not tell the time.
    pub fn begin(&self) -> Option<DateTime<Utc>> {
        self.begin
    }

    /// Sets when the subscription began. Older messages, which are received when the order of the pattern begins anew, are
    /// not wanted.
    pub fn set_begin(&mut self, begin: Option<DateTime<Utc>>) {
        self.begin = begin;
    }

    /// Notes that the order of the pattern began anew.
    pub(super) fn restarted(&mut self) {
        self.has_restarted = true;
    }

    /// Notes a message. Returns false if it was received before, or was published before the subscription began.
    pub(super) fn note(&mut self, message: &Message) -> bool {
        let topic = message.topic();
        match self.topics.get_mut(&topic.name) {
            Some(last) if last.created == topic.created => {
                if message.id() <= last.id {
                    return false;
                }
                self.noted += 1;
                (last.id, last.noted) = (message.id(), self.noted);
            }
            None if self.has_restarted && self.begin.is_some_and(|at| message.created() < at) => {
                return false;
            }
            _ => self.insert(topic.name.clone(), topic.created, message.id()),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use msgbus_core::json;

    use super::*;

    fn message(topic: &str, created: u32, id: u64) -> Message {
        let json = format!(
            r#"{{"id":{id},"topic":{{"name":"{topic}","ttl":0,"seq":0,"created":"2026-01-01T00:00:{created:02}Z"}},"payload":"","created":"2026-01-01T00:01:{id:02}Z"}}"#
        );
        json::read_message(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_message_is_noted_once_for_each_existence_of_its_topic() {
        let mut positions = TopicPositions::default();
        let mut note = |topic, created, id| positions.note(&message(topic, created, id));
        assert!(note("a", 1, 5) && note("b", 1, 5) && note("a", 1, 7));
        assert!(!note("a", 1, 7) && !note("a", 1, 6));
        assert!(note("a", 2, 0), "the topic is a new one");
        assert!(!note("a", 2, 0));
    }

    #[test]
    fn what_is_older_than_the_subscription_is_not_new() {
        let mut positions = TopicPositions::default();
        positions.set_begin("2026-01-01T00:01:05Z".parse().ok());
        assert!(positions.note(&message("b", 1, 4)), "the clock decides nothing until then");
        positions.restarted();
        assert!(!positions.note(&message("a", 1, 4)));
        assert!(positions.note(&message("a", 1, 5)));
    }

    #[test]
    fn the_topics_that_were_silent_for_the_longest_are_forgotten() {
        let mut positions = TopicPositions::default();
        let created = DateTime::UNIX_EPOCH;
        for n in 0..=TopicPositions::MAX_TOPICS {
            positions.insert(format!("t/{n}").parse().unwrap(), created, 1);
        }
        assert_eq!(positions.iter().count(), TopicPositions::MAX_TOPICS / 2);
        let last = format!("t/{}", TopicPositions::MAX_TOPICS);
        assert!(positions.topics.contains_key(&*last));
    }
}
