//! The writer: the only one who writes to the log.
//!
//! It works in turns. Each takes what was appended so far, writes all of it at once, syncs once if a topic asks for it,
//! and tells each topic once. Meanwhile the next turn's work gathers, so under load a sync serves many publishers, and
//! nobody waits for a timer.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use msgbus_core::{
    Message,
    store::{Promise, Record, StoreError},
};

use crate::{
    batch::{Batch, Touched},
    buffer::{Admission, Queued},
    compaction::Compaction,
    disk::is_full,
    encode::{self, TopicLog},
    shared::Shared,
    tail::Tail,
    topic::Topic,
};

/// Writes to the log.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tail: Tail,
    /// Topics with records in the log, by their number.
    pub(crate) topics: HashMap<u32, Arc<Topic>>,
    pub(crate) last_number: u32,
    /// What was taken out of the buffer and is not written.
    backlog: VecDeque<Queued>,
    spare: Vec<Queued>,
    pub(crate) batch: Batch,
    pub(crate) compaction: Compaction,
    /// When what was written must be synced.
    pub(crate) sync_due: Option<Instant>,
    /// When the log is to say how far it was synced, if nothing is written before.
    mark_due: Option<Instant>,
    /// When to look for room again.
    retry_due: Option<Instant>,
    has_failed: bool,
}

/// When the next turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// There is more to do.
    Now,
    /// When something is appended, or at a time.
    Wait(Option<Instant>),
}

impl Writer {
    /// The size of what is written at once, in bytes: large enough to make syncs cheap, and small enough to keep the
    /// first publisher from waiting for the last.
    const BATCH: usize = 4 << 20;
    /// Batches of this size or more, in bytes, are synced as they are, see [`Tail::prepare`].
    const SMALL_BATCH: usize = 128 << 10;
    /// How long to wait before looking for room again.
    const RETRY: Duration = Duration::from_secs(1);
    /// How long to wait for a record that says how far the log was synced, before one is written for that alone.
    const MARK: Duration = Duration::from_secs(1);

    pub(crate) fn new(
        shared: Arc<Shared>,
        tail: Tail,
        topics: HashMap<u32, Arc<Topic>>,
        last_number: u32,
    ) -> Self {
        Self {
            shared,
            tail,
            topics,
            last_number,
            backlog: VecDeque::new(),
            spare: Vec::new(),
            batch: Batch::default(),
            compaction: Compaction::default(),
            sync_due: None,
            mark_due: None,
            retry_due: None,
            has_failed: false,
        }
    }

    /// Does what there is to do.
    pub(crate) fn turn(&mut self, now: Instant) -> Next {
        self.shared.buffer.take(&mut self.backlog, &mut self.spare);
        if self.has_failed {
            self.give_up(StoreError::Failed, now);
            return Next::Wait(None);
        }
        match self.work(now) {
            Err(error) => {
                self.fail(&error);
                self.give_up(StoreError::Failed, now);
                Next::Wait(None)
            }
            Ok(has_more) if has_more || !self.backlog.is_empty() => Next::Now,
            Ok(_) => {
                self.shrink();
                let due = [self.sync_due, self.mark_due, self.retry_due];
                Next::Wait(due.into_iter().flatten().min())
            }
        }
    }

    /// Gives back what a burst has taken.
    fn shrink(&mut self) {
        /// The number of records for which space is kept.
        const KEPT: usize = 4096;
        if self.spare.capacity() > KEPT || self.backlog.capacity() > KEPT {
            self.spare.shrink_to(KEPT);
            self.backlog.shrink_to(KEPT);
            self.batch.queued.shrink_to(KEPT);
            self.batch.touched.shrink_to(KEPT);
            self.batch.locations.shrink_to(KEPT);
        }
    }

    /// Returns whether there is more to do. Fails when the disk does.
    fn work(&mut self, now: Instant) -> io::Result<bool> {
        self.look_for_room(now)?;
        let before = self.shared.stats.written_bytes.load(Relaxed);
        if !self.backlog.is_empty() {
            match self.write_batch(now) {
                Err(BatchError::Full) => self.give_up(StoreError::Full, now),
                Err(BatchError::Failed(error)) => return Err(error),
                Ok(()) => {}
            }
        }
        if self.sync_due.is_some_and(|due| due <= now) {
            self.sync()?;
        }
        let written = self.shared.stats.written_bytes.load(Relaxed) - before;
        let oldest = self.shared.segments.oldest_number();
        let has_more = self.compact(written, now)?;
        if self.is_full() && self.shared.segments.oldest_number() != oldest {
            self.retry_due = Some(now);
            self.look_for_room(now)?;
        }
        self.mark(now)?;
        Ok(has_more)
    }

    fn write_batch(&mut self, now: Instant) -> Result<(), BatchError> {
        let snapshot = self.tail.snapshot();
        self.batch.begin();
        if let Err(error) = self.encode_backlog(now) {
            self.batch.undo();
            self.tail.restore(snapshot);
            return Err(if is_full(&error) { BatchError::Full } else { BatchError::Failed(error) });
        }
        self.tail.flush(&self.shared.stats)?;
        self.settle(false);
        self.batch.tell_committed(false);
        if self.batch.waits_for_sync() {
            let size: usize = self.batch.queued.iter().map(|queued| queued.size).sum();
            if size < Self::SMALL_BATCH {
                self.tail.prepare()?;
            }
            self.sync()?;
            self.settle(true);
            self.batch.tell_committed(true);
        } else {
            self.plan_sync(now);
        }
        self.shared.buffer.done(self.batch.queued.iter().map(|queued| queued.size).sum());
        self.batch.begin();
        Ok(())
    }

    fn encode_backlog(&mut self, now: Instant) -> io::Result<()> {
        let mut size = 0;
        while let Some(queued) = self.backlog.pop_front() {
            size += queued.size;
            let result = encode::encode(self, &queued, now);
            self.batch.queued.push(queued);
            result?;
            if size >= Self::BATCH {
                break;
            }
        }
        Ok(())
    }

    /// Notes what was written of the topics that wait for a sync, or of the others.
    fn settle(&mut self, after_sync: bool) {
        let (batch, shared) = (&self.batch, &self.shared);
        let mut locations = &batch.locations[..];
        let mut groups = batch.groups.iter();
        for Queued { topic, record, .. } in &batch.queued {
            let is_settled =
                || batch.touched[topic.progress.lock().touched.1].waits_for_sync == after_sync;
            match record {
                Record::Messages(messages) => {
                    let (own, rest) = locations.split_at(messages.len().min(locations.len()));
                    locations = rest;
                    if is_settled() {
                        shared.add_messages(topic, messages.iter().map(Message::id).zip(own));
                    }
                }
                Record::Group { number, change } => {
                    if let Some(place) = groups.next()
                        && is_settled()
                    {
                        shared.change_group(topic, *number, change, *place);
                    }
                }
                Record::Pulled | Record::Deleted => {}
            }
        }
        self.settle_topics(|touched| touched.waits_for_sync == after_sync);
    }

    /// Notes in which segments the newest records of topics are.
    pub(crate) fn settle_topics(&mut self, which: impl Fn(&Touched) -> bool) {
        let touched = std::mem::take(&mut self.batch.touched);
        for touched in touched.iter().filter(|touched| which(touched)) {
            self.settle_topic(&touched.topic, touched.before.mentioned_in, touched.is_deleted);
        }
        self.batch.touched = touched;
    }

    fn settle_topic(&mut self, topic: &Arc<Topic>, before: Option<u32>, is_deleted: bool) {
        let (written, groups) = {
            let mut progress = topic.progress.lock();
            (progress.written, progress.groups.settle())
        };
        let segments = &self.shared.segments;
        let now = if is_deleted { None } else { written.mentioned_in };
        segments.moved(before, now, |segment| &segment.topics);
        for (before, now) in groups {
            segments.moved(before, now, |segment| &segment.groups);
        }
        let Some(number) = written.number else { return };
        if is_deleted {
            self.topics.remove(&number);
            self.shared.release_all(topic);
        } else {
            self.topics.entry(number).or_insert_with(|| Arc::clone(topic));
        }
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.tail.sync(&self.shared.stats)?;
        self.sync_due = None;
        Ok(())
    }

    /// Decides when what was just written must be synced.
    fn plan_sync(&mut self, now: Instant) {
        let intervals = self.batch.touched.iter().filter_map(|touched| {
            match touched.topic.progress.lock().written.promise {
                Promise::Written { sync_every } => Some(sync_every),
                Promise::Memory | Promise::Synced => None,
            }
        });
        let due = intervals.min().and_then(|interval| now.checked_add(interval));
        self.sync_due = [self.sync_due, due].into_iter().flatten().min();
    }

    /// Says in the log how far it was synced, when nothing else has done so for a while.
    fn mark(&mut self, now: Instant) -> io::Result<()> {
        if !self.tail.is_unmarked() {
            self.mark_due = None;
        } else if *self.mark_due.get_or_insert(now + Self::MARK) <= now {
            self.tail.mark(&self.shared.stats)?;
            self.mark_due = None;
        }
        Ok(())
    }

    /// While the disk is full: looks whether there is room again.
    fn look_for_room(&mut self, now: Instant) -> io::Result<()> {
        if self.retry_due.is_none_or(|due| due > now) {
            return Ok(());
        }
        match self.tail.make_room() {
            Ok(()) => {
                self.retry_due = None;
                self.shared.buffer.admit(Admission::All);
            }
            Err(error) if is_full(&error) => self.retry_due = Some(now + Self::RETRY),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether the disk is full.
    pub(crate) fn is_full(&self) -> bool {
        self.retry_due.is_some()
    }

    fn fail(&mut self, error: &io::Error) {
        self.has_failed = true;
        self.sync_due = None;
        self.shared.stats.failure.lock().get_or_insert_with(|| error.to_string());
    }

    /// Refuses everything that is not committed.
    fn give_up(&mut self, error: StoreError, now: Instant) {
        let buffer = &self.shared.buffer;
        self.backlog.extend(buffer.refuse(error));
        let refused = self.backlog.iter().chain(&self.batch.queued);
        let size = refused.map(|queued| queued.size).sum();
        let had_messages =
            self.batch.queued.iter().any(|queued| matches!(queued.record, Record::Messages(_)));
        self.batch.tell_refused(self.backlog.iter(), error);
        self.batch.begin();
        self.backlog.clear();
        buffer.done(size);
        // Only now: what a topic appends before it is told would be refused with the rest.
        if error == StoreError::Full {
            self.retry_due = Some(now + Self::RETRY);
            let rest = if had_messages {
                Admission::WithoutMessages
            } else {
                Admission::Nothing(StoreError::Full)
            };
            buffer.admit(rest);
        }
    }

    /// Writes everything that is queued, the state of each topic, and that the run ended cleanly.
    ///
    /// # Errors
    /// When something is not kept. Its topics have been told.
    pub(crate) fn finish(&mut self, now: Instant) -> Result<(), StoreError> {
        while self.turn(now) == Next::Now && !self.backlog.is_empty() {}
        let result = if self.has_failed { Err(StoreError::Failed) } else { self.stop(now) };
        self.shared.buffer.refuse(StoreError::Closed);
        result
    }

    fn stop(&mut self, now: Instant) -> Result<(), StoreError> {
        let result = match self.write_states() {
            // Without them, the counters are those of the last topic records.
            Err(error) if is_full(&error) => Ok(()),
            result => result,
        };
        result.and_then(|()| self.tail.stop(&self.shared.stats)).map_err(|error| {
            self.fail(&error);
            self.give_up(StoreError::Failed, now);
            StoreError::Failed
        })
    }

    /// Writes the states of topics that have changed since their last topic records, and syncs.
    pub(crate) fn write_states(&mut self) -> io::Result<()> {
        let mut topics: Vec<_> = self.topics.values().cloned().collect();
        topics.sort_by_key(|topic| topic.progress.lock().written.number);
        let snapshot = self.tail.snapshot();
        self.batch.begin();
        let encoded = self.encode_states(&topics);
        if encoded.is_err() {
            self.batch.undo();
            self.tail.restore(snapshot);
        } else {
            self.tail.flush(&self.shared.stats)?;
            self.settle_topics(|_| true);
        }
        self.batch.begin();
        if self.tail.is_unsynced() {
            self.sync()?;
        }
        encoded
    }

    /// Encodes the states of topics that have changed since their last topic records.
    fn encode_states(&mut self, topics: &[Arc<Topic>]) -> io::Result<()> {
        for topic in topics {
            let progress = &mut *topic.progress.lock();
            let Some(number) = progress.written.number else { continue };
            let released = topic.index.lock().released();
            if progress.written.is_dirty || released > progress.written.state.first_id {
                self.batch.touch(topic, progress);
                let mut log = TopicLog { tail: &mut self.tail, topic, progress, number };
                log.mention(true)?;
            }
        }
        Ok(())
    }
}

/// Why a batch was not written.
#[derive(Debug)]
enum BatchError {
    /// There is no room. Nothing was written.
    Full,
    /// It is unknown what was written.
    Failed(io::Error),
}

impl From<io::Error> for BatchError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}
