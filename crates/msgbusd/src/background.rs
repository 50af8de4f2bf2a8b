//! Work that visits many topics, done on a thread that serves no connection.

use std::{future::pending, panic::resume_unwind, sync::Arc};

use tokio::{sync::Semaphore, task::spawn_blocking};

/// Runs long work one piece at a time, in the order in which it was asked for: with 100,000 topics a listing
/// takes tens of milliseconds, for which everybody else on the thread would have to wait.
#[derive(Debug)]
pub(crate) struct Background(Arc<Semaphore>);

impl Default for Background {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Background {
    /// Waits for its turn, then for what the work returns.
    ///
    /// # Cancel safety
    /// Dropped before its turn, the work is not begun; dropped later, it is finished for nobody.
    ///
    /// # Panics
    /// When the work does.
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
