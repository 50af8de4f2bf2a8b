//! What the server costs at rest, and whether that grows.

use std::{fs, io, time::Duration};

use msgbus_load::Server;
use tokio::time::{Instant, sleep};

use super::books::{Book, Books};

/// A connection that nobody uses any more is closed in less: the timeouts in [`CONFIG`](super::topics::CONFIG), a
/// second to part, and a sweep.
const CLOSE_PATIENCE: Duration = Duration::from_secs(20);
/// The server frees memory in sweeps, every five seconds.
const SWEEPS: Duration = Duration::from_secs(6);
/// What the memory may grow by from the first round on: so many percent, and bytes.
pub(super) const GROWTH_PERCENT: u64 = 25;
pub(super) const GROWTH_BYTES: u64 = 4 << 20;

/// What the server costs at rest, after each round and before the first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// In bytes.
    pub(super) memory: u64,
    pub(super) files: usize,
}

impl Cost {
    fn of(pid: u32) -> io::Result<Self> {
        let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self { memory: Server::new([pid]).resident()?, files })
    }
}

/// Waits until the server has no more files open than these, but not for ever, and has swept.
pub(super) async fn rest(pid: u32, files: usize) -> io::Result<Cost> {
    let begin = Instant::now();
    sleep(SWEEPS).await;
    while files > 0 && Cost::of(pid)?.files > files && begin.elapsed() < CLOSE_PATIENCE {
        sleep(Duration::from_millis(100)).await;
    }
    Cost::of(pid)
}

pub(super) fn compare(books: &mut Books, costs: &[Cost]) {
    let [start, first, rest @ ..] = costs else { return };
    let now = rest.last().unwrap_or(first);
    books.check(Book::Descriptors, now.files == start.files, || {
        format!("{} at the start, now {}", start.files, now.files)
    });
    if rest.is_empty() {
        return;
    }
    let most = first.memory + first.memory * GROWTH_PERCENT / 100 + GROWTH_BYTES;
    books.check(Book::Memory, now.memory <= most, || {
        format!("{} bytes after the first round, now {}", first.memory, now.memory)
    });
}
