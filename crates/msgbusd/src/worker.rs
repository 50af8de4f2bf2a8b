//! State that the connections of one thread share, and no other thread: if every request, poll or delivery took a
//! process-wide lock or incremented a process-wide counter, all threads would contend for one cache line.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::{config::Protocol, signal::StopSignal, state::App};

/// The server as seen by one thread: the shared [`App`], and this thread's own counters and tasks.
#[derive(Debug)]
pub(crate) struct Worker {
    app: Arc<App>,
    requests: Arc<Counter>,
    operations: Arc<Counter>,
    /// Counts the messages of each door.
    doors: Vec<(Protocol, Arc<Counter>)>,
    pub(crate) tasks: Tasks,
}

impl Worker {
    /// Creates a worker, and registers its counter with the metrics of [`App`].
    pub(crate) fn new(app: &Arc<App>) -> Arc<Self> {
        let (requests, operations) = app.metrics.counters_of_a_worker();
        let doors = app.metrics.door_counters_of_a_worker();
        let tasks = Tasks::default();
        Arc::new(Self { app: Arc::clone(app), requests, operations, doors, tasks })
    }

    /// Counts a request.
    pub(crate) fn request(&self) {
        self.requests.increment();
    }

    /// The counter of messages of a door.
    pub(crate) fn messages_of(&self, protocol: Protocol) -> Arc<Counter> {
        let counter = self.doors.iter().find(|(known, _)| *known == protocol);
        // A door without endpoints is not in the metrics.
        counter.map(|(_, counter)| Arc::clone(counter)).unwrap_or_default()
    }

    /// Counts an operation of a `msgbus.v1` websocket.
    pub(crate) fn operation(&self) {
        self.operations.increment();
    }
}

impl Deref for Worker {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

/// A counter that shares its cache line with no other data. The alignment is two lines, because some processors
/// fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The tasks of one worker, and the signal that ends them.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) tracker: TaskTracker,
    pub(crate) stop: StopSignal,
}

impl Tasks {
    /// Spawns a task on the current runtime. The drain waits for it, and the cut drops it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_on(&Handle::current(), task);
    }

    /// Like [`spawn`](Self::spawn), on the given runtime.
    pub(crate) fn spawn_on(
        &self,
        runtime: &Handle,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tracker.spawn_on(self.stop.stoppable(task), runtime);
    }
}
