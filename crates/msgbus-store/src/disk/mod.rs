//! The files of a store, as a trait, so that tests can put a disk under the store that loses, tears and refuses writes.

mod closable;
mod real;
#[cfg(any(test, fuzzing))]
pub(crate) mod simulated;

use std::{fmt::Debug, io, path::PathBuf, sync::Arc};

pub(crate) use self::{
    closable::ClosableFile,
    real::{RealDisk, sync_directory},
};

/// A folder of segments, each with a number.
pub(crate) trait Disk: Debug + Send + Sync {
    /// The numbers of all segments, ascending.
    fn list(&self) -> io::Result<Vec<u32>>;

    /// Creates a segment of `len` bytes: `header`, then zeros that are allocated. After a power cut the whole of it is
    /// there, or nothing. It certainly is after [`sync_dir`](Self::sync_dir).
    fn create(&self, number: u32, len: u64, header: &[u8]) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a segment.
    fn open(&self, number: u32, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Removes a segment. It may come back at a power cut until [`sync_dir`](Self::sync_dir).
    fn remove(&self, number: u32) -> io::Result<()>;

    /// Makes creations and removals survive a power cut.
    fn sync_dir(&self) -> io::Result<()>;

    /// Keeps a copy of a segment beside it, and returns where.
    fn keep_copy(&self, number: u32) -> io::Result<PathBuf>;

    /// The path of a segment, for error texts.
    fn path(&self, number: u32) -> PathBuf;
}

/// How a segment is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// For reading only.
    Read,
    /// For reading and writing.
    Write,
}

/// An open segment.
pub(crate) trait DiskFile: Debug + Send + Sync {
    /// Its size in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`. Fails if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything that was written survive a power cut.
    fn sync(&self) -> io::Result<()>;

    /// Extends or cuts the file. What is added is zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
}

/// Whether an error says that there is no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
