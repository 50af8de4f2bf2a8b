//! One topic of a store.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use msgbus_core::{
    BatchLimit, TopicInfo,
    store::{
        CommitObserver, Gap, Promise, Read, Record, StoreError, Ticket, TopicState, TopicStore,
    },
};
use parking_lot::Mutex;

use crate::{groups::Groups, index::Index, shared::Shared};

/// What the store knows about a topic.
///
/// The order of locks: that of the topic in the bus, then one of these, and none while another is held.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) info: Arc<TopicInfo>,
    observer: Mutex<Option<Weak<dyn CommitObserver>>>,
    last_ticket: AtomicU64,
    pub(crate) index: Mutex<Index>,
    /// Only the writer changes it.
    pub(crate) progress: Mutex<Progress>,
}

/// What was written of a topic.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) written: Written,
    /// The gaps in the ids of messages that were written.
    pub(crate) gaps: Vec<Gap>,
    pub(crate) groups: Groups,
    /// The batch in which it was last touched, and its place in the list of that batch.
    pub(crate) touched: (u64, usize),
}

/// The part of [`Progress`] that is set back when a batch is not written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    /// Identifies the topic in the log. It has none before its first record.
    pub(crate) number: Option<u32>,
    pub(crate) promise: Promise,
    /// The newest segment that has a topic record of it, which is also the newest that has any record of it.
    pub(crate) mentioned_in: Option<u32>,
    /// The state after the last record.
    pub(crate) state: TopicState,
    /// There are records after the last topic record.
    pub(crate) is_dirty: bool,
    pub(crate) reservation: Reservation,
    pub(crate) gaps: usize,
}

/// Ids that may have been seen when a power cut takes the messages that had them. Those are never given again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reservation {
    /// Ids below this one are reserved.
    pub(crate) up_to: u64,
    /// How many were reserved the last time, and when.
    step: u64,
    at: Option<Instant>,
}

impl Reservation {
    const MIN_STEP: u64 = 1000;
    const MAX_STEP: u64 = 1 << 24;

    pub(crate) fn new(up_to: u64) -> Self {
        Self { up_to, step: Self::MIN_STEP, at: None }
    }

    /// Reserves ids from `next_id` on: enough for about a second or more, so that reserving costs little.
    pub(crate) fn extend(&mut self, next_id: u64, now: Instant) {
        self.step = match self.at.map(|at| now.saturating_duration_since(at).as_secs()) {
            Some(0) => self.step * 4,
            Some(1..60) => self.step,
            _ => self.step / 4,
        };
        self.step = self.step.clamp(Self::MIN_STEP, Self::MAX_STEP);
        self.at = Some(now);
        self.up_to = next_id.saturating_add(self.step);
    }
}

impl Topic {
    pub(crate) fn new(
        info: Arc<TopicInfo>,
        promise: Promise,
        observer: Option<Weak<dyn CommitObserver>>,
    ) -> Self {
        let written = Written {
            number: None,
            promise,
            mentioned_in: None,
            state: TopicState::default(),
            is_dirty: false,
            reservation: Reservation::new(0),
            gaps: 0,
        };
        let progress =
            Progress { written, gaps: Vec::new(), groups: Groups::default(), touched: (0, 0) };
        Self::recovered(info, progress, Index::default(), observer)
    }

    pub(crate) fn recovered(
        info: Arc<TopicInfo>,
        progress: Progress,
        index: Index,
        observer: Option<Weak<dyn CommitObserver>>,
    ) -> Self {
        Self {
            info,
            observer: Mutex::new(observer),
            last_ticket: AtomicU64::new(0),
            index: Mutex::new(index),
            progress: Mutex::new(progress),
        }
    }

    /// Sets what the bus says about a recovered topic.
    pub(crate) fn adopt(&self, promise: Promise, observer: Weak<dyn CommitObserver>) {
        self.progress.lock().written.promise = promise;
        *self.observer.lock() = Some(observer);
    }

    /// Called under the topic's lock, so tickets rise in the order of records.
    pub(crate) fn next_ticket(&self) -> Ticket {
        Ticket(self.last_ticket.fetch_add(1, Relaxed) + 1)
    }

    /// The observer. No lock is held when it is called.
    pub(crate) fn observer(&self) -> Option<Arc<dyn CommitObserver>> {
        self.observer.lock().as_ref().and_then(Weak::upgrade)
    }
}

/// What the bus holds of a topic.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) topic: Arc<Topic>,
    pub(crate) shared: Arc<Shared>,
}

impl TopicStore for Handle {
    fn append(&self, record: Record, state: TopicState) -> Result<Ticket, StoreError> {
        self.shared.buffer.push(&self.topic, record, state)
    }

    fn release(&self, first_id: u64) {
        self.shared.release(&self.topic, first_id);
    }

    fn read(&self, from_id: u64, limit: BatchLimit) -> Read {
        self.shared.readers.read(&self.topic, from_id, limit)
    }
}
