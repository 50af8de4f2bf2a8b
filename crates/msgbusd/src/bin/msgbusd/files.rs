//! The system's limit on open files. Each connection is one open file.

use std::{error::Error, io};

use anyhow::{anyhow, bail};
use msgbusd::{StartError, config::Config};
use tracing::warn;

/// Open files of one runtime, and one more for its connection to each engine.
const FILES_PER_THREAD: usize = 4;
/// Open files of the process itself: listeners, the log, signals, the runtime that accepts.
const PROCESS_FILES: usize = 16;
/// The minimum number of open files: standard streams, signals, the runtime that accepts, a listener and a connection.
const MIN_FILES: usize = 10;
const MIN_FILES_PER_THREAD: usize = 3;
/// The maximum number of files kept free for connections that are refused.
const SPARE: usize = 84;
const HOW_TO_RAISE: &str = "raise it with ulimit -n, or LimitNOFILE= in a systemd unit";

/// Raises the limit as far as the system allows, and returns it; `None` if there is no limit.
pub(crate) fn raise_limit() -> Option<usize> {
    let files = rlimit::increase_nofile_limit(u64::MAX).ok()?;
    Some(usize::try_from(files).unwrap_or(usize::MAX))
}

/// Lowers the connection limit to the number of files that the runtimes leave of `limit`.
///
/// # Errors
/// When too few files are left. Starting nevertheless would panic, because the runtime's signals need files.
pub(crate) fn fit(config: &mut Config, limit: usize, threads: usize) -> anyhow::Result<()> {
    let needed = MIN_FILES + threads * MIN_FILES_PER_THREAD;
    if limit < needed {
        bail!(
            "{threads} threads need at least {needed} open files, and the system allows {limit} open files; \
             {HOW_TO_RAISE}, or lower --threads"
        );
    }
    let per_thread = FILES_PER_THREAD + config.engines.len();
    let left = limit.saturating_sub(PROCESS_FILES + threads * per_thread);
    let fit = (left - SPARE.min(left / 3)).max(1);
    if config.max_connections > fit {
        warn!(
            "--max-connections is lowered to {fit}: the system allows {limit} open files; {HOW_TO_RAISE}"
        );
        config.max_connections = fit;
    }
    Ok(())
}

/// Adds a hint to the error if the start failed because of the limit.
pub(crate) fn explain(error: anyhow::Error, limit: Option<usize>) -> anyhow::Error {
    match limit {
        Some(limit) if error.chain().any(is_out_of_files) => anyhow!(
            "{error:#}: the system allows {limit} open files; {HOW_TO_RAISE}, or lower --threads"
        ),
        _ => error,
    }
}

/// Whether the error means that the process, or the system, has too many open files.
pub(crate) fn is_out_of_files(error: &(dyn Error + 'static)) -> bool {
    /// EMFILE and ENFILE, the same on all Unix systems.
    const NO_MORE_FILES: [i32; 2] = [24, 23];
    let error = match error.downcast_ref::<StartError>() {
        Some(StartError::Listen { error, .. }) => Some(error),
        _ => error.downcast_ref::<io::Error>(),
    };
    error.and_then(io::Error::raw_os_error).is_some_and(|errno| NO_MORE_FILES.contains(&errno))
}
