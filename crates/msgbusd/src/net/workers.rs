//! The serving threads.

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

/// Threads that serve connections. Each connection stays on one runtime for its whole life. The threads end when
/// this is dropped.
#[derive(Debug)]
pub struct Workers {
    runtimes: Vec<Handle>,
    next: AtomicUsize,
    /// Dropping a sender ends its thread.
    stops: Vec<oneshot::Sender<()>>,
}

impl Workers {
    /// Uses the current runtime and starts no threads.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub fn current() -> Self {
        let runtime = Handle::current();
        // One handle for each thread of the runtime, so that each gets its own `Worker`.
        let runtimes = vec![runtime.clone(); runtime.metrics().num_workers()];
        Self { runtimes, next: AtomicUsize::new(0), stops: Vec::new() }
    }

    /// Starts threads, each with its own single-threaded runtime.
    ///
    /// # Errors
    /// When the system has no more threads or file descriptors.
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
                // Nothing is ever sent. It returns when the sender is dropped.
                let _ = runtime.block_on(stopped);
            })?;
        }
        Ok(workers)
    }

    /// One runtime for each thread.
    pub(crate) fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }

    /// The runtime for the next connection, round robin.
    pub fn next(&self) -> &Handle {
        &self.runtimes[self.next.fetch_add(1, Relaxed) % self.runtimes.len()]
    }
}
