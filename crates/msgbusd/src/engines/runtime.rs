//! The thread on which engines talk to their servers: one for all. Some engines publish from the serving threads, too.

use std::{io, sync::mpsc, thread};

use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
};

/// A thread with a runtime of its own, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct EngineRuntime {
    handle: Handle,
    /// Nothing is ever sent. The thread ends when it is dropped.
    _stop: oneshot::Sender<()>,
}

impl EngineRuntime {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        thread::Builder::new().name("engines".to_owned()).spawn(move || {
            // An error says that the sender is gone.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, _stop: stop })
    }

    /// Runs a future that does not wait for long, and blocks until it is ready.
    pub(super) fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, String>> + Send + 'static,
    ) -> Result<T, String> {
        let (done, result) = mpsc::sync_channel(1);
        self.handle.spawn(async move { drop(done.send(future.await)) });
        result.recv().unwrap_or_else(|_| Err("the thread of the engines has ended".to_owned()))
    }
}
