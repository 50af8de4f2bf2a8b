//! A pull that waits in the topic's queue.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::blocking::block_on_until;
use crate::{
    bus::{LockedTopic, MessageBus, SharedTopic, TopicHandle, TopicRef, clock},
    error::{RecvError, SubscribeError},
    model::{Message, TopicName},
    options::BatchLimit,
    topic::{Topic, WaiterId},
};

impl MessageBus {
    /// Pulls messages as soon as there are any. The topic need not exist, see
    /// [`subscribe`](Self::subscribe). Waiting pulls are served in the order in which they began. A
    /// [`get`](Self::get) does not queue and may come before them.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn pull_wait(&self, topic: &TopicName, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        self.topic_ref(topic, &mut None).pull_wait(limit)
    }
}

impl TopicHandle {
    /// Pulls messages as soon as there are any, see [`MessageBus::pull_wait`].
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn pull_wait(&mut self, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        self.topic_ref().pull_wait(limit)
    }
}

impl TopicRef<'_> {
    fn pull_wait(&mut self, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        let (topic, waiter) = self.with_or_create(Topic::wait)?;
        Ok(Pull { topic: Arc::clone(topic), waiter: Some(waiter), limit })
    }
}

/// A pull that waits for its messages: a future of at least one message, up to a limit.
///
/// The waiting pulls of a topic are served in the order in which they began, and each message goes to one of
/// them. A pull takes messages only when its future completes. Dropping it earlier takes nothing and lets the
/// next one have them. Once completed, it stays pending and no longer queues.
#[derive(Debug)]
pub struct Pull {
    topic: Arc<SharedTopic>,
    /// `None` once completed.
    waiter: Option<WaiterId>,
    limit: BatchLimit,
}

impl Pull {
    /// The size of the oldest payload that nobody has pulled, in bytes. `None` if there is none or the topic
    /// was deleted. Takes nothing.
    pub fn next_size(&self) -> Option<usize> {
        self.topic.lock().next_unpulled_size(clock::monotonic())
    }

    /// Blocks the thread until there are messages or the timeout has passed, and then returns `None`.
    ///
    /// # Errors
    /// When the topic was deleted or the bus closed.
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Option<Vec<Message>>, RecvError> {
        let deadline = Instant::now().checked_add(timeout);
        block_on_until(deadline, |cx| self.poll_allowed(cx, || true)).transpose()
    }

    /// Polls for messages as the future does, for a caller that may lose its permission. `may_take` is called
    /// under the topic's lock. If it returns `false`, nothing is taken and the result is empty. So nothing is
    /// taken that was published after the permission was lost.
    ///
    /// # Errors
    /// When the topic was deleted or the bus closed.
    pub fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        may_take: impl FnOnce() -> bool,
    ) -> Poll<Result<Vec<Message>, RecvError>> {
        let Some(waiter) = self.waiter else { return Poll::Pending };
        let mut topic = self.topic.lock();
        if !may_take() {
            return Poll::Ready(Ok(Vec::new()));
        }
        let taken = topic.poll_pull(waiter, self.limit, clock::monotonic());
        if taken.as_ref().is_ok_and(Vec::is_empty) {
            let replaced = topic.park_waiter(waiter, cx.waker());
            drop(topic);
            drop(replaced);
            return Poll::Pending;
        }
        self.waiter = None;
        self.leave(waiter, topic);
        Poll::Ready(taken)
    }

    /// Leaves the queue, and wakes the next one if there is something left for it.
    fn leave(&self, waiter: WaiterId, mut topic: LockedTopic<'_>) {
        let (own, next) = topic.cancel_wait(waiter);
        self.topic.unlock_and_remove_if_abandoned(topic);
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
        if let Some(waiter) = self.waiter {
            self.leave(waiter, self.topic.lock());
        }
    }
}
