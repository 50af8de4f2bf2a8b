//! What doors refuse before they ask the service, and the limits of one connection.

use bytes::Bytes;
use msgbus_core::{
    HeaderError, NameError, NewMessage, NewRequest, PatternError, Published, TopicName,
};
use thiserror::Error;

use super::{Conversation, Dialect};
use crate::{
    code::Code,
    service::{Authority, error::ServiceError, publisher::Publishing},
};

/// The maximum number of subscriptions and services of one connection.
pub(crate) const MAX_SUBSCRIPTIONS: usize = 1024;
/// The maximum number of requests of one connection that wait for their replies. They hold up nothing: the replies that
/// they wait for may have to come from the same client.
pub(crate) const MAX_ASKED: usize = 1024;

/// Why an operation is refused.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Topic(#[from] NameError),
    #[error("{0}")]
    Pattern(#[from] PatternError),
    #[error("{0}")]
    Headers(#[from] HeaderError),
    #[error("payload exceeds max-payload-size: at most {limit} bytes are allowed")]
    PayloadTooLarge { limit: usize },
    #[error("too many subscriptions: at most {MAX_SUBSCRIPTIONS} may be open on one connection")]
    TooManySubscriptions,
    #[error("too many requests: at most {MAX_ASKED} of one connection may wait for their replies")]
    TooManyAsked,
    #[error("{0}")]
    Service(#[from] ServiceError),
    /// By a rule of the door.
    #[error("{1}")]
    Door(Code, &'static str),
}

impl Refusal {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Topic(_) | Self::Pattern(_) => Code::BadTopic,
            Self::Headers(HeaderError::TooMany | HeaderError::TooLarge) => {
                Code::MessageHeadersTooLarge
            }
            Self::Headers(_) => Code::BadHeader,
            Self::PayloadTooLarge { .. } => Code::PayloadTooLarge,
            Self::TooManySubscriptions => Code::TooManySubscriptions,
            Self::TooManyAsked => Code::TooManyRequests,
            Self::Service(error) => error.code(),
            Self::Door(code, _) => *code,
        }
    }
}

impl<D: Dialect<Outcome = Result<Published, ServiceError>>> Conversation<D> {
    /// Publishes a message. Returns whether that is done; if not, a waiter waits for the store.
    pub(crate) fn publish_for(
        &mut self,
        waiter: impl FnOnce() -> D::Waiter,
        (topic, authority): (&TopicName, Authority),
        message: NewMessage,
    ) -> Result<bool, Refusal> {
        let name = || Ok::<_, Refusal>(topic.clone());
        match self.publish((topic.as_str(), name), authority, message)? {
            Publishing::Done(_) => Ok(true),
            Publishing::Committing(commit) => {
                self.activities.wait(waiter(), commit);
                Ok(false)
            }
        }
    }
}

impl<D: Dialect> Conversation<D> {
    /// A payload, in a buffer of its own.
    pub(crate) fn payload(&self, bytes: &[u8]) -> Result<Bytes, Refusal> {
        let limit = self.contact.client.worker.config.max_payload;
        if bytes.len() > limit {
            return Err(Refusal::PayloadTooLarge { limit });
        }
        Ok(Bytes::copy_from_slice(bytes))
    }

    /// Whether a subscription or a service is a new one. It is refused if there are too many, besides those of the door
    /// itself.
    pub(crate) fn is_new(&self, name: &D::Name, of_door: usize) -> Result<bool, Refusal> {
        if self.activities.has(name) {
            return Ok(false);
        }
        if self.activities.named() < MAX_SUBSCRIPTIONS + of_door {
            return Ok(true);
        }
        Err(Refusal::TooManySubscriptions)
    }

    /// Asks a service.
    pub(crate) fn ask(
        &mut self,
        waiter: D::Waiter,
        (service, authority): (&TopicName, Authority),
        request: NewRequest,
    ) -> Result<(), Refusal> {
        if self.activities.asked() >= MAX_ASKED {
            return Err(Refusal::TooManyAsked);
        }
        let asked = self.contact.client.call_by(authority).ask(service)?.send(request)?;
        self.activities.ask(waiter, asked);
        Ok(())
    }
}
