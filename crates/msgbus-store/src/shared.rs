//! What the topics, the writer and the readers of a store share.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use msgbus_core::{
    TopicInfo,
    store::{CommitObserver, GroupChange, Promise, StoreError},
};

use crate::{
    batch::GroupPlace,
    buffer::{Admission, Buffer},
    index::Location,
    reader::Readers,
    segments::{Counter, Segment, Segments},
    stats::WriterStats,
    topic::{Handle, Topic},
};

/// What the topics, the writer and the readers of a store share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) buffer: Buffer,
    pub(crate) segments: Arc<Segments>,
    pub(crate) readers: Arc<Readers>,
    pub(crate) stats: WriterStats,
    /// How many messages were released.
    released: AtomicU64,
}

impl Shared {
    /// After how many released messages the writer looks whether there is something to clean up.
    const RELEASED_UNTIL_POKE: u64 = 1 << 16;

    pub(crate) fn new(segments: Arc<Segments>, queue_bytes: usize) -> Self {
        Self {
            buffer: Buffer::new(queue_bytes),
            readers: Arc::new(Readers::new(Arc::clone(&segments))),
            segments,
            stats: WriterStats::default(),
            released: AtomicU64::new(0),
        }
    }

    /// Makes a topic, which is not in the log before its first record.
    pub(crate) fn create(
        self: &Arc<Self>,
        info: &Arc<TopicInfo>,
        promise: Promise,
        observer: Weak<dyn CommitObserver>,
    ) -> Result<Handle, StoreError> {
        if let Admission::Nothing(error) = self.buffer.admission() {
            return Err(error);
        }
        let topic = Arc::new(Topic::new(Arc::clone(info), promise, Some(observer)));
        Ok(Handle { topic, shared: Arc::clone(self) })
    }

    /// Adds messages of a topic that were written.
    pub(crate) fn add_messages<'a>(
        &self,
        topic: &Topic,
        messages: impl Iterator<Item = (u64, &'a Location)>,
    ) {
        let mut segment: Option<Arc<Segment>> = None;
        let mut index = topic.index.lock();
        for (id, &place) in messages {
            if segment.as_ref().is_none_or(|segment| segment.number() != place.segment) {
                segment = self.segments.get(place.segment);
            }
            if let Some(segment) = &segment {
                segment.messages.fetch_add(1, Relaxed);
                // Before the message can be released.
                segment.live.fetch_add(1, Relaxed);
                if !index.push(id, place) {
                    segment.live.fetch_sub(1, Relaxed);
                }
            }
        }
    }

    /// Notes that a message was copied.
    pub(crate) fn move_message(&self, topic: &Topic, id: u64, from: Location, to: Location) {
        let Some(segment) = self.segments.get(to.segment) else { return };
        segment.messages.fetch_add(1, Relaxed);
        // Before the message can be released.
        segment.live.fetch_add(1, Relaxed);
        let moved = topic.index.lock().moved(id, from, to);
        let unused = if moved { from.segment } else { to.segment };
        self.segments.released(unused, 1, |segment| &segment.live);
    }

    /// Applies what was written of a group.
    pub(crate) fn change_group(
        &self,
        topic: &Topic,
        number: u8,
        change: &GroupChange,
        record: GroupPlace,
    ) {
        let place = record.place;
        let mut gone = PerSegment::new(&self.segments, |segment| &segment.open);
        let mut forget = |place| gone.count(place);
        let mut index = topic.index.lock();
        match change {
            GroupChange::Set(group) => {
                self.count_open(record, group.open.len());
                index.open.remove(number, &mut forget);
                for id in group.open.keys() {
                    index.open.set(number, *id, place, &mut forget);
                }
            }
            GroupChange::Update(update) => {
                self.count_open(record, update.open.len());
                for message in &update.open {
                    index.open.set(number, message.id, place, &mut forget);
                }
                for id in &update.settled {
                    index.open.settle(number, *id, &mut forget);
                }
            }
            GroupChange::Removed => {
                self.count_open(record, 0);
                index.open.remove(number, &mut forget);
            }
        }
        gone.flush();
    }

    /// Notes that open messages of a group were copied.
    pub(crate) fn move_open(
        &self,
        topic: &Topic,
        number: u8,
        ids: &[u64],
        from: Location,
        record: GroupPlace,
    ) {
        let mut gone = PerSegment::new(&self.segments, |segment| &segment.open);
        let mut index = topic.index.lock();
        self.count_open(record, ids.len());
        for id in ids {
            index.open.moved(number, *id, (from, record.place), &mut |place| gone.count(place));
        }
        gone.flush();
    }

    /// Counts a record of a group and its open messages, before they can be released.
    fn count_open(&self, record: GroupPlace, open: usize) {
        if let Some(segment) = self.segments.get(record.place.segment) {
            segment.count_group_record(record.size, open);
            segment.open.fetch_add(open as u64, Relaxed);
        }
    }

    /// Forgets the messages of a topic below an id.
    pub(crate) fn release(&self, topic: &Topic, first_id: u64) {
        let mut gone = PerSegment::new(&self.segments, |segment| &segment.live);
        let mut open = PerSegment::new(&self.segments, |segment| &segment.open);
        let mut index = topic.index.lock();
        index.release(first_id, |place| gone.count(place));
        index.open.release(first_id, &mut |place| open.count(place));
        drop(index);
        self.account(gone);
        self.account(open);
    }

    /// Forgets all messages of a topic.
    pub(crate) fn release_all(&self, topic: &Topic) {
        self.release(topic, u64::MAX);
    }

    fn account(&self, mut gone: PerSegment<'_>) {
        gone.flush();
        let before = self.released.fetch_add(gone.total, Relaxed);
        let mark = |count: u64| count / Self::RELEASED_UNTIL_POKE;
        if gone.emptied || mark(before) != mark(before + gone.total) {
            self.buffer.poke();
        }
    }
}

/// Counts messages that are gone, with one look-up for consecutive messages of a segment.
#[derive(Debug)]
struct PerSegment<'a> {
    segments: &'a Segments,
    counter: Counter,
    current: u32,
    count: u64,
    total: u64,
    /// A segment has none of them any more.
    emptied: bool,
}

impl<'a> PerSegment<'a> {
    fn new(segments: &'a Segments, counter: Counter) -> Self {
        Self { segments, counter, current: 0, count: 0, total: 0, emptied: false }
    }

    fn count(&mut self, location: Location) {
        if location.segment != self.current {
            self.flush();
            self.current = location.segment;
        }
        self.count += 1;
        self.total += 1;
    }

    fn flush(&mut self) {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            self.emptied |= self.segments.released(self.current, count, self.counter);
        }
    }
}
