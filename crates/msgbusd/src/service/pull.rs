//! Pulling, with or without waiting, and peeking.

use std::task::{Context, Poll};

use msgbus_core::{BatchLimit, Message, Op, Peek, Position, Pull, TopicName};
use tracing::debug;

use super::{
    Call,
    backpressure::{self, MemoryWait},
    error::ServiceError,
};
use crate::{
    auth::{Action, LiveAuthorization},
    net::peer::Peer,
    worker::Worker,
};

impl<'a> Call<'a> {
    /// Takes the next messages, or none if the topic is empty. `small` is the size, in bytes, up to which a response
    /// does not count as in flight.
    pub(crate) fn pull(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
        small: usize,
    ) -> Op<Result<Vec<Message>, ServiceError>> {
        if let Err(error) = self.authorize(Action::Pull, topic) {
            return Op::ready(Err(error));
        }
        let Some(limit) = backpressure::admit(self.worker, topic, None, limit, small) else {
            return Op::ready(Err(ServiceError::TooMuchInFlight));
        };
        let peer = self.peer;
        self.worker.bus.pull(topic, limit).map(|messages| {
            trace(peer, &messages);
            Ok(messages)
        })
    }

    /// Queues for the next messages. It queues even if there are messages, because other pulls may have waited longer.
    pub(crate) fn pull_wait(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
        small: usize,
    ) -> Result<WaitingPull<'a>, ServiceError> {
        self.authorize(Action::Pull, topic)?;
        Ok(WaitingPull {
            worker: self.worker,
            peer: self.peer,
            pull: self.worker.bus.pull_wait(topic, limit)?,
            authorization: self.live_authorization(Action::Pull, topic),
            memory: MemoryWait::default(),
            limit,
            small,
        })
    }

    /// Returns messages without taking them: those after a position, or those that would be pulled next. `None` if the
    /// topic does not exist.
    pub(crate) fn peek(
        &self,
        topic: &TopicName,
        from: Option<Position>,
        limit: BatchLimit,
        small: usize,
    ) -> Result<Option<Peek>, ServiceError> {
        self.authorize(Action::Subscribe, topic)?;
        let limit = backpressure::admit(self.worker, topic, from, limit, small)
            .ok_or(ServiceError::TooMuchInFlight)?;
        Ok(self.worker.bus.peek(topic, from, limit))
    }
}

/// A waiting pull. Dropping it takes no messages.
#[derive(Debug)]
pub(crate) struct WaitingPull<'a> {
    worker: &'a Worker,
    peer: Peer,
    pull: Pull,
    authorization: LiveAuthorization,
    memory: MemoryWait,
    limit: BatchLimit,
    small: usize,
}

impl WaitingPull<'_> {
    /// Ready with messages; or with none when the keys no longer allow the pull or the topic is deleted.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Vec<Message>> {
        let Self { worker, peer, pull, authorization, memory, limit, small } = self;
        if authorization.poll_revoked(cx).is_ready() {
            return Poll::Ready(Vec::new());
        }
        if memory.poll_pull(cx, worker, pull, *limit, *small).is_pending() {
            return Poll::Pending;
        }
        // The keys may be reloaded at any time, and a message may arrive right after that.
        pull.poll_allowed(cx, || authorization.is_valid()).map(|messages| {
            let messages = messages.unwrap_or_default();
            trace(*peer, &messages);
            messages
        })
    }
}

fn trace(peer: Peer, messages: &[Message]) {
    for message in messages {
        debug!(%peer, topic = %message.topic().name, id = message.id(), "pull");
    }
}
