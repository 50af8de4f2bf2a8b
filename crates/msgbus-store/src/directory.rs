//! The directory of a store: made for one user, and used by one process.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{disk::sync_directory, error::OpenError};

/// The directory of a store, locked as long as this lives.
#[derive(Debug)]
pub(crate) struct Directory {
    /// The lock ends with the file.
    _lock: File,
    log: PathBuf,
}

impl Directory {
    const LOCK: &str = "LOCK";
    const LOG: &str = "log";

    /// Makes the directory if there is none, and locks it.
    pub(crate) fn lock(path: &Path) -> Result<Self, OpenError> {
        let log = path.join(Self::LOG);
        make(path)?;
        let lock = lock(path, &path.join(Self::LOCK))?;
        make(&log)?;
        for directory in [path, path.parent().unwrap_or(path)] {
            // An empty parent is the current directory.
            let directory =
                if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            match sync_directory(directory) {
                // The parent may be one that this user cannot read.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                result => result.map_err(|error| OpenError::io(directory, error))?,
            }
        }
        Ok(Self { _lock: lock, log })
    }

    /// The directory of the segments.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// The directory of the segments of a store that somebody else may use.
    pub(crate) fn log_of(path: &Path) -> Result<PathBuf, OpenError> {
        let log = path.join(Self::LOG);
        match std::fs::metadata(&log) {
            Ok(found) if found.is_dir() => Ok(log),
            Ok(_) => Err(OpenError::NotADirectory { path: log }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(OpenError::NoStore { path: path.to_owned() })
            }
            Err(error) => Err(OpenError::io(log, error)),
        }
    }
}

fn make(path: &Path) -> Result<(), OpenError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| OpenError::io(path, error))
}

fn lock(directory: &Path, path: &Path) -> Result<File, OpenError> {
    let failed = |error| OpenError::io(path, error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let read = file.read_to_string(&mut text);
            let pid = read.ok().and_then(|_| text.trim().parse().ok());
            return Err(OpenError::InUse { path: directory.to_owned(), pid });
        }
        Err(error) => return Err(failed(error.into())),
    }
    // Only for the error that others get: a full disk is no reason not to start.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// Identifies what this machine has been running since it was started. `None` where that cannot be known.
pub(crate) fn boot_id() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}
