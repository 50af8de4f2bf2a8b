//! What can go wrong, one enum per operation.

use thiserror::Error;

/// Why a message was not accepted. Nothing of it was kept, no message left on its account, and no
/// topic was made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The message, or the batch, is larger than its topic may be. It evicted nothing.
    #[error("the message counts for {size} bytes, its topic holds at most {limit}")]
    TooLarge {
        /// What it counts for, in bytes.
        size: u64,
        /// The bound of the topic, in bytes.
        limit: u64,
    },
    /// There are more messages in the batch than its topic may hold. It evicted nothing.
    #[error("the batch has {count} messages, its topic holds at most {limit}")]
    TooMany {
        /// Messages in the batch.
        count: usize,
        /// The bound of the topic, in messages.
        limit: usize,
    },
    /// The topic is full of messages that nobody has pulled, and set to refuse then.
    #[error("the topic is full: nothing that was pulled is left to make room")]
    TopicFull,
    /// The message needs a new topic and there are as many as may be.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The bus has been closed.
    #[error("the bus is closed")]
    Closed,
}

/// A bound of the whole bus is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoRoom {
    /// There are as many topics as may be.
    #[error("there are already {limit} topics, the most allowed")]
    Topics {
        /// The bound, in topics.
        limit: usize,
    },
    /// The topics together hold as many bytes as they may.
    #[error("the bus holds {limit} bytes, the most allowed")]
    Bytes {
        /// The bound, in bytes.
        limit: u64,
    },
}

/// Why there is no subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The bus has been closed.
    #[error("the bus is closed")]
    Closed,
}

/// Why a subscription has ended. It stays ended: every later receive says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The bus has been closed, and everything retained has been received.
    #[error("the bus is closed")]
    Closed,
    /// The topic has been deleted.
    #[error("the topic has been deleted")]
    Deleted,
    /// The subscription fell behind what is retained, and was made with
    /// [`LagPolicy::Disconnect`](crate::LagPolicy::Disconnect).
    #[error("too far behind: {missed} messages are gone")]
    Lagged {
        /// How many messages left the log before the subscription got to them.
        missed: u64,
    },
}
