//! Looking at all topics without holding up anybody: a shard's lock is held only to copy what it
//! points to, a topic's lock only for that topic, and callers may do something else between slices.

use std::{collections::BinaryHeap, mem::take, sync::Arc, vec};

use super::{
    clock,
    map::{SharedTopic, TopicMap},
};
use crate::{
    model::TopicName,
    stats::{BusStats, TopicStats},
};

/// One page of topic names in order, found slice by slice: made by
/// [`MessageBus::topic_page`](crate::MessageBus::topic_page).
///
/// It keeps no more names than the page has. Topics that come or go meanwhile may be missing or
/// present.
#[derive(Debug)]
pub struct TopicPage {
    map: Arc<TopicMap>,
    prefix: Box<str>,
    after: Box<str>,
    /// Names kept at most: one more than the page has, to know whether there are more.
    most: usize,
    shard: usize,
    names: BinaryHeap<TopicName>,
}

impl TopicPage {
    pub(crate) fn new(map: Arc<TopicMap>, prefix: &str, after: &str, max: usize) -> Self {
        let (prefix, after) = (prefix.into(), after.into());
        let most = max.saturating_add(1);
        Self { map, prefix, after, most, shard: 0, names: BinaryHeap::new() }
    }

    /// Looks at the next few hundred topics, and keeps those of the right names that are `wanted`. Says
    /// whether there are more to look at. `wanted` is called without a lock.
    pub fn step(&mut self, mut wanted: impl FnMut(&TopicName) -> bool) -> bool {
        let names = self.map.names_in(self.shard, |name| {
            let text = name.as_str();
            text > &*self.after && text.starts_with(&*self.prefix) && self.has_use_for(name)
        });
        for name in names.into_iter().flatten() {
            // The page may have filled with better ones in between.
            if self.has_use_for(&name) && wanted(&name) {
                self.names.push(name);
                if self.names.len() > self.most {
                    self.names.pop();
                }
            }
        }
        self.shard += 1;
        self.shard < TopicMap::SHARDS
    }

    /// Whether the name comes before the last one that is kept, or there is space for more.
    fn has_use_for(&self, name: &TopicName) -> bool {
        self.names.len() < self.most || self.names.peek().is_some_and(|last| name < last)
    }

    /// The names, sorted, and whether others come after them.
    pub fn into_names(self) -> (Vec<TopicName>, bool) {
        let most = self.most;
        let mut names = self.names.into_sorted_vec();
        let more = names.len() == most;
        names.truncate(most - 1);
        (names, more)
    }
}

/// The counters of all topics and of the whole bus, slice by slice: made by
/// [`MessageBus::walk_stats`](crate::MessageBus::walk_stats).
#[derive(Debug)]
pub struct StatsWalk {
    map: Arc<TopicMap>,
    shard: usize,
    cells: vec::IntoIter<Arc<SharedTopic>>,
    totals: BusStats,
}

impl StatsWalk {
    /// Topics that are looked at in one go.
    const SLICE: usize = 256;

    pub(crate) fn new(map: Arc<TopicMap>) -> Self {
        Self { map, shard: 0, cells: Vec::new().into_iter(), totals: BusStats::default() }
    }

    /// The counters of the next topics, in no order; `None` when all have been looked at.
    pub fn next_slice(&mut self) -> Option<Vec<TopicStats>> {
        let mut stats = Vec::new();
        self.visit(|topic| stats.push(topic)).then_some(stats)
    }

    /// The counters of the bus: what was looked at so far, and what happened to topics that are gone.
    pub fn totals(&self) -> BusStats {
        BusStats { bytes: self.map.bytes_used(), ..self.totals }
    }

    /// Looks at what is left.
    pub(crate) fn finish(mut self) -> BusStats {
        while self.visit(drop) {}
        self.totals()
    }

    /// Looks at some topics; `false` when all have been looked at.
    fn visit(&mut self, mut each: impl FnMut(TopicStats)) -> bool {
        while self.cells.len() == 0 {
            let Some((retired, cells)) = self.map.cells_in(self.shard) else { return false };
            self.shard += 1;
            // Both are of one moment, so a topic that leaves later is not counted twice: it is
            // looked at here, wherever it is.
            self.totals.counters += retired;
            self.totals.topics += cells.len();
            self.cells = cells.into_iter();
        }
        for cell in self.cells.by_ref().take(Self::SLICE) {
            let mut topic = cell.lock_expired();
            let is_deleted = topic.is_deleted();
            let stats = topic.stats(clock::monotonic());
            drop(topic);
            self.totals.counters += stats.counters;
            self.totals.retained += stats.retained;
            self.totals.subscribers += stats.subscribers;
            if !is_deleted {
                each(stats);
            }
        }
        if self.cells.len() == 0 {
            take(&mut self.cells);
        }
        true
    }
}
