//! Options of a store.

use std::{fmt, sync::Arc};

/// The options of a store. The defaults suit most programs.
#[derive(Clone)]
pub struct StoreOptions {
    /// The maximum size of a segment, in bytes. Default 64 MiB. A new store begins with smaller ones, and one that
    /// must hold a larger message is larger. At least 4 KiB.
    pub segment_bytes: u64,
    /// The maximum size of all files together, in bytes. `None`, the default, is as much as the disk has. At least
    /// four segments are useful.
    pub max_bytes: Option<u64>,
    /// The maximum size of what waits to be written, in bytes. Default 32 MiB. More is refused with
    /// [`StoreError::Busy`](msgbus_core::store::StoreError::Busy).
    pub queue_bytes: usize,
    /// Whether damaged records are skipped. Default false: then a damaged store is not opened. A copy of each damaged
    /// file is kept beside it.
    pub repair: bool,
    /// Is told how far opening is.
    pub progress: Option<Progress>,
}

/// Is called now and then while a store is opened, with the number of bytes that were read, and of all.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            max_bytes: None,
            queue_bytes: 32 << 20,
            repair: false,
            progress: None,
        }
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("segment_bytes", &self.segment_bytes)
            .field("max_bytes", &self.max_bytes)
            .field("queue_bytes", &self.queue_bytes)
            .field("repair", &self.repair)
            .finish_non_exhaustive()
    }
}

impl StoreOptions {
    /// The smallest segment that is made when the disk is nearly full, in bytes.
    pub(crate) fn min_segment_bytes(&self) -> u64 {
        (self.segment_bytes / 64).max(4 << 10)
    }

    /// The size of the next segment of a store that has this size, in bytes. Small stores get small ones.
    pub(crate) fn next_segment_bytes(&self, total: u64) -> u64 {
        let smallest = (self.segment_bytes / 16).max(4 << 10);
        (total / 4).next_power_of_two().clamp(smallest, self.segment_bytes.max(smallest))
    }
}
