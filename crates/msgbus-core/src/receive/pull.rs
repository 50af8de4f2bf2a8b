//! A pull that waits in the topic's queue.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use super::blocking::block_on_until;
use crate::{
    bus::{LockedTopic, MessageBus, Op, PageReader, SharedTopic, TopicHandle, TopicRef, clock},
    error::{RecvError, SubscribeError},
    model::{Message, TopicName},
    options::BatchLimit,
    topic::{Taken, WaiterId},
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
        let (topic, waiter) = self.with_or_create(|_, topic| topic.wait())?;
        Ok(Pull {
            topic: Arc::clone(topic),
            waiter: Some(waiter),
            limit,
            reader: PageReader::default(),
            committing: None,
        })
    }
}

/// A pull that waits for its messages: a future of at least one message, up to a limit.
///
/// The waiting pulls of a topic are served in the order in which they began, and each message goes to one of
/// them. A pull takes messages only when its future completes. Dropping it earlier takes nothing and lets the
/// next one have them. A pull from a durable topic takes them, and then waits for the store: dropped meanwhile, it has
/// pulled them. Once completed, it stays pending and no longer queues.
#[derive(Debug)]
pub struct Pull {
    topic: Arc<SharedTopic>,
    /// `None` once completed.
    waiter: Option<WaiterId>,
    limit: BatchLimit,
    reader: PageReader,
    /// The messages taken from a durable topic, until its store has kept the new position.
    committing: Option<Op<Result<Vec<Message>, RecvError>>>,
}

impl Pull {
    /// The size of the oldest payload that nobody has pulled, in bytes. `None` if there is none or the topic
    /// was deleted. Takes nothing.
    pub fn next_size(&self) -> Option<usize> {
        self.topic.lock().next_unpulled_size(clock::monotonic())
    }

    /// Whether messages were taken from a durable topic, and the store has not kept the new position yet. Nobody else
    /// can get them any more.
    pub fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// Blocks the thread until there are messages or the timeout has passed, and then returns `None`.
    ///
    /// # Errors
    /// When the topic was deleted or the bus closed, or the store of the topic fails.
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
        mut may_take: impl FnMut() -> bool,
    ) -> Poll<Result<Vec<Message>, RecvError>> {
        if let Some(committing) = &mut self.committing {
            let pulled = ready!(Pin::new(committing).poll(cx));
            self.committing = None;
            return Poll::Ready(pulled);
        }
        let Some(waiter) = self.waiter else { return Poll::Pending };
        let limit = self.limit;
        let polled = self.reader.poll_take(cx, &self.topic, |topic, page| {
            if !may_take() {
                return Ok(None);
            }
            topic.poll_pull(waiter, limit, clock::monotonic(), page).map(Some)
        });
        let (topic, result) = match ready!(polled) {
            Ok((_, None)) => return Poll::Ready(Ok(Vec::new())),
            Ok((mut topic, Some(taken))) if taken.messages.is_empty() => {
                let replaced = topic.park_waiter(waiter, cx.waker());
                drop(topic);
                drop(replaced);
                return Poll::Pending;
            }
            Ok((topic, Some(taken))) => (topic, Ok(taken)),
            Err(end) => (self.topic.lock(), Err(end)),
        };
        self.waiter = None;
        self.leave(waiter, topic);
        match result? {
            Taken { messages, commit: None } => Poll::Ready(Ok(messages)),
            Taken { messages, commit } => {
                let committing = self.committing.insert(Op::after(commit, &self.topic, messages));
                let pulled = ready!(Pin::new(committing).poll(cx));
                self.committing = None;
                Poll::Ready(pulled)
            }
        }
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
