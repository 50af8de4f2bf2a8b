//! The segments that exist, and how much of each is still in use.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::{Mutex, RwLock};

use crate::{
    disk::{Access, Disk, DiskFile},
    format::{GroupRecord, Seal, SegmentHeader},
};

/// One segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) seal: Seal,
    /// Up to which offset it is filled, in bytes.
    pub(crate) used: AtomicU64,
    /// Messages in it.
    pub(crate) messages: AtomicU64,
    /// Messages in it that are not released, nor found at a later place.
    pub(crate) live: AtomicU64,
    /// Topics whose newest topic record is in it.
    pub(crate) topics: AtomicU64,
    /// Groups whose newest name and settings are in it.
    pub(crate) groups: AtomicU64,
    /// Messages that a group has not settled, and whose newest record that says so is in it.
    pub(crate) open: AtomicU64,
    /// What its records of groups amount to.
    group_records: GroupRecords,
}

/// Records of groups that were added to a segment.
#[derive(Debug, Default)]
struct GroupRecords {
    /// The size of all of them, in bytes.
    bytes: AtomicU64,
    /// The size of those with open messages, in bytes.
    open_bytes: AtomicU64,
    /// The open messages in them.
    open: AtomicU64,
}

impl Segment {
    pub(crate) fn new(header: SegmentHeader) -> Self {
        Self {
            header,
            seal: Seal::new(&header),
            used: AtomicU64::new(SegmentHeader::END),
            messages: AtomicU64::new(0),
            live: AtomicU64::new(0),
            topics: AtomicU64::new(0),
            groups: AtomicU64::new(0),
            open: AtomicU64::new(0),
            group_records: GroupRecords::default(),
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.header.number
    }

    /// Whether nothing in it is needed.
    pub(crate) fn is_dead(&self) -> bool {
        [&self.live, &self.topics, &self.groups, &self.open]
            .into_iter()
            .all(|needed| needed.load(Relaxed) == 0)
    }

    /// Counts a record of a group with this many open messages. Its size is in bytes.
    pub(crate) fn count_group_record(&self, size: u64, open: usize) {
        let GroupRecords { bytes, open_bytes, open: count } = &self.group_records;
        bytes.fetch_add(size, Relaxed);
        if open > 0 {
            open_bytes.fetch_add(size, Relaxed);
            count.fetch_add(open as u64, Relaxed);
        }
    }

    /// An estimate of the bytes in it that are needed. It is exact for copies, so compaction comes to an end.
    pub(crate) fn live_bytes(&self) -> u64 {
        /// The size of a topic record with a name of usual length, in bytes.
        const TOPIC_SIZE: u64 = 200;
        /// The same of a group. None takes more than twice of it.
        const GROUP_SIZE: u64 = GroupRecord::MAX_SIZE / 2;
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let share = |bytes: u64, needed: &AtomicU64, all: &AtomicU64| {
            let share =
                u128::from(bytes) * u128::from(count(needed)) / u128::from(count(all).max(1));
            u64::try_from(share).unwrap_or(u64::MAX)
        };
        let groups = &self.group_records;
        let messages = count(&self.used).saturating_sub(count(&groups.bytes));
        let records = count(&self.topics) * TOPIC_SIZE + count(&self.groups) * GROUP_SIZE;
        share(messages, &self.live, &self.messages)
            .saturating_add(share(count(&groups.open_bytes), &self.open, &groups.open))
            .saturating_add(records)
    }
}

/// One of the counters of a segment.
pub(crate) type Counter = fn(&Segment) -> &AtomicU64;

/// All segments.
#[derive(Debug)]
pub(crate) struct Segments {
    disk: Arc<dyn Disk>,
    table: RwLock<BTreeMap<u32, Arc<Segment>>>,
    /// Files that were read last.
    open: Mutex<Vec<(u32, Arc<dyn DiskFile>)>>,
}

impl Segments {
    /// How many files are kept open for reading.
    const OPEN: usize = 16;

    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, table: RwLock::default(), open: Mutex::default() }
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn insert(&self, segment: Arc<Segment>) {
        self.table.write().insert(segment.number(), segment);
    }

    pub(crate) fn get(&self, number: u32) -> Option<Arc<Segment>> {
        self.table.read().get(&number).cloned()
    }

    pub(crate) fn oldest(&self) -> Option<Arc<Segment>> {
        self.table.read().first_key_value().map(|(_, segment)| Arc::clone(segment))
    }

    pub(crate) fn oldest_number(&self) -> Option<u32> {
        self.table.read().first_key_value().map(|(number, _)| *number)
    }

    /// All of them, oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<Segment>> {
        self.table.read().values().cloned().collect()
    }

    /// The sizes of all files together, in bytes.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.table.read().values().map(|segment| segment.header.len).sum()
    }

    /// The bytes that are filled.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.table.read().values().map(|segment| segment.used.load(Relaxed)).sum()
    }

    /// An estimate of the bytes that are needed.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.table.read().values().map(|segment| segment.live_bytes()).sum()
    }

    /// Subtracts from a counter of a segment what is no longer needed. Returns whether nothing is left.
    pub(crate) fn released(&self, number: u32, count: u64, counter: Counter) -> bool {
        let table = self.table.read();
        let Some(segment) = table.get(&number) else { return false };
        counter(segment).fetch_sub(count, Relaxed) == count
    }

    /// Counts that something is needed in one segment, and no longer in another.
    pub(crate) fn moved(&self, from: Option<u32>, to: Option<u32>, counter: Counter) {
        if from == to {
            return;
        }
        if let Some(segment) = to.and_then(|number| self.get(number)) {
            counter(&segment).fetch_add(1, Relaxed);
        }
        if let Some(from) = from {
            self.released(from, 1, counter);
        }
    }

    /// Opens a segment for reading, or returns it if it is open.
    pub(crate) fn open(&self, number: u32) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.open.lock();
        if let Some(index) = open.iter().position(|(other, _)| *other == number) {
            let (_, file) = open.remove(index);
            // The last one was used last.
            open.push((number, Arc::clone(&file)));
            return Ok(file);
        }
        let file = self.disk.open(number, Access::Read)?;
        if open.len() >= Self::OPEN {
            open.remove(0);
        }
        open.push((number, Arc::clone(&file)));
        Ok(file)
    }

    /// Removes a segment that nobody needs, for good.
    pub(crate) fn remove(&self, number: u32) -> io::Result<()> {
        self.table.write().remove(&number);
        self.disk.remove(number)?;
        // After it was removed nobody can open it again. An open file would keep its room on the disk.
        self.open.lock().retain(|(other, _)| *other != number);
        self.disk.sync_dir()
    }
}
