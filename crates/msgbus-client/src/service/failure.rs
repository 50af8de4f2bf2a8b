//! Why a request has no reply.

use std::fmt;

use thiserror::Error;

use crate::{error::ClientError, settle};

/// A failure of a responder: its reason, and optionally a status like those of HTTP.
///
/// The server passes on one text, which begins with `HTTP <status>: ` if there is a status. So the status is also seen
/// by requesters that know nothing of it, such as curl.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// 100 to 999, for example 404.
    pub status: Option<u16>,
    /// One line for people, at most 256 bytes of which are sent.
    pub reason: String,
}

impl Failure {
    const STATUS: &str = "HTTP ";

    /// A failure without a status.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { status: None, reason: reason.into() }
    }

    /// Sets the status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status: Some(status), ..self }
    }

    /// Reads the text that [`text`](Self::text) has made.
    pub(crate) fn read(text: &str) -> Self {
        let status = text.strip_prefix(Self::STATUS).and_then(|text| {
            let (status, reason) = text.split_once(": ")?;
            let is_status = status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit());
            Some((status.parse().ok().filter(|_| is_status)?, reason))
        });
        match status {
            Some((status, reason)) => Self::new(reason).with_status(status),
            None => Self::new(text),
        }
    }

    /// The text that is sent: one line.
    pub(crate) fn text(&self) -> String {
        let line = self.to_string().replace(|c: char| c.is_control(), " ");
        settle::cut(line.trim()).to_owned()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{}{status}: {}", Self::STATUS, self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl<T: Into<String>> From<T> for Failure {
    fn from(reason: T) -> Self {
        Self::new(reason)
    }
}

/// Why a request has no reply.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nobody serves the service, and nobody did within the last two seconds. Nobody has seen the request.
    #[error("nobody serves the service")]
    NoResponder,
    /// There was no reply within the timeout. A responder may have done the work.
    #[error("there was no reply in time; a responder may have done the work")]
    TimedOut,
    /// The responder has replied with a failure.
    #[error("the responder failed: {0}")]
    Failed(Failure),
    /// The responder has left without a reply. It may have done the work.
    #[error("the responder has left without a reply; it may have done the work")]
    ResponderGone,
    /// The request was not carried out, or the reply was lost.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl RequestError {
    /// The error for a code word of docs/protocol.md, section 8, with its text; `None` for others.
    pub(crate) fn of_code(code: &str, text: &str) -> Option<Self> {
        match code {
            "no_responder" => Some(Self::NoResponder),
            "request_timeout" => Some(Self::TimedOut),
            "responder_failed" => Some(match text.strip_prefix("the responder failed: ") {
                Some(reason) => Self::Failed(Failure::read(reason)),
                None => Self::ResponderGone,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_goes_with_the_reason() {
        for (failure, text) in [
            (Failure::new("no disk"), "no disk"),
            (Failure::new("").with_status(500), "HTTP 500:"),
            (Failure::new("no such user").with_status(404), "HTTP 404: no such user"),
            (Failure::new("HTTP 1.1: what"), "HTTP 1.1: what"),
        ] {
            assert_eq!(failure.text(), text);
            if !failure.reason.is_empty() {
                assert_eq!(Failure::read(text), failure);
            }
        }
        assert_eq!(Failure::new("a\nb\0").text(), "a b");
        assert_eq!(Failure::new("ö".repeat(1_000)).text(), "ö".repeat(128));
    }

    #[test]
    fn codes_are_errors() {
        let failed = RequestError::of_code("responder_failed", "the responder failed: HTTP 404: x");
        assert!(matches!(failed, Some(RequestError::Failed(Failure { status: Some(404), .. }))));
        let gone = RequestError::of_code("responder_failed", "the responder has left");
        assert!(matches!(gone, Some(RequestError::ResponderGone)));
        assert!(RequestError::of_code("bus_full", "").is_none());
    }
}
