//! The threads that serve connections.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
};

use crate::net::wake_queue::WakeQueue;

/// Threads that serve connections, each connection belonging to one runtime for good. They end when
/// this is dropped.
#[derive(Debug)]
pub struct Workers {
    runtimes: Vec<Handle>,
    next: AtomicUsize,
    /// Held until the threads are to end.
    stops: Vec<oneshot::Sender<()>>,
}

impl Workers {
    /// The runtime that calls this, and no thread of its own.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub fn current() -> Self {
        let runtime = Handle::current();
        // What its threads share is not to be shared by all of them.
        let runtimes = vec![runtime.clone(); runtime.metrics().num_workers()];
        Self { runtimes, next: AtomicUsize::new(0), stops: Vec::new() }
    }

    /// Starts threads with a runtime each.
    ///
    /// # Errors
    /// When the system gives no more threads or files.
    pub fn pinned(threads: usize) -> io::Result<Self> {
        let mut workers =
            Self { runtimes: Vec::new(), next: AtomicUsize::new(0), stops: Vec::new() };
        for index in 0..threads {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .on_thread_park(WakeQueue::thread_sleeps)
                .on_thread_unpark(WakeQueue::thread_is_awake)
                .build()?;
            let (stop, stopped) = oneshot::channel::<()>();
            workers.runtimes.push(runtime.handle().clone());
            workers.stops.push(stop);
            thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                runtime.spawn(WakeQueue::drive());
                // Nothing is ever sent: the end of the sender is the message.
                let _ = runtime.block_on(stopped);
            })?;
        }
        Ok(workers)
    }

    /// One for each thread.
    pub(crate) fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }

    /// The runtime for the next connection: they take turns.
    pub fn next(&self) -> &Handle {
        &self.runtimes[self.next.fetch_add(1, Relaxed) % self.runtimes.len()]
    }
}
