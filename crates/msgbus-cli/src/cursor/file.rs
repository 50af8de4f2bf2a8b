//! A file that is replaced at each step, never written in place. A run always holds a lock on the current file: it locks
//! the new file before that replaces the old one.

use std::{
    fmt::Display,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use tempfile::Builder;

use crate::failure::Failure;

/// The mode of a newly created file, before the umask.
const NEW_FILE: u32 = 0o666;
/// The limit of the Linux kernel.
const MAX_LINKS: usize = 40;
/// The largest file that is read, in bytes: a pattern has a line for each of its topics.
const MAX_SIZE: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct LockedFile {
    path: PathBuf,
    /// The locked file; `None` until it exists.
    locked: Option<File>,
}

impl LockedFile {
    /// Opens and locks the file, which need not exist yet.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let target = target(path).map_err(|error| wrong(path, &error))?;
        let locked = locked(&target).map_err(|error| wrong(path, &error))?;
        Ok(Self { path: target, locked })
    }

    /// The text of the file; `None` if it does not exist.
    pub(super) fn read(&self) -> Result<Option<String>, String> {
        let Some(file) = &self.locked else { return Ok(None) };
        let mut text = String::new();
        file.take(MAX_SIZE).read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(Some(text))
    }

    /// Replaces the file atomically: a reader finds the old text or the new one.
    pub(super) fn write(&mut self, text: &str) -> Result<(), Failure> {
        let file = replace(&self.path, text, self.locked.is_none()).map_err(|error| {
            let name = self.path.display();
            match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    Failure::Other(format!("--cursor {name}: {}", in_use()))
                }
                _ => Failure::Other(format!("cannot write --cursor {name}: {error}")),
            }
        })?;
        self.locked = Some(file);
        Ok(())
    }
}

/// The error for a file that cannot be used.
pub(super) fn wrong(path: &Path, problem: &dyn Display) -> Failure {
    Failure::usage(format!("--cursor {}: {problem}", path.display()))
}

fn in_use() -> io::Error {
    io::Error::other("another run is using it; use a separate file for each run")
}

/// Resolves symbolic links, also dangling ones, so that the target is replaced and not the link.
fn target(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many links"))
}

/// Opens and locks the file; `None` if it does not exist.
fn locked(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = match OpenOptions::new().read(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        lock(&file)?;
        // The file may have been replaced between opening and locking.
        match fs::metadata(path) {
            Ok(now) if now.ino() == file.metadata()?.ino() => return Ok(Some(file)),
            _ => {}
        }
    }
}

fn lock(file: &File) -> io::Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(in_use()),
        // Some file systems do not support locks.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Replaces the file with a new one, and returns the new one, locked. With `is_first`, an existing file is
/// an error.
fn replace(path: &Path, text: &str, is_first: bool) -> io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mode = fs::metadata(path).map_or(NEW_FILE, |old| old.permissions().mode());
    let mut file = Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(without_path)?;
    file.as_file_mut().write_all(text.as_bytes())?;
    lock(file.as_file())?;
    if is_first {
        file.persist_noclobber(path).map_err(|error| error.error)
    } else {
        file.persist(path).map_err(|error| error.error)
    }
}

/// Removes the name of the temporary file from an error. The name means nothing to the user.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn without_path(error: io::Error) -> io::Error {
    let text = error.to_string();
    let known = text.split_once(" at path ").map_or(&*text, |(problem, _)| problem);
    io::Error::new(error.kind(), known)
}
