//! What can go wrong between a client and its server.

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
        /// The server, as it was named.
        server: String,
        /// What the system or the connection says.
        reason: String,
        /// The kind of the system's error.
        kind: io::ErrorKind,
    },
    /// The connection broke. The server may have acted on what was sent.
    #[error("lost the connection to {server}: {reason}")]
    Lost {
        /// The server, as it was named.
        server: String,
        /// How it was lost.
        reason: String,
    },
    /// The request cannot be sent, as with a line end in a media type.
    #[error("cannot send the request: {reason}")]
    Request {
        /// What is wrong with it.
        reason: String,
    },
    /// The server asks to come back later: it is at one of its bounds.
    #[error("the server is busy: {text}")]
    Busy {
        /// What the server says.
        text: String,
        /// After how long to come back.
        retry_after: Duration,
    },
    /// The server refuses.
    #[error("the server says {status}: {text}")]
    Refused {
        /// The status of its answer.
        status: u16,
        /// What it says.
        text: String,
    },
    /// The answer is none that a msgbus gives.
    #[error("unexpected response from {server}: {reason}")]
    NotMsgbus {
        /// The server, as it was named.
        server: String,
        /// What is odd about the answer.
        reason: String,
    },
    /// The server sent something that is no message.
    #[error("the server sent something that is {0}")]
    Message(#[from] JsonError),
}

impl ClientError {
    /// Whether the same may work later without anything being changed.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Lost { .. } | Self::Busy { .. } => true,
            // What proxies say while the server behind them is away.
            Self::Refused { status, .. } => matches!(status, 500 | 502 | 503 | 504),
            Self::NotMsgbus { .. } | Self::Message(_) | Self::Request { .. } => false,
        }
    }

    /// Whether no connection could be made for a reason that may pass, as while the server
    /// restarts. Nothing was sent, so nothing can happen twice when it is tried again.
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
                // A unix socket that is not there.
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

/// What the system said; the errors above say that it did.
pub(crate) fn root_cause<'a>(
    mut error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    while let Some(deeper) = error.source() {
        error = deeper;
    }
    error
}

/// After how long to come back, where that is what an answer asks for: the seconds of `Retry-After`, an hour
/// at most; its other form, a date, is not for servers like these.
pub(crate) fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    const LONGEST: u64 = 3600;
    if !matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        return None;
    }
    let seconds: u64 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds.min(LONGEST)))
}
