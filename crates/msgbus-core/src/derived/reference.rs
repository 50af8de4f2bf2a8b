//! A reference of a derived log to a message.

use std::sync::Arc;

use crate::{
    model::{Message, MonotonicTime, TopicInfo, WallTime, WeakMessage},
    topic::Entry,
};

/// A message that its topic keeps, or has kept.
#[derive(Debug)]
pub(crate) struct Reference {
    message: WeakMessage,
    topic: Arc<TopicInfo>,
    /// The id by which the topic's store finds the message, or `NOT_STORED`.
    stored_id: u64,
    deadline: MonotonicTime,
    created: WallTime,
}

/// A message that is only in the store of its topic, if anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) topic: Arc<TopicInfo>,
    pub(crate) id: u64,
}

/// Where the message of a reference is.
#[derive(Debug)]
pub(super) enum Found {
    Kept(Message),
    Stored { id: u64 },
    Gone,
}

impl Reference {
    /// What a reference takes of the memory of the bus, in bytes.
    pub(super) const SIZE: u64 = size_of::<Self>() as u64 + WeakMessage::SIZE;
    const NOT_STORED: u64 = u64::MAX;

    /// A reference to a message that has become visible.
    #[inline]
    pub(crate) fn new(message: &Message, deadline: MonotonicTime, is_durable: bool) -> Self {
        Self {
            topic: Arc::clone(message.topic()),
            stored_id: if is_durable { message.id() } else { Self::NOT_STORED },
            deadline,
            created: message.created_at(),
            message: message.downgrade(),
        }
    }

    /// A reference to a message that its topic retains.
    pub(crate) fn retained(
        topic: &Arc<TopicInfo>,
        entry: Entry<'_>,
        deadline: MonotonicTime,
        is_durable: bool,
    ) -> Self {
        match entry {
            Entry::Hot(message) => Self::new(message, deadline, is_durable),
            Entry::Cold(left) => Self {
                message: WeakMessage::default(),
                topic: Arc::clone(topic),
                stored_id: left.id,
                deadline,
                created: left.created,
            },
        }
    }

    pub(crate) fn topic(&self) -> &Arc<TopicInfo> {
        &self.topic
    }

    pub(crate) fn created(&self) -> WallTime {
        self.created
    }

    #[inline]
    pub(super) fn find(&self, now: MonotonicTime) -> Found {
        if self.deadline <= now {
            return Found::Gone;
        }
        match self.message.upgrade() {
            Some(message) => Found::Kept(message),
            None if self.stored_id == Self::NOT_STORED => Found::Gone,
            None => Found::Stored { id: self.stored_id },
        }
    }

    /// Whether the message may still be there. Only its store knows of one that is not in memory.
    pub(super) fn may_be_kept(&self, now: MonotonicTime) -> bool {
        self.deadline > now && (self.stored_id != Self::NOT_STORED || self.message.is_kept())
    }
}
