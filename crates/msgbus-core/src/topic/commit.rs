//! What becomes of an appended record, shared by the topic and the operation that waits for it.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::store::StoreError;

/// The outcome of an append, once there is one.
#[derive(Debug, Default)]
pub(crate) struct Commit(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Pending,
    Awaited(Waker),
    Done(Result<(), StoreError>),
}

impl Commit {
    /// Sets the outcome and wakes the operation. The caller holds no lock.
    pub(crate) fn finish(&self, outcome: Result<(), StoreError>) {
        let previous = std::mem::replace(&mut *self.0.lock(), State::Done(outcome));
        if let State::Awaited(waker) = previous {
            waker.wake();
        }
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<(), StoreError>> {
        let mut state = self.0.lock();
        if let State::Done(outcome) = &*state {
            return Poll::Ready(*outcome);
        }
        let previous = std::mem::replace(&mut *state, State::Awaited(cx.waker().clone()));
        drop(state);
        drop(previous);
        Poll::Pending
    }
}
