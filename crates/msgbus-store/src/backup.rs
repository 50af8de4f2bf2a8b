//! Copies a store that may be in use.

use std::{path::Path, sync::Arc};

use crate::{
    directory::Directory,
    disk::{Disk, RealDisk},
    error::OpenError,
    recovery::{self, Mode},
    stats::RecoveryReport,
};

/// Copies a store to a new directory. Another process may use the store: the copy has everything that was synced
/// before the call, and verifies what it has. The copy is good if nothing was [`skipped`](RecoveryReport::skipped).
///
/// # Errors
/// When a directory or a file cannot be used, or the new directory holds a store already.
pub fn backup(directory: &Path, target: &Path) -> Result<RecoveryReport, OpenError> {
    /// How often the log may go on to another file while its last file is being copied.
    const ATTEMPTS: usize = 5;
    let log = Directory::log_of(directory)?;
    let source: Arc<dyn Disk> = Arc::new(RealDisk::new(log));
    let target = Directory::lock(target)?;
    let copy: Arc<dyn Disk> = Arc::new(RealDisk::new(target.log().to_owned()));
    let failed = |error| OpenError::io(target.log(), error);
    if !copy.list().map_err(failed)?.is_empty() {
        return Err(OpenError::NotEmpty { path: target.log().to_owned() });
    }
    let mut attempt = 1;
    loop {
        copy_files(&source, &*copy)?;
        let mode = Mode { skips_damage: true, ..Mode::default() };
        let report = recovery::recover(&copy, &mode)?.report;
        if report.skipped.is_empty() || attempt == ATTEMPTS {
            return Ok(report);
        }
        attempt += 1;
        for number in copy.list().map_err(failed)? {
            copy.remove(number).map_err(failed)?;
        }
    }
}

fn copy_files(source: &Arc<dyn Disk>, copy: &dyn Disk) -> Result<(), OpenError> {
    // All are opened first: then what is removed meanwhile stays readable.
    let mut files = recovery::open_for_copy(source)?;
    // The newest comes first. So whatever a copy has, the copies of the files before it have what was written before.
    for file in files.iter_mut().rev() {
        file.copy_to(copy).map_err(|error| file.error(error))?;
    }
    copy.sync_dir().map_err(|error| OpenError::io(copy.path(0), error))
}
