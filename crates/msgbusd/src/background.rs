//! Work that visits many topics. It runs on a thread that serves no connection.

use std::{future::pending, panic::resume_unwind, sync::Arc};

use tokio::{sync::Semaphore, task::spawn_blocking};

/// Runs long jobs one at a time, in the order of the calls. Listing 100,000 topics takes tens of milliseconds; on a
/// serving thread, all other connections of that thread would wait for it.
#[derive(Debug)]
pub(crate) struct Background(Arc<Semaphore>);

impl Default for Background {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Background {
    /// Waits for its turn, runs `work`, and returns its result.
    ///
    /// # Cancel safety
    /// If the future is dropped before its turn, the work does not start. If it is dropped later, the work finishes
    /// and its result is discarded.
    ///
    /// # Panics
    /// When `work` panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        // The semaphore is never closed.
        let turn = Arc::clone(&self.0).acquire_owned().await.ok();
        let running = spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        match running.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(done) => done,
            Err(Ok(panic)) => resume_unwind(panic),
            // The runtime is being shut down, and this will be dropped.
            Err(Err(_)) => pending().await,
        }
    }
}
