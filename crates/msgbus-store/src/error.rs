//! Why a store cannot be opened. Each text is one line that names the file and what can be done.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a store cannot be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The path is not a directory.
    #[error("{} is not a directory; name a directory for the data", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// There is no store in the directory.
    #[error("there is no data of msgbusd in {}; name the directory of --data", path.display())]
    NoStore {
        /// The directory.
        path: PathBuf,
    },
    /// There is a store already where a new one is to be made.
    #[error("{} is not empty; name a new directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Another process uses the store.
    #[error("{} is in use by another process{}; stop it, or name another directory",
        path.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, if it has said so.
        pid: Option<u32>,
    },
    /// A newer version has written the file.
    #[error("{} was written by a newer version of msgbus (format {found}, this one reads up to {supported}); \
        run that version, or name another directory", file.display())]
    NewerVersion {
        /// The file.
        file: PathBuf,
        /// The version of its format.
        found: u32,
        /// The newest version that can be read.
        supported: u32,
    },
    /// A newer version has written a record.
    #[error("{} has a record of kind {kind} at offset {offset}, which a newer version of msgbus wrote; run that \
        version, or name another directory", file.display())]
    UnknownRecord {
        /// The file.
        file: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// What the record is.
        kind: u8,
    },
    /// The file is damaged.
    #[error("{} is damaged at offset {offset}: {problem}; restore it from a backup{}", file.display(),
        if *can_repair { ", or start with --repair to skip what cannot be read" } else { "" })]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// What is wrong.
        problem: String,
        /// Whether [`StoreOptions::repair`](crate::StoreOptions::repair) helps.
        can_repair: bool,
    },
    /// The directory cannot be written to.
    #[error("{} is on a read-only file system; mount it for writing, or name another directory", path.display())]
    ReadOnly {
        /// The directory or file.
        path: PathBuf,
    },
    /// This user must not use the directory.
    #[error("{} cannot be accessed by this user; change its owner or permissions, or name another directory",
        path.display())]
    Permission {
        /// The directory or file.
        path: PathBuf,
    },
    /// The disk or the quota has no room for the first file.
    #[error("there is no room for {}; free some, or name another directory", path.display())]
    Full {
        /// The directory or file.
        path: PathBuf,
    },
    /// Any other failure of the disk.
    #[error("{}: {error}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// The failure, which the text contains.
        error: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(path: impl Into<PathBuf>, error: io::Error) -> Self {
        let path = path.into();
        match error.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                Self::NotADirectory { path }
            }
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            io::ErrorKind::PermissionDenied => Self::Permission { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io { path, error },
        }
    }
}
