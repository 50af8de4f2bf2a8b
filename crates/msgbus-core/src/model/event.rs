//! What those who read a topic are told.

use super::message::Message;

/// What a subscription receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The next message.
    Message(Message),
    /// This many messages, next in the topic's order, were gone (expired or evicted) before the
    /// subscription got to them.
    Missed(u64),
}

/// Where a subscription started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The id of the first message that it can receive.
    pub next_id: u64,
    /// How many messages, of those it asked for, were already gone. They are also its first
    /// [`Event::Missed`].
    pub missed: u64,
    /// Whether the position was from another life of the topic, or ahead of this one. Then the
    /// subscription starts with the first message of this life.
    pub restarted: bool,
}

/// What a look at a topic shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peek {
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// The life of the topic, see [`TopicInfo::epoch`](crate::TopicInfo::epoch).
    pub epoch: u64,
    /// Where the look started: `next_id` is the first message, or the next one to be published when
    /// there is none, and `missed` is everything wanted that was gone before it.
    pub start: Start,
}
