//! Why an operation is refused. docs/protocol.md, sections 8 and 16.3.

use msgbus_core::{
    GroupNameError, HeaderError, NameError, PatternError, ReplyTokenError, TokenError,
};
use thiserror::Error;

use crate::{
    code::Code,
    dialogue,
    service::{error::ServiceError, parameters::BadParameter},
};

/// Why an operation was refused. The texts are those of HTTP.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    #[error("not a JSON object: {0}")]
    NotJson(String),
    #[error("unknown op {0:?}; use {known}", known = super::operation::NAMES)]
    UnknownOp(String),
    #[error("the operation has no op; use {known}", known = super::operation::NAMES)]
    NoOp,
    #[error("bad operation: {0}")]
    Shape(String),
    #[error("the operation needs {0:?}")]
    Missing(&'static str),
    #[error("use only one of {0}")]
    Exclusive(&'static str),
    #[error("{0}")]
    Parameter(#[from] BadParameter),
    #[error("bad topic name: {0}")]
    Topic(NameError),
    #[error("bad name of a service: {0}")]
    ServiceName(NameError),
    #[error("not a reply token: use the value of the field reply of a request as it is")]
    ReplyToken(#[from] ReplyTokenError),
    #[error("bad pattern: {0}")]
    Pattern(#[from] PatternError),
    #[error("a pattern can only be followed: send sub without group, or name one topic")]
    IsPattern,
    #[error("{0}")]
    Token(#[from] TokenError),
    #[error("too many leases in one request: send at most {limit} tokens")]
    TooManyTokens { limit: usize },
    #[error("this websocket has no subscription with this sid")]
    UnknownSid,
    #[error("only a subscription with group has credit")]
    NotAGroup,
    #[error("this websocket already has a subscription with this sid")]
    SidInUse,
    #[error("headers of the message: {0}")]
    Headers(#[from] HeaderError),
    #[error("{0}")]
    Common(#[from] dialogue::Refusal),
}

impl Refusal {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::NotJson(_) => Code::BadJson,
            Self::UnknownOp(_) | Self::NoOp => Code::UnknownOp,
            Self::Shape(_)
            | Self::Missing(_)
            | Self::Exclusive(_)
            | Self::NotAGroup
            | Self::Parameter(_) => Code::BadParameter,
            Self::Topic(_) | Self::Pattern(_) | Self::IsPattern | Self::ServiceName(_) => {
                Code::BadTopic
            }
            Self::ReplyToken(_) => Code::InvalidReply,
            Self::Token(_) => Code::InvalidLease,
            Self::TooManyTokens { .. } => Code::PayloadTooLarge,
            Self::UnknownSid => Code::UnknownSid,
            Self::SidInUse => Code::SidInUse,
            Self::Headers(error) => dialogue::Refusal::from(*error).code(),
            Self::Common(refusal) => refusal.code(),
        }
    }

    /// After how many seconds to try again, if that may help.
    pub(super) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Common(dialogue::Refusal::Service(error)) => error.retry_after(),
            Self::Common(dialogue::Refusal::TooManyAsked) => Some(1),
            _ => None,
        }
    }
}

impl From<ServiceError> for Refusal {
    fn from(error: ServiceError) -> Self {
        Self::Common(error.into())
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Wildcard => Self::IsPattern,
            error => Self::Topic(error),
        }
    }
}

impl From<GroupNameError> for Refusal {
    fn from(error: GroupNameError) -> Self {
        BadParameter::new("group", error.to_string()).into()
    }
}
