//! The errors of the service. Each door maps them to its own protocol.

use std::{borrow::Cow, time::Duration};

use msgbus_core::{
    GroupError, GroupName, LeaseError, LimitReached, PublishError, SettleError, SubscribeError,
    TopicName, engine::EngineError, store::StoreError,
};
use thiserror::Error;

use crate::code::Code;
use crate::limits::{rate::Rate, rate_limit::OverRate};

/// Why an operation was refused. The text is one line for users.
#[derive(Debug, Error)]
pub(crate) enum ServiceError {
    #[error("{permission} needs a key")]
    KeyNeeded { permission: String },
    #[error("invalid key")]
    WrongKey,
    #[error("invalid or expired ticket; tickets are single-use and last 30 seconds")]
    WrongTicket,
    #[error("the key {key:?} does not allow {permission}")]
    NotGranted { key: String, permission: String },
    #[error("too many tickets are open: each expires after 30 seconds")]
    TooManyTickets,
    #[error("no such topic: {0}")]
    NoSuchTopic(TopicName),
    #[error("no such group: {group} of topic {topic}")]
    NoSuchGroup { topic: TopicName, group: GroupName },
    #[error(
        "the lease is over: it was settled or has expired, or its message or group is gone; the \
         message may have been delivered again"
    )]
    LeaseLost,
    #[error("the group has {limit} live leases, its limit: settle some of them, or wait for one")]
    TooManyLeases { limit: u32 },
    #[error("the topic has {limit} groups, the limit: remove one first")]
    TooManyGroups { limit: usize },
    #[error("nobody serves {service}: a responder gets its requests with GET /-/serve/{service}")]
    NoResponder { service: TopicName },
    #[error("{limit} requests wait for a responder of the service, the limit: retry shortly")]
    TooManyRequests { limit: usize },
    #[error("there are {limit} services, the limit: one that nobody uses ends after ten minutes")]
    TooManyServices { limit: u32 },
    #[error("the request was taken back: its client has closed its side before the reply came")]
    RequesterLeft,
    #[error("the responder failed: {reason}")]
    ResponderFailed { reason: Box<str> },
    #[error("the responder has left without a reply; it may have done the work")]
    ResponderGone,
    #[error("there was no reply in time; a responder may have done the work")]
    RequestTimeout,
    #[error("nobody waits for this reply: it came too late, or there was one before")]
    ReplyNotWanted,
    #[error("server is busy: in-flight memory limit reached; retry shortly")]
    TooMuchInFlight,
    #[error("too many subscriptions: at most {limit} may be open at a time")]
    TooManySubscriptions { limit: usize },
    #[error("too many messages: retry in {} s", seconds(*.retry_after))]
    TooManyMessages { retry_after: Duration },
    #[error(
        "the batch has {count} messages, which exceeds the publish rate of {rate} per second: \
         send at most {rate} in one request"
    )]
    BatchOverRate { count: usize, rate: Rate },
    #[error("{}", store_text(*.0))]
    Store(#[from] StoreError),
    #[error("{0}")]
    Publish(PublishError),
    #[error("{0}")]
    Subscribe(SubscribeError),
}

/// What a client can do about a store that does not keep something.
fn store_text(error: StoreError) -> Cow<'static, str> {
    Cow::Borrowed(match error {
        StoreError::Full => "the disk is full: nothing was kept; retry when there is room",
        StoreError::Busy => "the disk does not keep up: nothing was kept; retry shortly",
        StoreError::Closed | StoreError::Engine(EngineError::Closed) => {
            "the server is stopping: nothing was kept"
        }
        StoreError::Engine(error) => return engine_text(error),
        _ => {
            "the disk has failed: it is unknown whether this was kept; the server must be restarted"
        }
    })
}

/// What a client can do about the engine of a topic or of a service.
fn engine_text(error: EngineError) -> Cow<'static, str> {
    Cow::Borrowed(match error {
        EngineError::Unavailable => "the engine is not available: nothing was done; retry shortly",
        EngineError::Busy => "too much is waiting for the engine: nothing was done; retry shortly",
        EngineError::Unknown => {
            "the engine has not answered: it is unknown whether this was done; a publish with an \
             Idempotency-Key can be repeated"
        }
        EngineError::Full => "the engine is full: nothing was kept",
        EngineError::NotSupported { engine, operation } => {
            return format!("the engine {engine} cannot {operation}").into();
        }
        error => return error.to_string().into(),
    })
}

impl From<EngineError> for ServiceError {
    fn from(error: EngineError) -> Self {
        Self::Store(error.into())
    }
}

impl From<SubscribeError> for ServiceError {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::Store(error) => Self::Store(error),
            SubscribeError::LimitReached(limit) => Self::Publish(limit.into()),
            error => Self::Subscribe(error),
        }
    }
}

impl From<PublishError> for ServiceError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Store(error) => Self::Store(error),
            error => Self::Publish(error),
        }
    }
}

impl From<LeaseError> for ServiceError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::TooManyLeases { limit } => Self::TooManyLeases { limit },
            LeaseError::TooManyGroups { limit } => Self::TooManyGroups { limit },
            LeaseError::Store(error) => Self::Store(error),
            // The bus is closed.
            _ => Self::Store(StoreError::Closed),
        }
    }
}

impl From<SettleError> for ServiceError {
    fn from(error: SettleError) -> Self {
        match error {
            SettleError::Store(error) => Self::Store(error),
            _ => Self::LeaseLost,
        }
    }
}

impl From<GroupError> for ServiceError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::TooManyGroups { limit } => Self::TooManyGroups { limit },
            GroupError::Topic(error) => error.into(),
            GroupError::Store(error) => Self::Store(error),
            _ => Self::Store(StoreError::Closed),
        }
    }
}

/// Rounds up to whole seconds, so that a client that waits this long is not too early.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl ServiceError {
    /// The error for a publish of `count` messages.
    pub(super) fn over_rate(over: OverRate, count: usize) -> Self {
        match over {
            OverRate::Wait(retry_after) => Self::TooManyMessages { retry_after },
            OverRate::Never(rate) => Self::BatchOverRate { count, rate },
        }
    }

    /// After how many seconds to try again, if that may help.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::TooManyMessages { retry_after } => Some(seconds(*retry_after)),
            Self::Publish(
                PublishError::TooLarge { .. }
                | PublishError::TooMany { .. }
                | PublishError::TopicFull,
            )
            | Self::Store(StoreError::Full) => None,
            Self::Store(StoreError::Engine(error)) => {
                (error.is_temporary() || *error == EngineError::Closed).then_some(1)
            }
            Self::NoResponder { .. }
            | Self::TooManyRequests { .. }
            | Self::TooManyServices { .. }
            | Self::TooManyLeases { .. }
            | Self::TooManyTickets
            | Self::TooMuchInFlight
            | Self::TooManySubscriptions { .. }
            | Self::Publish(_)
            | Self::Store(_)
            | Self::Subscribe(_) => Some(1),
            _ => None,
        }
    }

    /// The stable word for programs and metrics.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::KeyNeeded { .. } => Code::KeyNeeded,
            Self::WrongKey => Code::WrongKey,
            Self::WrongTicket => Code::WrongTicket,
            Self::NotGranted { .. } => Code::NotGranted,
            Self::TooManyTickets => Code::TooManyTickets,
            Self::NoSuchTopic(_) => Code::NoSuchTopic,
            Self::NoSuchGroup { .. } => Code::NoSuchGroup,
            Self::LeaseLost => Code::LeaseLost,
            Self::NoResponder { .. } => Code::NoResponder,
            Self::TooManyRequests { .. } | Self::TooManyServices { .. } => Code::TooManyRequests,
            Self::ResponderFailed { .. } | Self::ResponderGone => Code::ResponderFailed,
            Self::RequestTimeout | Self::RequesterLeft => Code::RequestTimeout,
            Self::ReplyNotWanted => Code::ReplyNotWanted,
            Self::TooManyLeases { .. } => Code::TooManyLeases,
            Self::TooManyGroups { .. } => Code::TooManyGroups,
            Self::TooMuchInFlight => Code::TooMuchInFlight,
            Self::TooManySubscriptions { .. }
            | Self::Subscribe(SubscribeError::TooManyPatterns { .. }) => Code::TooManySubscriptions,
            Self::TooManyMessages { .. } => Code::TooManyMessages,
            Self::BatchOverRate { .. } => Code::PayloadTooLarge,
            Self::Publish(error) => match error {
                PublishError::TooLarge { .. } | PublishError::TooMany { .. } => {
                    Code::PayloadTooLarge
                }
                PublishError::TopicFull => Code::TopicFull,
                PublishError::LimitReached(LimitReached::Topics { .. }) => Code::TooManyTopics,
                PublishError::LimitReached(_) => Code::BusFull,
                _ => Code::Closed,
            },
            Self::Store(StoreError::Full) => Code::DiskFull,
            Self::Store(StoreError::Busy) => Code::StoreBusy,
            Self::Store(StoreError::Failed) => Code::StoreFailed,
            Self::Store(StoreError::Engine(error)) => engine_code(*error),
            Self::Subscribe(_) | Self::Store(_) => Code::Closed,
        }
    }
}

fn engine_code(error: EngineError) -> Code {
    match error {
        EngineError::Unavailable => Code::EngineUnavailable,
        EngineError::Busy => Code::EngineBusy,
        EngineError::Unknown => Code::EngineTimeout,
        EngineError::Full => Code::EngineFull,
        EngineError::TooLarge { .. } => Code::PayloadTooLarge,
        EngineError::Denied => Code::EngineDenied,
        EngineError::NotSupported { .. } => Code::NotSupported,
        _ => Code::Closed,
    }
}
