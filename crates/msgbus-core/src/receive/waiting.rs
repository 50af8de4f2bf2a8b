//! Pulls that wait in a queue of their topic.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use super::blocking::block_on_until;
use crate::{
    bus::{LockedTopic, Op, PageReader, SharedTopic, clock},
    model::GroupName,
    store::StoreError,
    topic::{Page, TakeError, Taken, Topic, WaiterId},
};

/// What a waiting pull takes.
pub(super) trait Take {
    type Item: fmt::Debug + Send + Unpin + 'static;
    type Error: fmt::Debug + From<StoreError> + Send + Unpin + 'static;

    /// The group in whose queue it waits.
    fn group(&self) -> Option<&GroupName>;

    /// Takes messages, if it is first in the queue.
    fn take(
        &self,
        topic: &mut Topic,
        waiter: WaiterId,
        page: &mut Page,
    ) -> Result<Taken<Self::Item>, TakeError<Self::Error>>;
}

/// Where a pull waits.
#[derive(Debug)]
pub(super) enum Source<T: Take> {
    Topic(Waiting<T>),
    Engine(InEngine<Outcome<T>>),
}

/// A pull that an engine lets wait. Once completed, it stays pending.
#[derive(Debug)]
pub(super) struct InEngine<O> {
    pulled: Option<Op<O>>,
    /// Whether messages were taken, and only the answer of the engine is missing.
    has_taken: Arc<AtomicBool>,
}

impl<O: Unpin> InEngine<O> {
    /// `pull` is given what it has to set when it has taken messages.
    pub(super) fn new(pull: impl FnOnce(Arc<AtomicBool>) -> Op<O>) -> Self {
        let has_taken = Arc::default();
        Self { pulled: Some(pull(Arc::clone(&has_taken))), has_taken }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<O> {
        let Some(pulled) = &mut self.pulled else { return Poll::Pending };
        let outcome = ready!(Pin::new(pulled).poll(cx));
        self.pulled = None;
        Poll::Ready(outcome)
    }
}

impl<T: Take> Source<T> {
    /// `None` if it does not wait in a topic.
    pub(super) fn waiting(&self) -> Option<&Waiting<T>> {
        match self {
            Self::Topic(waiting) => Some(waiting),
            Self::Engine(_) => None,
        }
    }

    pub(super) fn is_committing(&self) -> bool {
        match self {
            Self::Topic(waiting) => waiting.is_committing(),
            Self::Engine(pull) => pull.has_taken.load(Relaxed),
        }
    }

    /// Blocks the thread until there are messages, or the time is over and none were taken: what was taken would be lost.
    pub(super) fn wait_timeout(
        mut self,
        timeout: Duration,
    ) -> Result<Option<Vec<T::Item>>, T::Error> {
        let deadline = Instant::now().checked_add(timeout);
        let pulled = block_on_until(deadline, |cx| self.poll_allowed(cx, || true));
        if pulled.is_some() {
            return pulled.transpose();
        }
        let late = block_on_until(None, |cx| {
            if !self.is_committing() {
                return Poll::Ready(None);
            }
            match self.poll_allowed(cx, || true) {
                Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                Poll::Pending if self.is_committing() => Poll::Pending,
                Poll::Pending => Poll::Ready(None),
            }
        });
        late.flatten().transpose()
    }

    /// See [`Waiting::poll_allowed`]. An engine is not asked any longer when nothing may be taken, and what it has leased
    /// meanwhile goes back.
    pub(super) fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        mut may_take: impl FnMut() -> bool,
    ) -> Poll<Outcome<T>> {
        match self {
            Self::Topic(waiting) => waiting.poll_allowed(cx, may_take),
            Self::Engine(pull) => {
                if pull.has_taken.load(Relaxed) || may_take() {
                    return pull.poll(cx);
                }
                pull.pulled = None;
                Poll::Ready(Ok(Vec::new()))
            }
        }
    }
}

type Outcome<T> = Result<Vec<<T as Take>::Item>, <T as Take>::Error>;

/// A pull that waits. Once completed, it stays pending and no longer queues.
#[derive(Debug)]
pub(super) struct Waiting<T: Take> {
    topic: Arc<SharedTopic>,
    /// `None` once completed.
    waiter: Option<WaiterId>,
    take: T,
    reader: PageReader,
    /// The messages taken from a durable topic, until its store has kept that.
    committing: Option<Op<Outcome<T>>>,
}

impl<T: Take> Waiting<T> {
    pub(super) fn new(topic: &Arc<SharedTopic>, waiter: WaiterId, take: T) -> Self {
        Self {
            topic: Arc::clone(topic),
            waiter: Some(waiter),
            take,
            reader: PageReader::default(),
            committing: None,
        }
    }

    pub(super) fn topic(&self) -> &SharedTopic {
        &self.topic
    }

    pub(super) fn take(&self) -> &T {
        &self.take
    }

    pub(super) fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// Polls for messages. `may_take` is called under the topic's lock. If it returns `false`, nothing is taken and the
    /// result is empty.
    pub(super) fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        mut may_take: impl FnMut() -> bool,
    ) -> Poll<Outcome<T>> {
        if let Some(committing) = &mut self.committing {
            let pulled = ready!(Pin::new(committing).poll(cx));
            self.committing = None;
            return Poll::Ready(pulled);
        }
        let Some(waiter) = self.waiter else { return Poll::Pending };
        let take = &self.take;
        let polled = self.reader.poll_take(cx, &self.topic, |topic, page| {
            if !may_take() {
                return Ok(None);
            }
            take.take(topic, waiter, page).map(Some)
        });
        let (topic, result) = match ready!(polled) {
            Ok((_, None)) => return Poll::Ready(Ok(Vec::new())),
            Ok((mut topic, Some(taken))) if taken.messages.is_empty() => {
                let replaced = topic.park_waiter(self.take.group(), waiter, cx.waker());
                match self.take.group() {
                    Some(_) => self.topic.unlock_and_register(topic),
                    None => drop(topic),
                }
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
        let (own, next) = topic.cancel_wait(self.take.group(), waiter);
        let registration = match self.take.group() {
            Some(_) => topic.next_registration(clock::monotonic()),
            None => None,
        };
        self.topic.unlock_and_remove_if_abandoned(topic);
        self.topic.register(registration);
        drop(own);
        if let Some(next) = next {
            next.wake();
        }
    }
}

impl<T: Take> Drop for Waiting<T> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            self.leave(waiter, self.topic.lock());
        }
    }
}
