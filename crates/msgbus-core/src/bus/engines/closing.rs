//! Ends what waits for an engine when the bus is closed.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
    task::{Poll, Waker},
};

use parking_lot::Mutex;

use crate::engine::{Answer, EngineError};

/// Whether a bus is closed, and who waits for an engine without a limit in time.
#[derive(Debug, Default)]
pub(super) struct Closing {
    is_closed: AtomicBool,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waker>>,
}

/// One that waits. It is forgotten when it is dropped.
struct Waiter<'a> {
    closing: &'a Closing,
    number: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let waker = self.closing.waiting.lock().remove(&self.number);
        drop(waker);
    }
}

impl Closing {
    pub(super) fn close(&self) {
        self.is_closed.store(true, SeqCst);
        let wakers = std::mem::take(&mut *self.waiting.lock());
        wakers.into_values().for_each(Waker::wake);
    }

    /// # Errors
    /// [`EngineError::Closed`].
    pub(super) fn check(&self) -> Result<(), EngineError> {
        if self.is_closed.load(SeqCst) { Err(EngineError::Closed) } else { Ok(()) }
    }

    /// Waits for an answer until the bus is closed.
    pub(super) async fn unless_closed<T>(&self, mut answer: Answer<T>) -> Result<T, EngineError> {
        let waiter = Waiter { closing: self, number: self.next.fetch_add(1, Relaxed) };
        poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            let replaced = self.waiting.lock().insert(waiter.number, cx.waker().clone());
            drop(replaced);
            // After that, so that a close is noticed here or wakes this task.
            match self.check() {
                Ok(()) => Poll::Pending,
                Err(closed) => Poll::Ready(Err(closed)),
            }
        })
        .await
    }
}
