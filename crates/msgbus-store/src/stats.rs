//! What a store has done, and how it is.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;

/// A store at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStats {
    /// The sizes of all files, in bytes. Files are made ahead of need.
    pub bytes: u64,
    /// About how many of them are needed: messages that are retained, topics and groups.
    pub live_bytes: u64,
    /// Files.
    pub segments: usize,
    /// Bytes written since the start, with those that compaction has copied.
    pub written_bytes: u64,
    /// Syncs since the start.
    pub syncs: u64,
    /// How long all of them took.
    pub sync_time: Duration,
    /// How long the longest took.
    pub longest_sync: Duration,
    /// Messages that compaction has copied since the start.
    pub copied: u64,
    /// A file that compaction cannot read, if there is one. It and all later ones are kept.
    pub unreadable: Option<PathBuf>,
    /// Bytes that wait to be written.
    pub queued_bytes: usize,
    /// There is no room for messages.
    pub is_full: bool,
    /// Why writing has failed, if it has.
    pub failure: Option<String>,
    /// What was found at the start.
    pub recovery: RecoveryReport,
}

/// What was found when a store was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// The last run ended with a [`close`](msgbus_core::store::Store::close), or there was none.
    pub was_clean: bool,
    /// The last run ended with a power cut, as far as can be known.
    pub after_power_cut: bool,
    /// Files that were read.
    pub segments: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Records that were read.
    pub records: u64,
    /// Topics that were recovered.
    pub topics: usize,
    /// Messages that were recovered.
    pub messages: u64,
    /// Groups that were recovered.
    pub groups: usize,
    /// Messages that these groups were given and have not settled. A message counts once for each group.
    pub open_messages: u64,
    /// How long it took.
    pub time: Duration,
    /// What a crash had left of a write that nobody was told about. It was removed.
    pub torn_tail: Option<Damage>,
    /// What was skipped, see [`StoreOptions::repair`](crate::StoreOptions::repair).
    pub skipped: Vec<Damage>,
    /// Names of topics that were left out because this version does not allow them.
    pub refused_names: Vec<String>,
}

/// A part of a file that is not readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// What is wrong.
    pub problem: String,
}

/// The part of [`StoreStats`] that the writer counts.
#[derive(Debug, Default)]
pub(crate) struct WriterStats {
    pub(crate) written_bytes: AtomicU64,
    pub(crate) copied: AtomicU64,
    syncs: AtomicU64,
    sync_nanoseconds: AtomicU64,
    longest_sync: AtomicU64,
    pub(crate) failure: Mutex<Option<String>>,
    pub(crate) unreadable: Mutex<Option<PathBuf>>,
}

impl WriterStats {
    pub(crate) fn count_sync(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Relaxed);
        self.sync_nanoseconds.fetch_add(took, Relaxed);
        self.longest_sync.fetch_max(took, Relaxed);
    }

    pub(crate) fn syncs(&self) -> (u64, Duration, Duration) {
        let time = |time: &AtomicU64| Duration::from_nanos(time.load(Relaxed));
        (self.syncs.load(Relaxed), time(&self.sync_nanoseconds), time(&self.longest_sync))
    }
}
