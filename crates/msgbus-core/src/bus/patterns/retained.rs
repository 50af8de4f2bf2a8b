//! The messages that the topics of a pattern retain, for subscriptions that start in the past.

use std::sync::Arc;

use super::SharedPattern;
use crate::{
    bus::{clock, map::SharedTopic},
    derived::Reference,
};

/// References to the latest messages that the topics retain, up to a limit.
#[derive(Debug)]
pub(super) struct Retained {
    references: Vec<Reference>,
    limit: usize,
    is_cut: bool,
}

impl Retained {
    /// Messages that are visited under one lock.
    const SLICE: usize = 1024;

    pub(super) fn new(limit: usize) -> Self {
        Self { references: Vec::new(), limit, is_cut: false }
    }

    /// Adds the messages of a topic that a pattern was not given. Returns how many it has visited.
    pub(super) fn add(&mut self, topic: &SharedTopic, pattern: &Arc<SharedPattern>) -> usize {
        let (mut from_id, mut visited) = (0, 0);
        loop {
            let locked = topic.lock();
            let now = clock::monotonic();
            let Some(retained) = locked.retained_before(pattern, from_id, now) else { break };
            let before = self.references.len();
            for (id, reference) in retained.take(Self::SLICE) {
                self.references.push(reference);
                from_id = id + 1;
            }
            drop(locked);
            let added = self.references.len() - before;
            visited += added;
            if self.references.len() > 2 * self.limit {
                self.sort_and_cut();
            }
            if added < Self::SLICE {
                break;
            }
        }
        visited
    }

    /// Oldest first. The order within a topic is kept, because the time of creation never decreases there.
    fn sort_and_cut(&mut self) {
        self.references.sort_by_key(Reference::created);
        let excess = self.references.len().saturating_sub(self.limit);
        self.is_cut |= excess > 0;
        self.references.drain(..excess);
    }

    /// The references, oldest first, and whether older ones were left out.
    pub(super) fn finish(mut self) -> (Vec<Reference>, bool) {
        self.sort_and_cut();
        (self.references, self.is_cut)
    }
}
