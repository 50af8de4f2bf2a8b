//! Errors of a client.

use std::{io, time::Duration};

use hyper::{
    StatusCode,
    header::{self, HeaderMap},
};
use msgbus_core::json::JsonError;
use thiserror::Error;

use crate::uri::ServerUri;

/// Why an operation failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection could be made. Nothing was sent.
    #[error("cannot connect to {server}: {reason}")]
    Connect {
        /// The server's URI.
        server: String,
        /// The cause, as reported by the system or by TLS.
        reason: String,
        /// The kind of the system's error.
        kind: io::ErrorKind,
    },
    /// The connection broke. The server may have processed the request.
    #[error("lost the connection to {server}: {reason}")]
    Lost {
        /// The server's URI.
        server: String,
        /// The cause.
        reason: String,
    },
    /// The request is invalid, for example because of a line break in a media type.
    #[error("cannot send the request: {reason}")]
    Request {
        /// The cause.
        reason: String,
    },
    /// The server asks to retry later: it is at one of its limits, or the engine of the topic is away.
    #[error("the server says {status}: {text}")]
    Busy {
        /// The status code of the response.
        status: u16,
        /// The text of the response.
        text: String,
        /// How long to wait before the next attempt.
        retry_after: Duration,
    },
    /// The server rejected the request.
    #[error("the server says {status}: {text}")]
    Refused {
        /// The status code of the response.
        status: u16,
        /// The text of the response.
        text: String,
    },
    /// The lease is over: it was settled, has expired, or its message has left the topic or group.
    #[error("the lease is over")]
    LeaseLost,
    /// The lease is over. The response to an earlier attempt was lost, so that attempt may have
    /// settled it.
    #[error("the lease is over; an earlier attempt may have settled it, its response was lost")]
    Unconfirmed,
    /// Nobody waits for the reply to a request: the time of its requester is over, or it has one or has left.
    #[error("nobody waits for the reply")]
    ReplyNotWanted,
    /// Nobody waits for the reply to a request any more. The response to an earlier attempt was lost, so that attempt
    /// may have brought it.
    #[error("nobody waits for the reply any more; an earlier attempt may have brought it")]
    ReplyUnconfirmed,
    /// The response is not one that a msgbus server sends.
    #[error("unexpected response from {server}: {reason}")]
    NotMsgbus {
        /// The server's URI.
        server: String,
        /// The cause.
        reason: String,
    },
    /// The server sent an invalid message.
    #[error("the server sent something that is {0}")]
    Message(#[from] JsonError),
}

impl ClientError {
    /// Whether the same request may succeed later without any change.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Lost { .. } | Self::Busy { .. } => true,
            // Proxies answer with these while their upstream is down.
            Self::Refused { status, .. } => matches!(status, 500 | 502 | 503 | 504),
            Self::LeaseLost
            | Self::Unconfirmed
            | Self::ReplyNotWanted
            | Self::ReplyUnconfirmed
            | Self::NotMsgbus { .. }
            | Self::Message(_)
            | Self::Request { .. } => false,
        }
    }

    /// Whether no connection could be made for a reason that may be temporary, for example while
    /// the server restarts. Nothing was sent, so a retry cannot publish or pull twice.
    pub fn is_unreachable(&self) -> bool {
        use io::ErrorKind::{
            ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkDown,
            NetworkUnreachable, NotFound, TimedOut,
        };
        let Self::Connect { kind, .. } = self else { return false };
        matches!(
            kind,
            ConnectionRefused
                | ConnectionReset
                | ConnectionAborted
                | TimedOut
                | HostUnreachable
                | NetworkUnreachable
                | NetworkDown
                // A unix socket that does not exist (yet).
                | NotFound
        )
    }

    pub(crate) fn connect(server: &ServerUri, reason: &(dyn std::error::Error + 'static)) -> Self {
        let cause = root_cause(reason);
        let system = cause.downcast_ref::<io::Error>();
        let kind = system.map_or(io::ErrorKind::Other, io::Error::kind);
        let reason = match kind {
            io::ErrorKind::ConnectionRefused => {
                "connection refused; is msgbusd running there?".to_owned()
            }
            _ => cause.to_string(),
        };
        Self::Connect { server: server.to_string(), reason, kind }
    }
}

/// The innermost cause, usually the system's error. The outer errors only wrap it.
pub(crate) fn root_cause<'a>(
    mut error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    while let Some(deeper) = error.source() {
        error = deeper;
    }
    error
}

/// The longest delay that a server may ask for.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// The delay that a 429 or 503 response asks for in `Retry-After`, one hour at most. Only the form
/// in seconds is read: msgbusd does not send dates.
pub(crate) fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    if !matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        return None;
    }
    let seconds: u64 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}
