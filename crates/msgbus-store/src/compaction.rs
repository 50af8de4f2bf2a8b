//! Frees segments, oldest first.
//!
//! A segment of which nothing is needed is removed. When most of the log is not needed, what is needed of the oldest
//! segment is copied to the end, bit by bit. So every record is followed by all later ones of its topic, and a deletion
//! outlives what it deletes.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use msgbus_core::store::{GroupChange, GroupUpdate, OpenMessage};

use crate::{
    batch::GroupPlace,
    disk::is_full,
    encode::TopicLog,
    format::{GroupKind, GroupRecord, LogRecord, record},
    index::Location,
    scan::{Found, Scanner},
    segments::Segment,
    topic::Topic,
    writer::Writer,
};

/// What is being compacted.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    current: Option<(Arc<Segment>, Scanner)>,
    /// Segments up to this number are copied, however much of them is needed.
    forced_up_to: Option<u32>,
    /// There was no room for copies. It is tried again then.
    paused_until: Option<Instant>,
    /// A segment that cannot be read. It stays, and so do all later ones.
    stuck: Option<u32>,
}

/// What was copied.
#[derive(Debug, Default)]
struct Copied {
    messages: Vec<CopiedMessage>,
    open: Vec<CopiedOpen>,
}

#[derive(Debug)]
struct CopiedMessage {
    topic: Arc<Topic>,
    id: u64,
    from: Location,
    to: Location,
}

/// Open messages of a group that were copied from one record to another.
#[derive(Debug)]
struct CopiedOpen {
    topic: Arc<Topic>,
    group: u8,
    ids: Vec<u64>,
    from: Location,
    to: GroupPlace,
}

impl Writer {
    /// How much of a segment is looked at in a turn in which little is written, in bytes. Otherwise twice of what is
    /// written: then the log stops growing when half of it is not needed.
    const STEP: u64 = 256 << 10;
    const PAUSE: Duration = Duration::from_secs(1);

    /// Frees what can be freed, a bit at a time. `written` bytes were written in this turn. Returns whether there is
    /// more to do.
    pub(crate) fn compact(&mut self, written: u64, now: Instant) -> io::Result<bool> {
        self.remove_dead()?;
        if self.compaction.current.is_none() {
            self.compaction.current = self.next_to_compact(now);
        }
        let Some((segment, mut scanner)) = self.compaction.current.take() else { return Ok(false) };
        match self.copy(&segment, &mut scanner, Self::STEP.max(2 * written)) {
            Ok(true) if segment.is_dead() => self.remove_dead()?,
            Ok(false) => self.compaction.current = Some((segment, scanner)),
            Err(CopyError::Full) => self.compaction.paused_until = Some(now + Self::PAUSE),
            // Copying again would copy the same.
            Ok(true) | Err(CopyError::Unreadable) => self.give_up_compaction(segment.number()),
            Err(CopyError::Failed(error)) => return Err(error),
        }
        Ok(true)
    }

    /// Copies everything that is needed to the end of the log, and removes the rest. For a store that nobody uses.
    ///
    /// # Errors
    /// When the disk fails, or has no room, or something cannot be read. Nothing is lost then.
    pub(crate) fn compact_fully(&mut self, now: Instant) -> io::Result<()> {
        let last = self.tail.number();
        let snapshot = self.tail.snapshot();
        if let Err(error) = self.tail.switch(0, true) {
            self.tail.restore(snapshot);
            return Err(error);
        }
        self.tail.flush(&self.shared.stats)?;
        self.compaction.forced_up_to = Some(last);
        while self.compact(u64::MAX / 4, now)? {
            if self.compaction.paused_until.is_some() {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        if self.compaction.stuck.is_some() {
            return Err(io::Error::other("a record cannot be read"));
        }
        Ok(())
    }

    /// Removes the oldest segments as long as nothing in them is needed.
    fn remove_dead(&mut self) -> io::Result<()> {
        while let Some(oldest) = self.shared.segments.oldest()
            && oldest.number() < self.tail.number()
            && oldest.is_dead()
        {
            // What replaces the last records in it must not be lost after it.
            if self.tail.is_unsynced() {
                self.sync()?;
            }
            self.shared.segments.remove(oldest.number())?;
        }
        Ok(())
    }

    fn next_to_compact(&mut self, now: Instant) -> Option<(Arc<Segment>, Scanner)> {
        let oldest = self.shared.segments.oldest()?;
        let number = oldest.number();
        if number >= self.tail.number() || self.compaction.stuck == Some(number) {
            return None;
        }
        let is_forced = self.compaction.forced_up_to.is_some_and(|last| number <= last);
        let is_paused = self.compaction.paused_until.is_some_and(|until| until > now);
        if !is_forced && (is_paused || !self.is_worthwhile(&oldest)) {
            return None;
        }
        let scanner =
            self.shared.segments.open(number).and_then(|file| Scanner::new(file, oldest.seal));
        if scanner.is_err() {
            self.give_up_compaction(number);
        }
        scanner.ok().map(|scanner| (oldest, scanner))
    }

    fn give_up_compaction(&mut self, number: u32) {
        self.compaction.stuck = Some(number);
        let path = self.shared.segments.disk().path(number);
        *self.shared.stats.unreadable.lock() = Some(path);
    }

    /// Whether to copy what is needed of the oldest segment.
    fn is_worthwhile(&self, oldest: &Segment) -> bool {
        let segments = &self.shared.segments;
        let live = segments.live_bytes();
        if self.is_full() {
            let needed = oldest.live_bytes();
            let garbage = segments.used_bytes().saturating_sub(live);
            return garbage >= oldest.used.load(Relaxed) && needed + needed / 4 < self.tail.room();
        }
        segments.total_bytes() > 2 * live + 2 * self.tail.segment_bytes()
    }

    /// Copies what is needed of the next `budget` bytes of a segment. Returns whether that was the rest.
    fn copy(
        &mut self,
        segment: &Segment,
        scanner: &mut Scanner,
        budget: u64,
    ) -> Result<bool, CopyError> {
        let snapshot = self.tail.snapshot();
        self.batch.begin();
        let mut copied = Copied::default();
        let is_done = match self.encode_copies(segment, scanner, budget, &mut copied) {
            Ok(is_done) => is_done,
            Err(error) => {
                self.batch.undo();
                self.batch.begin();
                self.tail.restore(snapshot);
                return Err(error);
            }
        };
        self.tail.flush(&self.shared.stats).map_err(CopyError::Failed)?;
        let Copied { messages, open } = copied;
        self.shared.stats.copied.fetch_add(messages.len() as u64, Relaxed);
        for CopiedMessage { topic, id, from, to } in messages {
            self.shared.move_message(&topic, id, from, to);
        }
        for CopiedOpen { topic, group, ids, from, to } in open {
            self.shared.move_open(&topic, group, &ids, from, to);
        }
        self.settle_topics(|_| true);
        self.batch.begin();
        Ok(is_done)
    }

    fn encode_copies(
        &mut self,
        segment: &Segment,
        scanner: &mut Scanner,
        budget: u64,
        copied: &mut Copied,
    ) -> Result<bool, CopyError> {
        let end = scanner.offset().saturating_add(budget);
        while scanner.offset() < end {
            let offset = scanner.offset();
            let Ok(Found::Record { body, size }) = scanner.peek() else {
                return Err(CopyError::Unreadable);
            };
            let place = Location::new(segment.number(), offset);
            match LogRecord::decode(body).map_err(|_| CopyError::Unreadable)? {
                LogRecord::Message(message) => {
                    let message = self.copy_message(message.topic, message.id, place, body)?;
                    copied.messages.extend(message);
                }
                LogRecord::Topic { number, .. } => self.copy_topic(number, segment.number())?,
                LogRecord::Group(group) => self.copy_group(&group, place, &mut copied.open)?,
                LogRecord::End { .. } => return Ok(true),
                _ => {}
            }
            scanner.seek(offset + size as u64);
        }
        Ok(false)
    }

    /// Copies a message if it is needed.
    fn copy_message(
        &mut self,
        number: u32,
        id: u64,
        from: Location,
        body: &[u8],
    ) -> Result<Option<CopiedMessage>, CopyError> {
        let Some(topic) = self.topics.get(&number) else { return Ok(None) };
        if topic.index.lock().get(id) != Some(from) {
            return Ok(None);
        }
        let topic = Arc::clone(topic);
        let progress = &mut *topic.progress.lock();
        self.batch.touch(&topic, progress);
        let mut log = TopicLog { tail: &mut self.tail, topic: &topic, progress, number };
        let to = log.put(true, |out, seed| record::encode_copy(out, seed, body))?;
        Ok(Some(CopiedMessage { topic: Arc::clone(&topic), id, from, to }))
    }

    /// Copies what is needed of a group's record: name and settings, and open messages.
    fn copy_group(
        &mut self,
        record: &GroupRecord<'_>,
        from: Location,
        copied: &mut Vec<CopiedOpen>,
    ) -> Result<(), CopyError> {
        /// How many open messages are copied into one record.
        const PART: usize = 256;
        let group = record.number;
        let Some(topic) = self.topics.get(&record.topic).cloned() else { return Ok(()) };
        let progress = &mut *topic.progress.lock();
        let Some(written) = progress.groups.get(group) else { return Ok(()) };
        let is_newest = written.mentioned_in == from.segment
            && matches!(record.kind, GroupKind::Set | GroupKind::Continued);
        let (next_id, counters) = (written.group.next_id, written.group.counters);
        let mut open = open_messages(record)?;
        {
            let index = topic.index.lock();
            open.retain(|message| index.open.is_at(group, message.id, from));
        }
        if !is_newest && open.is_empty() {
            return Ok(());
        }
        self.batch.touch(&topic, progress);
        let number = record.topic;
        let mut log = TopicLog { tail: &mut self.tail, topic: &topic, progress, number };
        if is_newest {
            log.mention_group(group)?;
        }
        for part in open.chunks(PART) {
            let update =
                GroupUpdate { next_id, open: part.to_vec(), settled: Vec::new(), counters };
            let to = log.put_of_group(group, |out, seed| {
                record::encode_group_update(out, seed, number, group, &update);
            })?;
            let (topic, ids) =
                (Arc::clone(&topic), part.iter().map(|message| message.id).collect());
            copied.push(CopiedOpen { topic, group, ids, from, to });
        }
        Ok(())
    }

    /// Writes a new topic record if the newest one is in the segment that is being copied.
    fn copy_topic(&mut self, number: u32, segment: u32) -> Result<(), CopyError> {
        let Some(topic) = self.topics.get(&number) else { return Ok(()) };
        let topic = Arc::clone(topic);
        let progress = &mut *topic.progress.lock();
        if progress.written.mentioned_in == Some(segment) {
            self.batch.touch(&topic, progress);
            let mut log = TopicLog { tail: &mut self.tail, topic: &topic, progress, number };
            log.mention(true)?;
        }
        Ok(())
    }
}

/// The open messages of a record.
fn open_messages(record: &GroupRecord<'_>) -> Result<Vec<OpenMessage>, CopyError> {
    match record.change().map_err(|_| CopyError::Unreadable)? {
        GroupChange::Set(group) => Ok(group.open.into_values().collect()),
        GroupChange::Update(update) => Ok(update.open),
        GroupChange::Removed => Ok(Vec::new()),
    }
}

/// Why nothing was copied.
#[derive(Debug)]
enum CopyError {
    /// There is no room. Nothing was written.
    Full,
    /// The segment cannot be read. Nothing was written.
    Unreadable,
    /// It is unknown what was written.
    Failed(io::Error),
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        if is_full(&error) { Self::Full } else { Self::Failed(error) }
    }
}
