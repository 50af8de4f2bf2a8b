//! A one-time signal to all tasks of a thread. A `CancellationToken` alone takes two locks each time one of its
//! futures is polled, and each wake of each connection polls one.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A signal that is sent once and stays set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signal(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_cancelled: AtomicBool,
    token: CancellationToken,
}

impl Signal {
    pub(crate) fn cancel(&self) {
        self.0.is_cancelled.store(true, Release);
        self.0.token.cancel();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Acquire)
    }

    /// Waits for the signal. Only the first poll by a task takes a lock.
    pub(crate) fn cancelled(&self) -> Cancelled {
        let registered = self.0.token.clone().cancelled_owned();
        Cancelled { signal: self.clone(), waker: None, registered }
    }

    /// Runs a task until it ends or the signal is sent.
    pub(crate) fn ends<F: Future<Output = ()>>(&self, task: F) -> Ended<F> {
        Ended { cancelled: self.cancelled(), task }
    }
}

pin_project! {
    /// See [`Signal::cancelled`].
    #[derive(Debug)]
    pub(crate) struct Cancelled {
        signal: Signal,
        // The waker that is registered with the token.
        waker: Option<Waker>,
        #[pin]
        registered: WaitForCancellationFutureOwned,
    }
}

impl Future for Cancelled {
    type Output = ();

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.signal.is_cancelled() {
            return Poll::Ready(());
        }
        // Either the signal was not sent since the waker was registered, or it is about to wake the task.
        if this.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        if this.registered.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        *this.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

pin_project! {
    /// See [`Signal::ends`].
    #[derive(Debug)]
    pub(crate) struct Ended<F> {
        #[pin]
        cancelled: Cancelled,
        #[pin]
        task: F,
    }
}

impl<F: Future<Output = ()>> Future for Ended<F> {
    type Output = ();

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.cancelled.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        this.task.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn current_and_later_waiters_are_released() {
        let signal = Signal::default();
        let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(signal.cancelled())).collect();
        let ended = tokio::spawn(signal.ends(std::future::pending()));
        assert!(timeout(Duration::from_millis(1), signal.cancelled()).await.is_err());
        signal.cancel();
        for waiting in waiting {
            waiting.await.unwrap();
        }
        ended.await.unwrap();
        signal.cancelled().await;
        assert!(signal.is_cancelled());
    }

    #[tokio::test]
    async fn a_waiter_that_moves_to_another_task_is_woken_there() {
        let signal = Signal::default();
        let mut waiting = Box::pin(signal.cancelled());
        assert!(timeout(Duration::from_millis(1), waiting.as_mut()).await.is_err());
        let waiting = tokio::spawn(waiting);
        tokio::task::yield_now().await;
        signal.cancel();
        waiting.await.unwrap();
    }
}
