//! Why a message is not carried out, in the words that clients know.

use msgbus_core::HeaderError;

use super::session;
use crate::{
    dialogue::{Client, output::Messages},
    service::{code::Code, error::ServiceError},
};

/// Why a message is not carried out.
#[derive(Debug)]
pub(super) enum Refused {
    NotTrusted,
    /// No request with the number waits for this client's reply.
    NoClient,
    /// One line.
    Because(Code, String),
    Service(ServiceError),
}

impl From<HeaderError> for Refused {
    fn from(error: HeaderError) -> Self {
        Self::because(Code::BadHeader, error.to_string())
    }
}

impl From<ServiceError> for Refused {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::NotGranted { .. }
            | ServiceError::KeyNeeded { .. }
            | ServiceError::WrongKey => Self::NotTrusted,
            ServiceError::ReplyNotWanted => Self::NoClient,
            error => Self::Service(error),
        }
    }
}

impl Refused {
    pub(super) fn because(code: Code, why: impl Into<String>) -> Self {
        Self::Because(code, why.into())
    }

    /// Tells the client why a command with a target is not carried out.
    pub(super) fn tell(
        &self,
        client: &Client,
        (command, target): (&str, impl AsRef<str>),
        output: &mut Messages<'_>,
    ) {
        client.refused(Some(command), self.code());
        output.push(session::error(&self.text(command, target.as_ref())));
    }

    fn code(&self) -> Code {
        match self {
            Self::NotTrusted => Code::NotGranted,
            Self::NoClient => Code::ReplyNotWanted,
            Self::Because(code, _) => *code,
            Self::Service(error) => error.code(),
        }
    }

    /// The body of the error.
    pub(super) fn text(&self, command: &str, target: &str) -> String {
        match self {
            Self::NotTrusted if command == "SUB" => format!("Not trusted: SUB {target}"),
            Self::NotTrusted => format!("Not trusted {command} {target}"),
            Self::NoClient => format!("No client for request ID  RES {target}"),
            Self::Service(ServiceError::NoResponder { .. }) => {
                format!("No responder for REQ {target}")
            }
            Self::Service(error) => format!("{command} {target}: {error}"),
            Self::Because(_, why) => format!("{command} {target}: {why}"),
        }
    }
}
