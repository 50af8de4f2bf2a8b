//! The progress of a run.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The progress of a run, for display.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// The number of completed operations.
    pub fn done(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self, operations: u64) {
        self.0.fetch_add(operations, Relaxed);
    }
}
