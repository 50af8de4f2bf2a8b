//! Why a command fails, and its exit code.

use std::{io, process::ExitCode};

use msgbus_client::{ClientError, RequestError, TopicName};
use thiserror::Error;

#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("no answer within --timeout; the message may have been accepted")]
    NoAnswer,
    /// A request to a service has no reply.
    #[error("{service}: {error}")]
    NoReply { service: TopicName, error: RequestError },
    /// The command failed after a part of its work.
    #[error("{failure}; {progress}")]
    Partial { failure: Box<Failure>, progress: String },
    #[error("{0}")]
    Other(String),
    /// The reader of standard output has closed the pipe. The command exits quietly with 0.
    #[error("standard output is closed")]
    ClosedPipe,
    #[error("cannot write: {0}")]
    Output(io::Error),
}

impl Failure {
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// What a person can do about it, for the end of the line.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Client(ClientError::Refused { status: 401, .. }) => {
                "; msgbus takes it from --key-file FILE or MSGBUS_KEY"
            }
            Self::Partial { failure, .. } => failure.hint(),
            _ => "",
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Client(ClientError::Connect { .. } | ClientError::Lost { .. }) => {
                Exit::NoConnection
            }
            Self::NoReply { error: RequestError::NoResponder, .. } => Exit::NoResponder,
            Self::NoReply { error: RequestError::TimedOut, .. } => Exit::TimedOut,
            Self::NoReply { .. } => Exit::ResponderFailed,
            Self::Partial { failure, .. } => failure.exit(),
            Self::ClosedPipe => Exit::Done,
            Self::Client(_) | Self::NoAnswer | Self::Other(_) | Self::Output(_) => Exit::Error,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Output(error),
        }
    }
}

/// The exit codes, as listed in [`crate::commands::EXIT_CODES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Error = 1,
    Usage = 2,
    NoConnection = 3,
    Nothing = 5,
    Missed = 6,
    NoResponder = 7,
    TimedOut = 8,
    ResponderFailed = 9,
    SecondSignal = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
