//! The seam between operations that are done at once and those that wait for a store.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::map::SharedTopic;
use crate::{receive::block_on_until, store::StoreError, topic::Commit};

/// An operation on a topic, as a future.
///
/// For a topic in memory it is done when the call returns: the first poll gives the result, without an
/// allocation, a waker or a yield. For a durable topic it is ready when the store has kept what the topic promises. What
/// was appended to the store goes on when the future is dropped: only its result is lost.
///
/// # Panics
/// When polled again after it was ready.
#[must_use = "an operation gives its result when it is polled"]
pub struct Op<T>(State<T>);

enum State<T> {
    Ready(Option<T>),
    /// Reads from the store first.
    Running(Pin<Box<dyn Future<Output = T> + Send>>),
    Committing {
        commit: Arc<Commit>,
        /// Keeps a topic that was deleted, so that it can still be told about the commit.
        topic: Arc<SharedTopic>,
        finish: Option<Finish<T>>,
    },
}

const POLLED_AGAIN: &str = "polled after it was ready";

/// Turns the outcome of a commit into the result of an operation.
type Finish<T> = Box<dyn FnOnce(Result<(), StoreError>) -> T + Send>;

impl<T> Op<T> {
    /// An operation that is done.
    #[inline]
    pub fn ready(result: T) -> Self {
        Self(State::Ready(Some(result)))
    }

    pub(crate) fn running(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(State::Running(Box::pin(future)))
    }

    /// The result if the operation is done, or the operation to be polled.
    ///
    /// # Errors
    /// When it is not done, or was polled before.
    #[inline]
    pub fn try_ready(self) -> Result<T, Self> {
        match self.0 {
            State::Ready(Some(result)) => Ok(result),
            state => Err(Self(state)),
        }
    }

    /// The same operation with another result.
    #[inline]
    pub fn map<U>(self, change: impl FnOnce(T) -> U + Send + 'static) -> Op<U>
    where
        T: 'static,
    {
        match self.0 {
            State::Ready(result) => Op(State::Ready(result.map(change))),
            State::Running(future) => Op::running(async move { change(future.await) }),
            State::Committing { commit, topic, finish } => {
                let finish = finish.map(|finish| -> Finish<U> {
                    Box::new(move |outcome| change(finish(outcome)))
                });
                Op(State::Committing { commit, topic, finish })
            }
        }
    }

    /// Blocks the thread until the operation is done. Must not be called on an executor's threads.
    ///
    /// # Panics
    /// When it was polled before and is done.
    #[inline]
    pub fn wait(self) -> T {
        let result = match self.0 {
            State::Ready(result) => result,
            State::Running(mut future) => block_on_until(None, |cx| future.as_mut().poll(cx)),
            State::Committing { commit, finish, .. } => {
                let outcome = block_on_until(None, |cx| commit.poll(cx));
                outcome.zip(finish).map(|(outcome, finish)| finish(outcome))
            }
        };
        result.expect(POLLED_AGAIN)
    }
}

impl<T: Send + 'static, E: From<StoreError> + 'static> Op<Result<T, E>> {
    /// An operation on a topic with this result, which is done after the commit, if there is one.
    #[inline]
    pub(crate) fn after(commit: Option<Arc<Commit>>, topic: &Arc<SharedTopic>, result: T) -> Self {
        match commit {
            None => Self::ready(Ok(result)),
            Some(commit) => {
                let finish: Finish<_> = Box::new(|outcome| match outcome {
                    Ok(()) => Ok(result),
                    Err(error) => Err(error.into()),
                });
                Self(State::Committing { commit, topic: Arc::clone(topic), finish: Some(finish) })
            }
        }
    }
}

impl<T> fmt::Debug for Op<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            State::Ready(result) => {
                f.debug_tuple("Op::Ready").field(&result.as_ref().map(|_| ..)).finish()
            }
            State::Running(_) => f.write_str("Op::Running"),
            State::Committing { commit, .. } => {
                f.debug_tuple("Op::Committing").field(commit).finish()
            }
        }
    }
}

impl<T: Unpin> Future for Op<T> {
    type Output = T;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let result = match &mut self.0 {
            State::Ready(result) => result.take(),
            State::Running(future) => Some(ready!(future.as_mut().poll(cx))),
            State::Committing { commit, finish, .. } => {
                let outcome = ready!(commit.poll(cx));
                finish.take().map(|finish| finish(outcome))
            }
        };
        Poll::Ready(result.expect(POLLED_AGAIN))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn poll<T: Unpin>(op: &mut Op<T>) -> Poll<T> {
        Pin::new(op).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_is_done_is_ready_at_the_first_poll() {
        let mut op = Op::ready(1).map(|one| one + 1);
        assert_eq!(poll(&mut op), Poll::Ready(2));
        assert!(matches!(Op::ready(3).try_ready(), Ok(3)));
        let mut op = Op::running(async { 4 }).try_ready().unwrap_err();
        assert_eq!(poll(&mut op), Poll::Ready(4));
    }
}
