//! Why a websocket ends, and its close frame.

use std::{io::ErrorKind, ops::ControlFlow};

use msgbus_core::RecvError;
use tokio_tungstenite::tungstenite::{
    Error, Utf8Bytes,
    error::{CapacityError, ProtocolError},
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tracing::debug;

use crate::{code::Code, metrics::Deadline, service::follower, worker::Worker};

/// The longest reason in a close frame, in bytes (RFC 6455, section 5.5).
const MAX_REASON: usize = 123;
/// The code for a client whose key does not allow it.
pub(crate) const NOT_ALLOWED: u16 = 4403;
const TOPIC_DELETED: u16 = 4404;
const TOO_FAR_BEHIND: u16 = 4408;

/// Why a session ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The client sent a close frame.
    ClosedByClient,
    /// The connection is broken.
    Broken,
    /// The client accepted no bytes within the write timeout.
    Stuck,
    /// The client violated the protocol.
    Violation(CloseCode, Utf8Bytes),
    /// The client sent something that cannot be read.
    Malformed(CloseCode, Code, Utf8Bytes),
    /// The client sent nothing for too long.
    Silent,
    /// A part of a message arrived, and no more of it for too long.
    Unfinished,
    /// The server is shutting down.
    Drain,
    /// Too much data is in flight to receive the rest of a message.
    NoMemory,
    /// The service refuses what every client of the door needs.
    Refused(Code, Utf8Bytes),
    /// The keys no longer allow it.
    Revoked,
    /// The bus ended the subscription.
    Over(RecvError),
}

/// Counts the end of a websocket in the metrics.
pub(crate) fn count(worker: &Worker, end: &End) {
    match end {
        End::Stuck => worker.metrics.timeout(Deadline::Write),
        End::Silent => worker.metrics.timeout(Deadline::Silence),
        End::Violation(CloseCode::Size, _) => worker.metrics.refusal(Code::WebsocketTooLarge),
        End::Violation(CloseCode::Invalid, _) => worker.metrics.refusal(Code::WebsocketNotUtf8),
        End::Unfinished => worker.metrics.refusal(Code::BodyTimeout),
        End::Refused(code, _) | End::Malformed(_, code, _) => worker.metrics.refusal(*code),
        End::NoMemory => worker.metrics.refusal(Code::TooMuchInFlight),
        End::Violation(..) => worker.metrics.refusal(Code::WebsocketViolation),
        _ => {}
    }
    if matches!(end, End::Broken | End::Stuck) {
        worker.metrics.client_error();
    }
}

pub(crate) fn broken(result: Result<(), Error>) -> ControlFlow<End> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(End::broken(&error)),
    }
}

impl From<follower::End> for End {
    fn from(end: follower::End) -> Self {
        match end {
            follower::End::Revoked => Self::Revoked,
            follower::End::Over(end) => Self::Over(end),
        }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Capacity(CapacityError::MessageTooLong { max_size, .. }) => {
                let why = format!("frames of at most {max_size} bytes are read");
                Self::Violation(CloseCode::Size, why.into())
            }
            Error::Utf8(_) => Self::violation(CloseCode::Invalid, "text must be UTF-8"),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Self::broken(&error),
            Error::Protocol(_) => Self::violation(CloseCode::Protocol, "websocket protocol error"),
            Error::ConnectionClosed => Self::ClosedByClient,
            other => Self::broken(&other),
        }
    }
}

impl End {
    /// The text of a message, which must be UTF-8.
    pub(crate) fn text(message: &[u8]) -> Result<&str, Self> {
        str::from_utf8(message).map_err(|error| Error::Utf8(error.to_string()).into())
    }

    /// The client sent something that cannot be read. Of the reason, as much is told as a close frame has room for.
    pub(crate) fn malformed(close: CloseCode, code: Code, mut why: String) -> Self {
        while why.len() > MAX_REASON {
            why.pop();
        }
        Self::Malformed(close, code, why.into())
    }

    pub(crate) fn violation(code: CloseCode, why: &'static str) -> Self {
        Self::Violation(code, Utf8Bytes::from_static(why))
    }

    fn broken(error: &Error) -> Self {
        debug!(%error, "websocket broken");
        match error {
            Error::Io(error) if error.kind() == ErrorKind::TimedOut => Self::Stuck,
            _ => Self::Broken,
        }
    }

    /// The close frame for the client; `None` if the client closed first, or the connection cannot be used any more.
    pub(crate) fn close_frame(&self, last_id: Option<u64>) -> Option<CloseFrame> {
        let (code, reason) = match self {
            Self::ClosedByClient | Self::Broken | Self::Stuck => return None,
            Self::Violation(code, why) | Self::Malformed(code, _, why) => (*code, why.clone()),
            Self::Refused(_, why) => (CloseCode::Again, why.clone()),
            Self::Silent => {
                (CloseCode::Away, "the client was silent for too long and answered no ping".into())
            }
            Self::Unfinished => {
                (CloseCode::Policy, "the rest of a message did not arrive in time".into())
            }
            Self::Drain | Self::Over(RecvError::Closed) => {
                (CloseCode::Away, "the server is shutting down".into())
            }
            Self::NoMemory => {
                let why = "server is busy: in-flight memory limit reached; retry shortly";
                (CloseCode::Again, why.into())
            }
            Self::Revoked => {
                (CloseCode::from(NOT_ALLOWED), "the keys no longer allow this subscription".into())
            }
            Self::Over(RecvError::Store(error)) => {
                (CloseCode::Error, format!("cannot read older messages: {error}").into())
            }
            Self::Over(RecvError::Lagged { .. }) => {
                let reason = match last_id {
                    Some(id) => format!("too far behind; the last id was {id}"),
                    None => "too far behind; there was no message yet".to_owned(),
                };
                (CloseCode::from(TOO_FAR_BEHIND), reason.into())
            }
            Self::Over(_) => (CloseCode::from(TOPIC_DELETED), "the topic has been deleted".into()),
        };
        Some(CloseFrame { code, reason })
    }
}
