//! Commands of a peer that are answered later.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::future::BoxFuture;
use msgbus_core::{Reply, TopicName};

use super::command::Failure;
use crate::service::requests::Asked;

/// A command of the peer that is answered later.
pub(super) enum Waiting {
    /// With its key, as JSON. Dropping it takes the request back.
    Call(Box<str>, TopicName, Asked),
    Fire(TopicName, BoxFuture<'static, Outcome>),
}

/// The result of a command.
pub(super) type Outcome = Result<Reply, Failure>;

impl Future for Waiting {
    type Output = (Option<Box<str>>, TopicName, Outcome);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match &mut *self {
            Self::Call(key, service, asked) => {
                let outcome = ready!(Pin::new(asked).poll(cx)).map_err(Failure::from);
                (Some(mem::take(key)), service.clone(), outcome)
            }
            Self::Fire(topic, commit) => (None, topic.clone(), ready!(commit.as_mut().poll(cx))),
        })
    }
}
