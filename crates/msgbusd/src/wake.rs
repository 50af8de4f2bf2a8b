//! Waking tasks that belong to another thread.
//!
//! A publish wakes everybody who waits for it. Where each thread has a runtime of its own, every such
//! wake across threads is a system call. So they are left at the other thread's [`Desk`], and only the
//! first of them rings there: one call for as many as are left until the thread looks.

use std::{
    cell::OnceCell,
    future::poll_fn,
    mem::swap,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;

thread_local! {
    /// The desk of this thread, if it has one.
    static DESK: OnceCell<Arc<Desk>> = const { OnceCell::new() };
}

/// Where other threads leave the tasks of one thread that are to be woken.
#[derive(Debug, Default)]
pub(crate) struct Desk(Mutex<Left>);

#[derive(Debug, Default)]
struct Left {
    tasks: Vec<Arc<Task>>,
    /// Of the one who serves the desk; taken when it is called.
    bell: Option<Waker>,
}

impl Desk {
    /// Opens the desk of this thread, and serves it for ever: to be run by the thread's runtime, and
    /// by no other.
    pub(crate) async fn serve() {
        let desk = DESK.with(|desk| Arc::clone(desk.get_or_init(Arc::default)));
        let mut tasks = Vec::new();
        poll_fn(|cx| {
            {
                let mut left = desk.0.lock();
                // The room goes back and forth: nothing is allocated for a wake.
                swap(&mut left.tasks, &mut tasks);
                left.bell = Some(cx.waker().clone());
            }
            for task in tasks.drain(..) {
                task.waker.wake_by_ref();
            }
            Poll::<()>::Pending
        })
        .await;
    }

    fn leave(&self, task: Arc<Task>) {
        let mut left = self.0.lock();
        left.tasks.push(task);
        let bell = left.bell.take();
        drop(left);
        if let Some(bell) = bell {
            bell.wake();
        }
    }
}

/// A task and the desk at which it can be found.
#[derive(Debug)]
struct Task {
    desk: Arc<Desk>,
    waker: Waker,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let is_at_home =
            DESK.with(|desk| desk.get().is_some_and(|desk| Arc::ptr_eq(desk, &self.desk)));
        if is_at_home {
            self.waker.wake_by_ref();
        } else {
            Arc::clone(&self.desk).leave(self);
        }
    }
}

/// Polls for one task what another thread may make ready.
#[derive(Debug, Default)]
pub(crate) struct Relay(Option<(Arc<Task>, Waker)>);

impl Relay {
    /// Polls with a waker that goes by the desk of this thread, where it has one.
    pub(crate) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if !self.0.as_ref().is_some_and(|(task, _)| task.waker.will_wake(cx.waker())) {
            self.0 = DESK.with(|desk| {
                let desk = Arc::clone(desk.get()?);
                let task = Arc::new(Task { desk, waker: cx.waker().clone() });
                Some((Arc::clone(&task), Waker::from(task)))
            });
        }
        match &self.0 {
            Some((_, waker)) => poll(&mut Context::from_waker(waker)),
            None => poll(cx),
        }
    }
}
