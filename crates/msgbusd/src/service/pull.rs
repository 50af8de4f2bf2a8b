//! Pulling, with or without waiting, and peeking.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use msgbus_core::{BatchLimit, Message, Peek, Position, Pull, RecvError, TopicName};
use tracing::debug;

use super::{
    Call,
    backpressure::{self, MemoryWait},
    error::ServiceError,
};
use crate::{
    auth::{Action, LiveAuthorization, Target},
    limits::quota::QuotaPermit,
    net::{peer::Peer, wake_queue},
    worker::Worker,
};

/// The maximum payload, in bytes, of what a waiting pull gets from an engine, or one message more.
const MAX_WAITING: usize = 256 << 10;

impl Call<'_> {
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
        let _reserved = self.reserve_for_engine(topic, limit).await?;
        let messages = wake_queue::wait(self.worker.bus.pull(topic, limit)).await?;
        trace(self.peer, &messages);
        Ok(messages)
    }

    /// Queues for the next messages. It queues even if there are messages, because other pulls may have waited longer.
    pub(crate) fn pull_wait(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
        small: usize,
    ) -> Result<WaitingPull<Pull>, ServiceError> {
        self.authorize(Action::Pull, topic)?;
        let limit = self.limit_wait(topic, limit);
        let pull = self.worker.bus.pull_wait(topic, limit)?;
        Ok(self.waiting(Action::Pull, topic, pull, limit, small))
    }

    /// Reserves memory for messages that an engine brings, whose size nobody knows before. `None` if the topic does not live
    /// in an engine: then they are in memory.
    pub(super) async fn reserve_for_engine(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
    ) -> Result<Option<QuotaPermit>, ServiceError> {
        if self.worker.bus.engine_of(topic).is_none() {
            return Ok(None);
        }
        let largest = self.worker.config.max_payload.saturating_mul(limit.events);
        let bytes = limit.bytes.min(largest);
        Ok(Some(backpressure::reserve(&self.worker.inflight, bytes).await?))
    }

    /// How much a pull may bring that waits. Those that wait for an engine reserve no memory, and may be served all at once.
    pub(super) fn limit_wait(&self, topic: &TopicName, limit: BatchLimit) -> BatchLimit {
        match self.worker.bus.engine_of(topic) {
            Some(_) => BatchLimit { bytes: limit.bytes.min(MAX_WAITING), ..limit },
            None => limit,
        }
    }

    /// A pull that is in the queue, with everything that decides whether it may take messages.
    pub(super) fn waiting<P>(
        &self,
        action: Action,
        topic: &TopicName,
        pull: P,
        limit: BatchLimit,
        small: usize,
    ) -> WaitingPull<P> {
        WaitingPull {
            worker: Arc::clone(self.worker),
            peer: self.peer,
            pull,
            is_unsized: self.worker.bus.engine_of(topic).is_some(),
            authorization: self.live_authorization(action, Target::Topic(topic.clone())),
            memory: MemoryWait::default(),
            limit,
            small,
        }
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
        let _reserved = self.reserve_for_engine(topic, limit).await?;
        Ok(self.worker.bus.peek(topic, from, limit).await?)
    }
}

/// A pull in a queue of the bus: a plain one, or one of a group.
pub(crate) trait QueuedPull {
    /// What it takes.
    type Item;

    /// The size of the next payload, in bytes; `None` if there is none.
    fn next_size(&self) -> Option<usize>;

    /// Whether messages were taken, and only the commit of the store is missing.
    fn is_committing(&self) -> bool;

    /// Takes messages, or none if `may_take` forbids it or no message can come any more.
    fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        may_take: impl FnMut() -> bool,
    ) -> Poll<Result<Vec<Self::Item>, ServiceError>>;

    /// Logs what was taken.
    fn trace(peer: Peer, items: &[Self::Item]);
}

impl QueuedPull for Pull {
    type Item = Message;

    fn next_size(&self) -> Option<usize> {
        self.next_size()
    }

    fn is_committing(&self) -> bool {
        self.is_committing()
    }

    fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        may_take: impl FnMut() -> bool,
    ) -> Poll<Result<Vec<Message>, ServiceError>> {
        self.poll_allowed(cx, may_take).map(|pulled| match pulled {
            Ok(messages) => Ok(messages),
            Err(RecvError::Store(error)) => Err(error.into()),
            Err(_) => Ok(Vec::new()),
        })
    }

    fn trace(peer: Peer, messages: &[Message]) {
        trace(peer, messages);
    }
}

/// A waiting pull. Dropping it takes no messages.
#[derive(Debug)]
pub(crate) struct WaitingPull<P> {
    worker: Arc<Worker>,
    peer: Peer,
    pull: P,
    /// Whether it has not begun, and an engine brings messages of unknown size.
    is_unsized: bool,
    authorization: LiveAuthorization,
    memory: MemoryWait,
    limit: BatchLimit,
    small: usize,
}

impl<P: QueuedPull> WaitingPull<P> {
    /// Whether messages were taken, and only the commit of the store is missing.
    pub(crate) fn is_committing(&self) -> bool {
        self.pull.is_committing()
    }

    /// Ready with messages; or with none when the keys no longer allow the pull or the topic is deleted.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Vec<P::Item>, ServiceError>> {
        let Self { worker, pull, is_unsized, authorization, memory, limit, small, .. } = self;
        if !pull.is_committing() {
            if authorization.poll_revoked(cx).is_ready() {
                return Poll::Ready(Ok(Vec::new()));
            }
            let next_size = || if *is_unsized { Some(usize::MAX) } else { pull.next_size() };
            if memory.poll_pull(cx, worker, next_size, *limit, *small).is_pending() {
                return Poll::Pending;
            }
            *is_unsized = false;
        }
        // The keys may be reloaded at any time, and a message may arrive right after that.
        let pulled = ready!(pull.poll_allowed(cx, || authorization.is_valid()));
        Poll::Ready(pulled.inspect(|items| P::trace(self.peer, items)))
    }
}

fn trace(peer: Peer, messages: &[Message]) {
    for message in messages {
        debug!(%peer, topic = %message.topic().name, id = message.id(), "pull");
    }
}
