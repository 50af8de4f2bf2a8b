//! Messages of an engine: their numbers, and the past.

use chrono::{DateTime, Utc};

use crate::{model::TopicName, store::RecoveredMessage};

/// The numbers of accepted messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The epoch of the numbers. If numbers begin again, the epoch is higher. It is never 0.
    pub epoch: u64,
    /// The sequence of the first message.
    pub first: u64,
    /// The sequence of the last message.
    pub last: u64,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// At the oldest retained message. What was before it does not count as skipped.
    First,
    /// At the next message to be published.
    Next,
    /// At the first message with this or a higher sequence.
    Sequence(u64),
    /// At the first retained message that was published at this time or later. What was before it does not count as
    /// skipped.
    Time(DateTime<Utc>),
}

/// Messages of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The epoch of the sequences.
    pub epoch: u64,
    /// The messages, in order. Empty if there are none in `..next`.
    pub messages: Vec<EngineMessage>,
    /// Where to read on. All messages from the beginning of the page up to this sequence are in it, except those that are
    /// gone. At the end of the topic it is the lowest sequence that the next message may get, also if a higher one was
    /// asked for.
    pub next: u64,
    /// How many messages are gone between the last message (or the sequence asked for) and `next`.
    pub skipped: Skipped,
}

/// How many messages are gone. `Some(0)`: certainly none. `None`: there may be some, and nobody knows how many.
pub type Skipped = Option<u64>;

/// A message of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineMessage {
    /// The message. Its id is its sequence.
    pub message: RecoveredMessage,
    /// How many messages are gone between the one before it in the page (or the sequence asked for) and this one.
    pub skipped: Skipped,
}

/// What an engine knows of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineStats {
    /// The epoch of the sequences.
    pub epoch: u64,
    /// Retained messages.
    pub retained: u64,
    /// The sequence of the oldest retained message.
    pub first: u64,
    /// The lowest sequence that the next message may get.
    pub next: u64,
}

/// Topics of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineTopics {
    /// In the order of the bytes of their names, and how many messages each has.
    pub topics: Vec<(TopicName, u64)>,
    /// Whether there are more after them.
    pub has_more: bool,
}
