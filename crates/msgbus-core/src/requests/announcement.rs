//! What tells other buses that a service is served here: held by the service, and seen by the engine.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

#[derive(Debug, Default)]
struct State {
    is_over: bool,
    waker: Option<Waker>,
}

/// The side of the service. The announcement is over when this is dropped.
#[derive(Debug)]
pub(super) struct Announcement(Arc<Mutex<State>>);

/// The side of the engine.
#[derive(Debug)]
pub(crate) struct Announced(Arc<Mutex<State>>);

pub(super) fn new() -> (Announcement, Announced) {
    let state = Arc::default();
    (Announcement(Arc::clone(&state)), Announced(state))
}

impl Announcement {
    /// Ends it. Returns the waker of the engine.
    #[must_use]
    pub(super) fn end(self) -> Option<Waker> {
        let mut state = self.0.lock();
        state.is_over = true;
        state.waker.take()
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_over = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Announced {
    pub(crate) fn is_over(&self) -> bool {
        self.0.lock().is_over
    }

    /// Ready when it is over.
    pub(crate) fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.is_over {
            return Poll::Ready(());
        }
        let replaced = state.waker.replace(cx.waker().clone());
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}
