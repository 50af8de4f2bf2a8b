//! The system's limit of open files: each connection is one.

use std::{error::Error, io};

use anyhow::{anyhow, bail};
use msgbusd::{StartError, config::Config};
use tracing::warn;

/// Files of a runtime that has its own events.
const OF_A_THREAD: usize = 4;
/// Files of the process itself: listeners, the log, signals, the runtime that accepts.
const OF_THE_PROCESS: usize = 16;
/// Without these nothing works: standard input and output, signals, the runtime that accepts, a listener
/// and a connection.
const FEWEST: usize = 10;
const FEWEST_OF_A_THREAD: usize = 3;
/// The most files kept free for connections that are refused.
const SPARE: usize = 84;
const HOW_TO_RAISE: &str = "raise it with ulimit -n, or LimitNOFILE= in a systemd unit";

/// Takes as many files as the system gives, and says how many; `None` where there is no such limit.
pub(crate) fn raise_limit() -> Option<usize> {
    let files = rlimit::increase_nofile_limit(u64::MAX).ok()?;
    Some(usize::try_from(files).unwrap_or(usize::MAX))
}

/// Lowers the bound on connections to what the runtimes of these threads leave of `limit` files.
///
/// # Errors
/// When they leave nothing. To try it all the same would be a panic: the runtime's signals need files.
pub(crate) fn fit(config: &mut Config, limit: usize, threads: usize) -> anyhow::Result<()> {
    let needed = FEWEST + threads * FEWEST_OF_A_THREAD;
    if limit < needed {
        bail!(
            "{threads} threads need at least {needed} open files, and the system allows {limit} open files; \
             {HOW_TO_RAISE}, or lower --threads"
        );
    }
    let left = limit.saturating_sub(OF_THE_PROCESS + threads * OF_A_THREAD);
    let fit = (left - SPARE.min(left / 3)).max(1);
    if config.max_connections > fit {
        warn!(
            "--max-connections is lowered to {fit}: the system allows {limit} open files; {HOW_TO_RAISE}"
        );
        config.max_connections = fit;
    }
    Ok(())
}

/// Says what helps where the start failed for want of files.
pub(crate) fn explain(error: anyhow::Error, limit: Option<usize>) -> anyhow::Error {
    match limit {
        Some(limit) if error.chain().any(are_used_up) => anyhow!(
            "{error:#}: the system allows {limit} open files; {HOW_TO_RAISE}, or lower --threads"
        ),
        _ => error,
    }
}

/// Whether this is the system's answer when a process, or all of them, have too many open files.
pub(crate) fn are_used_up(error: &(dyn Error + 'static)) -> bool {
    /// EMFILE and ENFILE, the same on all Unix systems.
    const NO_MORE_FILES: [i32; 2] = [24, 23];
    let error = match error.downcast_ref::<StartError>() {
        Some(StartError::Listen { error, .. }) => Some(error),
        _ => error.downcast_ref::<io::Error>(),
    };
    error.and_then(io::Error::raw_os_error).is_some_and(|errno| NO_MORE_FILES.contains(&errno))
}
