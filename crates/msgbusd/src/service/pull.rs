//! Pulling, with or without waiting, and peeking.

use std::task::{Context, Poll};

use msgbus_core::{BatchLimit, Message, Peek, Position, Pull, RecvError, TopicName};
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
    /// Takes the next messages, or none if the topic is empty, and waits until a crash cannot bring them back. `small` is
    /// the size, in bytes, up to which a response does not count as in flight.
    pub(crate) async fn pull(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
        small: usize,
    ) -> Result<Vec<Message>, ServiceError> {
        self.authorize(Action::Pull, topic)?;
        let limit = backpressure::admit(self.worker, topic, None, limit, small)
            .ok_or(ServiceError::TooMuchInFlight)?;
        let messages = self.worker.bus.pull(topic, limit).await?;
        trace(self.peer, &messages);
        Ok(messages)
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
    pub(crate) async fn peek(
        &self,
        topic: &TopicName,
        from: Option<Position>,
        limit: BatchLimit,
        small: usize,
    ) -> Result<Option<Peek>, ServiceError> {
        self.authorize(Action::Subscribe, topic)?;
        let limit = backpressure::admit(self.worker, topic, from, limit, small)
            .ok_or(ServiceError::TooMuchInFlight)?;
        Ok(self.worker.bus.peek(topic, from, limit).await?)
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
    /// Whether messages were taken, and only the commit of the store is missing.
    pub(crate) fn is_committing(&self) -> bool {
        self.pull.is_committing()
    }

    /// Ready with messages; or with none when the keys no longer allow the pull or the topic is deleted.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Vec<Message>, ServiceError>> {
        let Self { worker, peer, pull, authorization, memory, limit, small } = self;
        if pull.is_committing() {
            return pull.poll_allowed(cx, || true).map(|pulled| settle(*peer, pulled));
        }
        if authorization.poll_revoked(cx).is_ready() {
            return Poll::Ready(Ok(Vec::new()));
        }
        if memory.poll_pull(cx, worker, pull, *limit, *small).is_pending() {
            return Poll::Pending;
        }
        // The keys may be reloaded at any time, and a message may arrive right after that.
        pull.poll_allowed(cx, || authorization.is_valid()).map(|pulled| settle(*peer, pulled))
    }
}

/// Logs what was pulled. The end of a topic is no error: there is no message.
fn settle(
    peer: Peer,
    pulled: Result<Vec<Message>, RecvError>,
) -> Result<Vec<Message>, ServiceError> {
    match pulled {
        Ok(messages) => {
            trace(peer, &messages);
            Ok(messages)
        }
        Err(RecvError::Store(error)) => Err(error.into()),
        Err(_) => Ok(Vec::new()),
    }
}

fn trace(peer: Peer, messages: &[Message]) {
    for message in messages {
        debug!(%peer, topic = %message.topic().name, id = message.id(), "pull");
    }
}
