//! A log that keeps what it is given: appends it to one file, and syncs once for all who wait. The limit for durable
//! publishes.

use std::{
    fs::File,
    io::Write as _,
    mem::take,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use bytes::Bytes;
use tokio::sync::oneshot;

/// What waits to be written.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Debug, Default)]
pub(super) struct SyncedLog {
    queue: Mutex<Queue>,
    filled: Condvar,
}

impl SyncedLog {
    /// Starts the thread that writes, to a file in the working directory.
    pub(super) fn start() -> anyhow::Result<Arc<Self>> {
        let log = Arc::new(Self::default());
        let mut file = File::create("bare.log")?;
        let writer = Arc::clone(&log);
        thread::Builder::new().spawn(
            move || {
                while let Ok(()) = writer.write_batch(&mut file) {}
            },
        )?;
        Ok(log)
    }

    fn write_batch(&self, file: &mut File) -> std::io::Result<()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        while queue.waiting.is_empty() {
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let Queue { bytes, waiting } = take(&mut *queue);
        drop(queue);
        file.write_all(&bytes)?;
        file.sync_data()?;
        for waiter in waiting {
            // A client may have left.
            let _ = waiter.send(());
        }
        Ok(())
    }

    /// Ready when the payload survives a power cut.
    pub(super) async fn append(&self, payload: &Bytes) {
        // After a failed write nobody answers, and the client times out.
        let _ = self.enqueue(payload).await;
    }

    fn enqueue(&self, payload: &Bytes) -> oneshot::Receiver<()> {
        let (sender, synced) = oneshot::channel();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        queue.bytes.extend_from_slice(&length.to_le_bytes());
        queue.bytes.extend_from_slice(payload);
        queue.waiting.push(sender);
        if queue.waiting.len() == 1 {
            self.filled.notify_one();
        }
        synced
    }
}
