//! Stops the tasks of a thread, in two stages. A task registers once for each stage, and everything in it only reads the
//! stage: a future of a `CancellationToken` would take two locks each time it is polled, and has 100 bytes.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicU8,
            Ordering::{Acquire, Release},
        },
    },
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Tells tasks to stop. Each stage is final.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopSignal(Arc<State>);

#[derive(Debug, Default)]
struct State {
    stage: AtomicU8,
    draining: CancellationToken,
    cut: CancellationToken,
}

impl State {
    const RUNNING: u8 = 0;
    const DRAINING: u8 = 1;
    const CUT: u8 = 2;
}

impl StopSignal {
    /// Tells all tasks to finish what they are doing and then end.
    pub(crate) fn drain(&self) {
        self.0.stage.store(State::DRAINING, Release);
        self.0.draining.cancel();
    }

    /// Drops all tasks at once.
    pub(crate) fn cut(&self) {
        self.0.stage.store(State::CUT, Release);
        self.0.draining.cancel();
        self.0.cut.cancel();
    }

    /// Whether tasks are to finish what they are doing and then end.
    pub(crate) fn is_draining(&self) -> bool {
        self.0.stage.load(Acquire) != State::RUNNING
    }

    /// Ready when the drain has begun. It registers no waker, so it works only within a task that is
    /// [`stoppable`](Self::stoppable).
    pub(crate) async fn draining(&self) {
        poll_fn(|_| if self.is_draining() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// A task that is polled when the drain begins, and dropped by the cut.
    pub(crate) fn stoppable<F: Future<Output = ()>>(&self, task: F) -> Stoppable<F> {
        Stoppable {
            state: Arc::clone(&self.0),
            stage: State::RUNNING,
            waker: None,
            next_stage: self.0.draining.clone().cancelled_owned(),
            task,
        }
    }
}

pin_project! {
    /// See [`StopSignal::stoppable`].
    #[derive(Debug)]
    pub(crate) struct Stoppable<F> {
        state: Arc<State>,
        // The stage that was seen last.
        stage: u8,
        // The waker that is registered for the next stage.
        waker: Option<Waker>,
        #[pin]
        next_stage: WaitForCancellationFutureOwned,
        #[pin]
        task: F,
    }
}

impl<F: Future<Output = ()>> Future for Stoppable<F> {
    type Output = ();

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            let stage = this.state.stage.load(Acquire);
            if stage == State::CUT {
                return Poll::Ready(());
            }
            if stage != *this.stage {
                *this.stage = stage;
                *this.waker = None;
                this.next_stage.set(this.state.cut.clone().cancelled_owned());
            }
            // Either the next stage has not begun since the waker was registered, or it is about to wake the task.
            if this.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                break;
            }
            if this.next_stage.as_mut().poll(cx).is_pending() {
                *this.waker = Some(cx.waker().clone());
                break;
            }
        }
        this.task.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn current_and_later_tasks_are_drained() {
        let stop = StopSignal::default();
        let task = || {
            let inner = stop.clone();
            tokio::spawn(stop.stoppable(async move { inner.draining().await }))
        };
        let current: Vec<_> = (0..3).map(|_| task()).collect();
        yield_now().await;
        assert!(!stop.is_draining() && current.iter().all(|task| !task.is_finished()));
        stop.drain();
        for drained in current {
            drained.await.unwrap();
        }
        task().await.unwrap();
    }

    #[tokio::test]
    async fn tasks_are_cut_in_every_stage() {
        let stop = StopSignal::default();
        let task = || tokio::spawn(stop.stoppable(pending()));
        let running = task();
        yield_now().await;
        stop.drain();
        yield_now().await;
        let draining = task();
        yield_now().await;
        assert!(!running.is_finished() && !draining.is_finished());
        stop.cut();
        for cut in [running, draining, task()] {
            cut.await.unwrap();
        }
        let stop = StopSignal::default();
        let task = tokio::spawn(stop.stoppable(pending()));
        yield_now().await;
        stop.cut();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_future_that_moves_to_another_task_is_woken_there() {
        let stop = StopSignal::default();
        let inner = stop.clone();
        let mut task = Box::pin(stop.stoppable(async move { inner.draining().await }));
        poll_fn(|cx| {
            assert!(task.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        let task = tokio::spawn(task);
        yield_now().await;
        stop.drain();
        task.await.unwrap();
    }
}
