//! What one turn of the writer writes, and whom it tells.

use std::sync::Arc;

use msgbus_core::store::{Promise, StoreError, Ticket};

use crate::{
    buffer::Queued,
    index::Location,
    topic::{Progress, Topic, Written},
};

/// Records that are written together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Differs from that of all other batches.
    number: u64,
    pub(crate) queued: Vec<Queued>,
    /// The topics of these records, each once.
    pub(crate) touched: Vec<Touched>,
    /// The places of all messages in `queued`, in order.
    pub(crate) locations: Vec<Location>,
    /// The places of all changes to groups in `queued`, in order.
    pub(crate) groups: Vec<GroupPlace>,
}

/// Where a record of a group is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupPlace {
    pub(crate) place: Location,
    /// Its size in bytes, with padding.
    pub(crate) size: u64,
}

/// A topic with records in a batch.
#[derive(Debug)]
pub(crate) struct Touched {
    pub(crate) topic: Arc<Topic>,
    /// What was written of it before.
    pub(crate) before: Written,
    /// The last of its tickets.
    pub(crate) ticket: Option<Ticket>,
    /// It is told after a sync.
    pub(crate) waits_for_sync: bool,
    pub(crate) is_deleted: bool,
    pub(crate) is_told: bool,
}

impl Batch {
    pub(crate) fn begin(&mut self) {
        self.number += 1;
        self.queued.clear();
        self.touched.clear();
        self.locations.clear();
        self.groups.clear();
    }

    /// The entry of a topic, which is added if it is missing.
    pub(crate) fn touch(&mut self, topic: &Arc<Topic>, progress: &mut Progress) -> &mut Touched {
        let (batch, index) = progress.touched;
        let index = if batch == self.number { index } else { self.touched.len() };
        if index == self.touched.len() {
            progress.touched = (self.number, index);
            progress.written.gaps = progress.gaps.len();
            self.touched.push(Touched {
                topic: Arc::clone(topic),
                before: progress.written,
                ticket: None,
                waits_for_sync: progress.written.promise == Promise::Synced,
                is_deleted: false,
                is_told: false,
            });
        }
        &mut self.touched[index]
    }

    /// Forgets what was encoded.
    pub(crate) fn undo(&mut self) {
        for touched in &self.touched {
            let mut progress = touched.topic.progress.lock();
            progress.gaps.truncate(touched.before.gaps);
            progress.groups.undo();
            // The bus may change the promise only before it uses the topic.
            progress.written = touched.before;
        }
    }

    /// Whether a topic waits for a sync.
    pub(crate) fn waits_for_sync(&self) -> bool {
        self.touched.iter().any(|touched| touched.waits_for_sync && !touched.is_told)
    }

    /// Tells the topics, those that wait for a sync or the others. No lock is held.
    pub(crate) fn tell_committed(&mut self, after_sync: bool) {
        for touched in &mut self.touched {
            if touched.is_told || touched.waits_for_sync != after_sync {
                continue;
            }
            touched.is_told = true;
            if let (Some(ticket), Some(observer)) = (touched.ticket, touched.topic.observer()) {
                observer.committed(ticket);
            }
        }
    }

    /// Tells each topic with records here that are not committed, or among `others`, that they are refused.
    pub(crate) fn tell_refused<'a>(
        &mut self,
        others: impl Iterator<Item = &'a Queued>,
        error: StoreError,
    ) {
        let mut told: Vec<Arc<Topic>> = Vec::new();
        self.number += 1;
        let here = self.touched.iter().filter(|touched| !touched.is_told);
        let here = here.filter(|touched| touched.ticket.is_some()).map(|touched| &touched.topic);
        for topic in here.chain(others.map(|queued| &queued.topic)) {
            let mut progress = topic.progress.lock();
            if progress.touched.0 != self.number {
                progress.touched = (self.number, 0);
                told.push(Arc::clone(topic));
            }
        }
        for topic in told {
            if let Some(observer) = topic.observer() {
                observer.refused(error);
            }
        }
    }
}
