//! Files that the operator has named (configuration, keys, certificates) are read here, with a deadline.
//!
//! A file can be a pipe into which nobody writes, or lie on a file system that does not answer. Such a
//! read cannot be given up, so it has a thread of its own, which alone waits for it and ends with the
//! process.

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

/// How long a file may take to be read.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of a file.
const MAX_SIZE: u64 = 64 << 20;
/// The most reads at a time, those that never end included.
const MAX_READS: usize = 8;

static READS: AtomicUsize = AtomicUsize::new(0);

/// Reads a whole file. Blocks its caller, but no longer than ten seconds.
///
/// # Errors
/// When the file cannot be read, has more than 64 MiB, or does not answer in time.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let read = Read::begin(path)?;
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new().name("read-file".to_owned()).spawn(move || {
        // Whoever wanted it may have given up.
        let _ = sender.send(read.finish());
    })?;
    receiver.recv_timeout(TIMEOUT).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {TIMEOUT:?}")))
    })
}

/// The same, of a file of text.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_file(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// A read under way, counted until it ends.
struct Read(PathBuf);

impl Read {
    fn begin(path: &Path) -> io::Result<Self> {
        let read = Self(path.to_owned());
        // Above the bound it is dropped, which takes it off again.
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
