//! Errors, one enum per operation.

use thiserror::Error;

use crate::{engine::EngineError, store::StoreError};

/// Why a publish was refused. Nothing was kept, evicted or created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The message or batch is larger than the topic may be.
    #[error("the message counts as {size} bytes; the topic holds at most {limit}")]
    TooLarge {
        /// Its size as the limits count it, in bytes.
        size: u64,
        /// The limit of the topic, in bytes.
        limit: u64,
    },
    /// The batch has more messages than the topic may hold.
    #[error("the batch has {count} messages; the topic holds at most {limit}")]
    TooMany {
        /// Messages in the batch.
        count: usize,
        /// The limit of the topic, in messages.
        limit: usize,
    },
    /// The topic is full of messages that were not pulled or that a group has not acknowledged, and its overflow policy
    /// is to refuse.
    #[error("the topic is full: its oldest message is still waiting to be pulled or acknowledged")]
    TopicFull,
    /// A limit of the whole bus is reached.
    #[error(transparent)]
    LimitReached(#[from] LimitReached),
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
    /// The topic is durable, and its store did not keep the message. After [`StoreError::Failed`] it is unknown
    /// whether the message is there when the store is opened again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A limit of the whole bus is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LimitReached {
    /// The message needs a new topic, and there are as many as allowed.
    #[error("the limit of {limit} topics is reached")]
    Topics {
        /// The limit, in topics.
        limit: usize,
    },
    /// All topics together hold as many bytes as allowed.
    #[error("the limit of {limit} bytes for all topics is reached")]
    Bytes {
        /// The limit, in bytes.
        limit: u64,
    },
}

/// Why a topic was not deleted for good. Only durable topics have such errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DeleteError {
    /// The store does not accept the deletion. The topic is as it was.
    #[error("the topic was not deleted: {0}")]
    Refused(StoreError),
    /// The topic is gone from the bus, but its store has accepted the deletion and then not kept it: when the store is
    /// opened again, the topic is there again. [`purge_expired`](crate::MessageBus::purge_expired) tells the store again,
    /// until it keeps the deletion.
    #[error("the topic was deleted, but that is not kept: {0}")]
    NotKept(StoreError),
}

/// Why a subscription was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// As many patterns are followed as the bus allows.
    #[error("the limit of {limit} patterns that are followed at a time is reached")]
    TooManyPatterns {
        /// The limit, in patterns.
        limit: usize,
    },
    /// The topic lives in an engine, and as many of those are followed as the bus may have topics.
    #[error(transparent)]
    LimitReached(#[from] LimitReached),
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
    /// The topic lives in an engine, which cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a subscription has ended. Every later receive returns the same error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The bus was closed, and all retained messages have been received.
    #[error("the bus is closed")]
    Closed,
    /// The topic was deleted.
    #[error("the topic has been deleted")]
    Deleted,
    /// The subscription missed messages and has [`LagPolicy::Disconnect`](crate::LagPolicy::Disconnect).
    #[error("the subscription lagged and missed {missed} messages")]
    Lagged {
        /// How many messages left the log before the subscription received them.
        missed: u64,
    },
    /// The topic is durable, and its store did not keep the new position of pulls, or cannot be read. Or the topic lives in
    /// an engine, which refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why no message was leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The group has as many live leases as it may have.
    #[error("the group has {limit} leases, which is its limit: acknowledge some first")]
    TooManyLeases {
        /// The limit of the group, in leases.
        limit: u32,
    },
    /// The topic has as many groups as it may have.
    #[error("the topic has {limit} groups, which is the limit")]
    TooManyGroups {
        /// The limit, in groups.
        limit: usize,
    },
    /// The bus was closed, and nothing is left for the group.
    #[error("the bus is closed")]
    Closed,
    /// The topic was deleted.
    #[error("the topic has been deleted")]
    Deleted,
    /// The topic is durable, and its store did not keep the leases.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a lease was not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The lease is over: settled before, expired, or its message is gone.
    #[error("the lease is over: it was settled before, its time has ended, or its message is gone")]
    Lost,
    /// The topic is durable, and its store did not keep the ack.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a group was not created or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The topic has as many groups as it may have.
    #[error("the topic has {limit} groups, which is the limit")]
    TooManyGroups {
        /// The limit, in groups.
        limit: usize,
    },
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
    /// The topic is new, and was refused.
    #[error(transparent)]
    Topic(#[from] PublishError),
    /// The topic is durable, and its store did not keep the group.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<EngineError> for LeaseError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::TooManyGroups { limit } => Self::TooManyGroups { limit },
            error => Self::Store(error.into()),
        }
    }
}

impl From<EngineError> for GroupError {
    fn from(error: EngineError) -> Self {
        LeaseError::from(error).into()
    }
}

impl From<LeaseError> for GroupError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::TooManyGroups { limit } => Self::TooManyGroups { limit },
            LeaseError::Store(error) => Self::Store(error),
            _ => Self::Closed,
        }
    }
}
