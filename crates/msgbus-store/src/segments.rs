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
    format::{Seal, SegmentHeader},
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
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.header.number
    }

    /// Whether nothing in it is needed.
    pub(crate) fn is_dead(&self) -> bool {
        self.live.load(Relaxed) == 0 && self.topics.load(Relaxed) == 0
    }

    /// An estimate of the bytes in it that are needed.
    pub(crate) fn live_bytes(&self) -> u64 {
        /// The size of a topic record with a name of usual length, in bytes.
        const TOPIC_SIZE: u64 = 200;
        let (live, messages) = (self.live.load(Relaxed), self.messages.load(Relaxed));
        let used = u128::from(self.used.load(Relaxed));
        let share = used * u128::from(live) / u128::from(messages.max(1));
        let topics = self.topics.load(Relaxed) * TOPIC_SIZE;
        u64::try_from(share).unwrap_or(u64::MAX).saturating_add(topics)
    }
}

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

    /// Counts messages of a segment that are no longer needed. Returns whether none is left.
    pub(crate) fn released(&self, number: u32, count: u64) -> bool {
        let table = self.table.read();
        let Some(segment) = table.get(&number) else { return false };
        segment.live.fetch_sub(count, Relaxed) == count
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
