//! Waiting to pull: a ticket in the topic's queue of those who wait.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::blocking::block_until;
use crate::{
    bus::{LockedTopic, MessageBus, SharedTopic, TopicHandle, TopicRef, clock},
    error::{RecvError, SubscribeError},
    model::{Message, TopicName},
    options::BatchLimit,
    topic::{Ticket, Topic},
};

impl MessageBus {
    /// Pulls messages as soon as there are any. The topic need not exist, see
    /// [`subscribe`](Self::subscribe). Those who wait are served in order; a [`get`](Self::get) does not queue and may be faster.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn wait(&self, topic: &TopicName, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        self.at(topic, &mut None).wait(limit)
    }
}

impl TopicHandle {
    /// Pulls messages as soon as there are any, as [`MessageBus::wait`](crate::MessageBus::wait) does.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn wait(&mut self, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        self.topic_ref().wait(limit)
    }
}

impl TopicRef<'_> {
    fn wait(&mut self, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        let (topic, ticket) = self.with_or_create(Topic::wait)?;
        Ok(Pull::new(Arc::clone(topic), ticket, limit))
    }
}

/// A pull that waits for its messages: a future of at least one, up to a limit.
///
/// Those who wait on a topic are served in the order in which they began, each message going to one
/// of them. Messages are taken when the future completes: dropping it earlier takes nothing, and
/// lets the next one have them. Once it has completed it is pending for ever, and in nobody's way.
#[derive(Debug)]
pub struct Pull {
    topic: Arc<SharedTopic>,
    /// `None` when it has completed.
    ticket: Option<Ticket>,
    limit: BatchLimit,
}

impl Pull {
    pub(crate) fn new(topic: Arc<SharedTopic>, ticket: Ticket, limit: BatchLimit) -> Self {
        Self { topic, ticket: Some(ticket), limit }
    }

    /// The size of the oldest payload that nobody has pulled, in bytes; `None` when there is none, or the
    /// topic has been deleted. Takes nothing.
    pub fn next_size(&self) -> Option<usize> {
        self.topic.lock().next_unpulled_size(clock::monotonic())
    }

    /// Blocks the thread until there are messages, or for this long: then the answer is `None`.
    ///
    /// # Errors
    /// When the topic has been deleted or the bus closed.
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Option<Vec<Message>>, RecvError> {
        let deadline = Instant::now().checked_add(timeout);
        block_until(deadline, |cx| self.poll_allowed(cx, || true)).transpose()
    }

    /// Polls for messages, as the future does, of somebody who may lose the right to them: `may_take` is asked
    /// under the lock of the topic, and where it says no the answer is empty and nothing is taken. So nothing is
    /// taken that was published after it began to say no.
    ///
    /// # Errors
    /// When the topic has been deleted or the bus closed.
    pub fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        may_take: impl FnOnce() -> bool,
    ) -> Poll<Result<Vec<Message>, RecvError>> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let mut topic = self.topic.lock();
        if !may_take() {
            return Poll::Ready(Ok(Vec::new()));
        }
        let taken = topic.take_waiting(ticket, self.limit, clock::monotonic());
        if taken.as_ref().is_ok_and(Vec::is_empty) {
            let replaced = topic.park_waiter(ticket, cx.waker());
            drop(topic);
            drop(replaced);
            return Poll::Pending;
        }
        self.ticket = None;
        self.leave(ticket, topic);
        Poll::Ready(taken)
    }

    /// Leaves the queue; what is left, and what this one was woken for, goes to the next.
    fn leave(&self, ticket: Ticket, mut topic: LockedTopic<'_>) {
        let (own, next) = topic.leave(ticket);
        self.topic.unlock_and_forget_abandoned(topic);
        drop(own);
        if let Some(next) = next {
            next.wake();
        }
    }
}

impl Future for Pull {
    type Output = Result<Vec<Message>, RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_allowed(cx, || true)
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.leave(ticket, self.topic.lock());
        }
    }
}
