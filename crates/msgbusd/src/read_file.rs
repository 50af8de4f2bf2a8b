//! Reads files that the operator names (configuration, keys, certificates), with a deadline.
//!
//! The file may be a pipe without a writer, or be on a file system that does not respond. Such a read cannot be
//! cancelled, so each read has its own thread, which may stay blocked until the process ends.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

/// The maximum time for reading a file.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of a file, in bytes.
const MAX_SIZE: u64 = 64 << 20;
/// The maximum number of concurrent reads, including those that never end.
const MAX_READS: usize = 8;

static READS: AtomicUsize = AtomicUsize::new(0);

/// Reads a whole file. Blocks the caller for at most ten seconds.
///
/// # Errors
/// When the file cannot be read, is larger than 64 MiB, or is not read in time.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let read = Read::begin(path)?;
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new().name("read-file".to_owned()).spawn(move || {
        // The caller may have timed out.
        let _ = sender.send(read.finish());
    })?;
    receiver.recv_timeout(TIMEOUT).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {TIMEOUT:?}")))
    })
}

/// Like [`read_file`], for a UTF-8 text file.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_file(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// A read in progress. It is counted until it is dropped.
struct Read(PathBuf);

impl Read {
    fn begin(path: &Path) -> io::Result<Self> {
        let read = Self(path.to_owned());
        // Above the limit, dropping `read` decrements the counter again.
        match READS.fetch_add(1, Relaxed) {
            0..MAX_READS => Ok(read),
            reads => {
                Err(io::Error::other(format!("{reads} earlier reads still wait for an answer")))
            }
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(&self.0)?.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_SIZE {
            return Err(io::Error::other("it has more than 64 MiB"));
        }
        Ok(bytes)
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        READS.fetch_sub(1, Relaxed);
    }
}
