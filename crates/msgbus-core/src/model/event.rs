//! What readers of a topic receive.

use super::message::Message;

/// What a subscription receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The next message.
    Message {
        /// Where it is in what the subscription follows: its own id in a topic, its id in the order of a pattern.
        id: u64,
        /// The message, with its topic and its id there.
        message: Message,
    },
    /// The next messages expired, were evicted or were deleted before the subscription received them.
    Missed {
        /// How many messages were missed. Ids may have gaps, so no difference of ids is this number. 0 if some may have
        /// been missed and nobody knows how many, which is only so for topics that live in an engine.
        count: u64,
        /// The id of the first message after them.
        next_id: u64,
    },
}

/// A message of a topic.
impl From<Message> for Event {
    fn from(message: Message) -> Self {
        Self::Message { id: message.id(), message }
    }
}

/// The position at which a subscription started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartPosition {
    /// The id of the first message that it asked for.
    pub requested_id: u64,
    /// The id of the first message that it can receive.
    pub next_id: u64,
    /// How many of the messages that it asked for had already left the log. Its first event reports them
    /// again as [`Event::Missed`].
    pub missed: u64,
    /// Whether some may have left that nobody has counted. Then `missed` is 0. Only so for topics that live in an engine.
    pub is_uncounted: bool,
    /// Whether the requested position was from another epoch of what is followed, or ahead of this one. Then the
    /// subscription starts with the first message of this epoch, or with the oldest that the topics of a pattern retain.
    pub restarted: bool,
}

/// The messages that a peek found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peek {
    /// The messages, in order. From a position on, [`Event::Missed`] stands between two of them where others have
    /// left the log.
    pub events: Vec<Event>,
    /// The epoch of the topic, see [`TopicInfo::epoch`](crate::TopicInfo::epoch).
    pub epoch: u64,
    /// Where the messages start. `next_id` is the first one, or the next one to be published if there is none.
    /// `missed` counts the requested messages before it that had left the log.
    pub start: StartPosition,
}

impl Peek {
    /// The messages, in order.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.events.iter().filter_map(|event| match event {
            Event::Message { message, .. } => Some(message),
            Event::Missed { .. } => None,
        })
    }
}
