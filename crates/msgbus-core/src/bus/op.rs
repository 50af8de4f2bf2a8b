//! The seam between operations that are done at once and those that wait.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

/// An operation on a topic, as a future.
///
/// For a topic in memory it is done when the call returns: the first poll gives the result, without an
/// allocation, a waker or a yield.
///
/// # Panics
/// When polled again after it was ready.
#[must_use = "an operation gives its result when it is polled"]
pub struct Op<T>(State<T>);

enum State<T> {
    Ready(Option<T>),
}

impl<T> Op<T> {
    /// An operation that is done.
    #[inline]
    pub fn ready(result: T) -> Self {
        Self(State::Ready(Some(result)))
    }

    /// The same operation with another result.
    #[inline]
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Op<U> {
        match self.0 {
            State::Ready(result) => Op(State::Ready(result.map(change))),
        }
    }
}

impl<T> fmt::Debug for Op<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            State::Ready(result) => {
                f.debug_tuple("Op::Ready").field(&result.as_ref().map(|_| ..)).finish()
            }
        }
    }
}

impl<T: Unpin> Future for Op<T> {
    type Output = T;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            State::Ready(result) => Poll::Ready(result.take().expect("polled after it was ready")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn what_is_done_is_ready_at_the_first_poll() {
        let mut op = Op::ready(1).map(|one| one + 1);
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(Pin::new(&mut op).poll(&mut context), Poll::Ready(2));
    }
}
