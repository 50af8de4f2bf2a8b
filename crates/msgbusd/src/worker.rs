//! What the connections of one thread share with each other and with no other thread: a request, a poll
//! or a delivery that took a lock or counted in a place of the whole process would have all threads wait
//! for one cache line.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::{signal::Signal, state::App};

/// The server as one thread has it: everything of [`App`], and a share of what would be contended.
#[derive(Debug)]
pub(crate) struct Worker {
    app: Arc<App>,
    requests: Arc<Counter>,
    pub(crate) tasks: Tasks,
}

impl Worker {
    /// One more share, which [`App`]'s metrics count in.
    pub(crate) fn new(app: &Arc<App>) -> Arc<Self> {
        let requests = app.metrics.requests_of_a_worker();
        Arc::new(Self { app: Arc::clone(app), requests, tasks: Tasks::default() })
    }

    /// Counts a request.
    pub(crate) fn request(&self) {
        self.requests.increment();
    }
}

impl Deref for Worker {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

/// A counter with a cache line of its own, or two where the processor fetches them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    fn increment(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The tasks of one worker, and how they are told to end.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) tracker: TaskTracker,
    /// Finish what is under way, then end.
    pub(crate) drain: Signal,
    /// End now.
    pub(crate) cut: Signal,
}

impl Tasks {
    /// Runs a task that the drain waits for and the cut ends, beside the one that calls this.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_on(&Handle::current(), task);
    }

    /// The same, on another runtime.
    pub(crate) fn spawn_on(
        &self,
        runtime: &Handle,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tracker.spawn_on(self.cut.ends(task), runtime);
    }
}
