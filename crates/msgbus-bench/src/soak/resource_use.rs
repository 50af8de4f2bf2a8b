//! The resource use of the idle server, and whether it grows.

use std::{fs, io, path::PathBuf, time::Duration};

use msgbus_load::Server;
use tokio::time::{Instant, sleep};

use super::invariants::{Invariant, Invariants};

/// The server closes an abandoned connection within this time: the timeouts in [`CONFIG`](super::topics::CONFIG), a
/// second for the close, and a sweep.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);
/// The server frees memory in a sweep every five seconds.
const SWEEPS: Duration = Duration::from_secs(6);
/// The permitted growth of memory after the first round: a percentage plus a number of bytes. Rounds differ in length
/// and in their peak, and the allocator keeps a part of it; a server that was killed has read its log.
pub(super) const GROWTH_PERCENT: u64 = 25;
pub(super) const GROWTH_BYTES: u64 = 16 << 20;

/// The resource use of the idle server, before the first round and after each round.
#[derive(Debug, Clone)]
pub(super) struct ResourceUse {
    /// Resident memory, in bytes.
    pub(super) memory: u64,
    /// The open files: paths, and the numbers of pipes and sockets.
    pub(super) files: Vec<PathBuf>,
}

impl ResourceUse {
    fn of(pid: u32) -> io::Result<Self> {
        let all = fs::read_dir(format!("/proc/{pid}/fd"))?;
        // A file may be closed meanwhile.
        let mut files: Vec<_> =
            all.filter_map(|file| fs::read_link(file.ok()?.path()).ok()).collect();
        // After a restart a segment may be open twice: to be read, and to be written.
        files.sort_unstable();
        files.dedup_by(|one, other| one == other && one.extension().is_some_and(|e| e == "seg"));
        Ok(Self { memory: Server::new([pid]).resident()?, files })
    }
}

/// Waits until the server has swept and has at most `files` open files, up to the time limit.
pub(super) async fn rest(pid: u32, files: usize) -> io::Result<ResourceUse> {
    let begin = Instant::now();
    sleep(SWEEPS).await;
    while files > 0 && ResourceUse::of(pid)?.files.len() > files && begin.elapsed() < CLOSE_TIMEOUT
    {
        sleep(Duration::from_millis(100)).await;
    }
    ResourceUse::of(pid)
}

pub(super) fn compare(invariants: &mut Invariants, usage: &[ResourceUse]) {
    let [start, first, rest @ ..] = usage else { return };
    let now = rest.last().unwrap_or(first);
    let (before, after) = (start.files.len(), now.files.len());
    invariants.check(Invariant::Descriptors, after == before, || {
        format!("{before} at the start, now {after}: {:?} and {:?}", start.files, now.files)
    });
    if rest.is_empty() {
        return;
    }
    let most = first.memory + first.memory * GROWTH_PERCENT / 100 + GROWTH_BYTES;
    invariants.check(Invariant::Memory, now.memory <= most, || {
        format!("{} bytes after the first round, now {}", first.memory, now.memory)
    });
}
