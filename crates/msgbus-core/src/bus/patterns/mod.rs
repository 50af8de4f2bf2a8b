//! Patterns: the derived logs that matching topics feed.
//!
//! Lock order: a shard, then the list of patterns; a topic, then a derived log; the list of patterns, then a derived
//! log. A derived log is locked last.

mod feed;
mod follow;
mod registry;
mod retained;
mod stored_pages;

use std::{
    collections::VecDeque,
    sync::{
        Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use parking_lot::{Mutex, MutexGuard};

pub(crate) use self::stored_pages::StoredPages;
pub(super) use self::{feed::feed, registry::Patterns};
use super::{clock, map::TopicMap};
use crate::{
    derived::{DerivedLog, Reference},
    model::TopicPattern,
    topic::{CursorKey, Wakers},
};

/// A pattern, and its derived log under its lock. Subscriptions share it with the topics that feed it.
#[derive(Debug)]
pub(crate) struct SharedPattern {
    pattern: TopicPattern,
    /// The pattern as text.
    name: Box<str>,
    epoch: u64,
    pub(super) map: Weak<TopicMap>,
    log: Mutex<DerivedLog>,
    /// Whether every matching topic feeds the log.
    is_complete: AtomicBool,
    /// Whether the log is no longer in use. Topics that feed it look here without its lock.
    is_dropped: AtomicBool,
}

impl SharedPattern {
    fn new(pattern: &TopicPattern, epoch: u64, map: Weak<TopicMap>, log: DerivedLog) -> Self {
        Self {
            name: pattern.to_string().into(),
            pattern: pattern.clone(),
            epoch,
            map,
            log: Mutex::new(log),
            is_complete: AtomicBool::new(false),
            is_dropped: AtomicBool::new(false),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, DerivedLog> {
        self.log.lock()
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.is_dropped.load(Relaxed)
    }

    /// Removes a cursor.
    pub(crate) fn unsubscribe(&self, key: CursorKey) {
        let waker = self.lock().unsubscribe(key, clock::monotonic());
        drop(waker);
    }

    /// Ends the log. The references that it had are to be dropped without a lock.
    #[must_use]
    fn end(&self) -> VecDeque<Reference> {
        self.is_dropped.store(true, Relaxed);
        self.lock().end()
    }

    /// Lets subscriptions end after the last message.
    fn close(&self) -> Wakers {
        let mut log = self.lock();
        log.close();
        Wakers { parked: log.take_parked(Vec::new), waiter: None }
    }
}
