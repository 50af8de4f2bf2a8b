//! How far a run is.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// How far a run is, for whoever shows it.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Operations done so far.
    pub fn done(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self, operations: u64) {
        self.0.fetch_add(operations, Relaxed);
    }
}
