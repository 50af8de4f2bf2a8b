//! Pulling, at once or when there is something, and looking without taking.

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
    /// Takes the next messages; none when there are none. `small` is what of an answer does not count as in flight,
    /// in bytes.
    pub(crate) fn pull(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
        small: usize,
    ) -> Op<Result<Vec<Message>, ServiceError>> {
        if let Err(error) = self.authorize(Action::Pull, topic) {
            return Op::ready(Err(error));
        }
        let Some(limit) = backpressure::find(self.worker, topic, None, limit, small) else {
            return Op::ready(Err(ServiceError::TooMuchInFlight));
        };
        let peer = self.peer;
        self.worker.bus.pull(topic, limit).map(|messages| {
            trace(peer, &messages);
            Ok(messages)
        })
    }

    /// Waits in line for the next messages, also for those that are there: others may have waited longer.
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

    /// Looks at messages without taking them, from a position on, or at those that would be pulled. `None` when
    /// there is no such topic.
    pub(crate) fn peek(
        &self,
        topic: &TopicName,
        from: Option<Position>,
        limit: BatchLimit,
        small: usize,
    ) -> Result<Option<Peek>, ServiceError> {
        self.authorize(Action::Subscribe, topic)?;
        let limit = backpressure::find(self.worker, topic, from, limit, small)
            .ok_or(ServiceError::TooMuchInFlight)?;
        Ok(self.worker.bus.peek(topic, from, limit))
    }
}

/// A pull that waits. Dropped, it leaves what comes to others.
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
    /// Ready with messages; with none when the keys no longer allow the pull or the topic is deleted.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Vec<Message>> {
        let Self { worker, peer, pull, authorization, memory, limit, small } = self;
        if authorization.poll_revoked(cx).is_ready() {
            return Poll::Ready(Vec::new());
        }
        if memory.poll_pull(cx, worker, pull, *limit, *small).is_pending() {
            return Poll::Pending;
        }
        // The keys may be read again at any time, and a message come right after it.
        pull.poll_allowed(cx, || authorization.holds()).map(|messages| {
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
