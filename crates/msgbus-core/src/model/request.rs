//! Requests to a service, their replies, and the token that connects the two.

use std::{fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use bytes::Bytes;
use thiserror::Error;

use super::headers::Headers;
use crate::{engine::EngineError, error::LimitReached};

/// A request to a service: a payload with headers, and how long its requester waits. Anything that converts to
/// [`Bytes`] converts to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRequest {
    pub(crate) payload: Bytes,
    pub(crate) headers: Headers,
    pub(crate) timeout: Duration,
    pub(crate) may_repeat: bool,
}

impl NewRequest {
    /// The default of [`timeout`](Self::timeout).
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
    /// The longest [`timeout`](Self::timeout).
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);
    /// What servers accept as [`timeout`](Self::timeout).
    pub const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Self::MAX_TIMEOUT;

    /// A request with this payload, without headers, that waits for 5 seconds.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            headers: Headers::default(),
            timeout: Self::DEFAULT_TIMEOUT,
            may_repeat: false,
        }
    }

    /// Sets the payload.
    #[must_use]
    pub fn payload(self, payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..self }
    }

    /// Sets the headers.
    #[must_use]
    pub fn headers(self, headers: Headers) -> Self {
        Self { headers, ..self }
    }

    /// Sets how long the requester waits for the reply, at most [`MAX_TIMEOUT`](Self::MAX_TIMEOUT).
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: timeout.min(Self::MAX_TIMEOUT), ..self }
    }

    /// Allows the service to give the request to another responder if the one that has it leaves without a reply. The
    /// request may then be served twice.
    #[must_use]
    pub fn may_repeat(self) -> Self {
        Self { may_repeat: true, ..self }
    }

    /// The payload, the headers, the timeout, and whether another responder may get it.
    pub fn into_parts(self) -> (Bytes, Headers, Duration, bool) {
        (self.payload, self.headers, self.timeout, self.may_repeat)
    }
}

impl<T: Into<Bytes>> From<T> for NewRequest {
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// The payload.
    pub payload: Bytes,
    /// The headers.
    pub headers: Headers,
}

impl<T: Into<Bytes>> From<T> for Reply {
    fn from(payload: T) -> Self {
        Self { payload: payload.into(), headers: Headers::default() }
    }
}

/// Why a request has no reply.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No responder serves the service, and none did within the last two seconds.
    #[error("nobody serves the service")]
    NoResponder,
    /// As many requests wait for a responder as may wait.
    #[error("{limit} requests wait for a responder, which is the limit")]
    TooManyRequests {
        /// The limit of the service, in requests.
        limit: usize,
    },
    /// There are as many services as there may be.
    #[error("there are {limit} services, which is the limit")]
    TooManyServices {
        /// The limit of the bus, in services.
        limit: u32,
    },
    /// The bus has no memory for it.
    #[error(transparent)]
    LimitReached(#[from] LimitReached),
    /// The responder has replied with a failure.
    #[error("the responder failed: {reason}")]
    Failed {
        /// Its reason.
        reason: Box<str>,
    },
    /// The responder has left without a reply. It may have done the work.
    #[error("the responder has left without a reply")]
    ResponderGone,
    /// There was no reply within the timeout. A responder may have done the work.
    #[error("there was no reply in time")]
    TimedOut,
    /// The engine that reaches other buses does not work. No responder has the request, except after
    /// [`EngineError::Unknown`].
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
}

impl RequestError {
    /// Whether no responder was given the request.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::NoResponder
            | Self::TooManyRequests { .. }
            | Self::TooManyServices { .. }
            | Self::LimitReached(_) => true,
            Self::Engine(error) => *error != EngineError::Unknown,
            Self::Failed { .. } | Self::ResponderGone | Self::TimedOut | Self::Closed => false,
        }
    }

    /// Whether those who serve have too much to do already.
    pub(crate) fn is_overload(&self) -> bool {
        matches!(self, Self::TooManyRequests { .. } | Self::LimitReached(_))
    }
}

/// Nobody waits for the reply: the requester has left or has been answered, or its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("nobody waits for this reply: it came too late, or there was one before")]
pub struct ReplyNotWanted;

/// Identifies a request that a responder has. Nobody can guess it. It is of use until the requester is answered or
/// leaves.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplyToken {
    /// The service, by its number in the bus.
    pub(crate) service: u32,
    pub(crate) key: RequestKey,
}

/// Identifies a request within its service.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RequestKey {
    pub(crate) slot: u32,
    /// Random, so that nobody can guess it. It changes when the request is handed to another responder.
    pub(crate) nonce: u64,
}

/// Omits the nonce, with which anybody could answer.
impl fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestKey({})", self.slot)
    }
}

/// The text is not a reply token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a reply token: use the value of Msgbus-Reply as it is")]
pub struct ReplyTokenError;

impl ReplyToken {
    /// The length of its text.
    const DIGITS: usize = 32;
}

impl fmt::Display for ReplyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, key: RequestKey { slot, nonce } } = self;
        write!(f, "{service:08x}{slot:08x}{nonce:016x}")
    }
}

/// Omits the token itself: it is a secret.
impl fmt::Debug for ReplyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplyToken({}, {})", self.service, self.key.slot)
    }
}

impl FromStr for ReplyToken {
    type Err = ReplyTokenError;

    fn from_str(text: &str) -> Result<Self, ReplyTokenError> {
        let is_token = text.len() == Self::DIGITS
            && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
        if !is_token {
            return Err(ReplyTokenError);
        }
        let part = |from, to| u64::from_str_radix(&text[from..to], 16).map_err(|_| ReplyTokenError);
        let short = |from, to| part(from, to)?.try_into().map_err(|_| ReplyTokenError);
        let key = RequestKey { slot: short(8, 16)?, nonce: part(16, 32)? };
        Ok(Self { service: short(0, 8)?, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_text() {
        let token = ReplyToken { service: 3, key: RequestKey { slot: u32::MAX, nonce: 1 << 63 } };
        let text = token.to_string();
        assert_eq!((text.len(), text.parse()), (ReplyToken::DIGITS, Ok(token)));
        let signed = format!("+{}", &text[1..]);
        for rubbish in ["", "x", &text[1..], &format!("{text}0"), &"é".repeat(16), &signed] {
            assert_eq!(rubbish.parse::<ReplyToken>(), Err(ReplyTokenError), "{rubbish:?}");
        }
        assert!(text.to_uppercase().parse::<ReplyToken>().is_err(), "one text for each token");
    }
}
