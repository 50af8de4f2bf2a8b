//! Walks over all topics that hold up nobody: a shard's lock is held only to copy pointers, and a topic's
//! lock only for that topic. Callers may do something else between slices.

use std::{collections::BinaryHeap, mem::take, sync::Arc, vec};

use super::{
    clock,
    map::{SharedTopic, TopicMap},
};
use crate::{
    model::TopicName,
    stats::{BusStats, TopicStats},
};

/// One page of topic names in order, found slice by slice. See
/// [`MessageBus::topic_page`](crate::MessageBus::topic_page).
///
/// It keeps no more names than the page has. Topics that are created or removed meanwhile may be missing or
/// present.
#[derive(Debug)]
pub struct TopicPage {
    map: Arc<TopicMap>,
    prefix: Box<str>,
    after: Box<str>,
    /// The most names to keep: one more than the page has, to know whether there are more.
    max_kept: usize,
    shard: usize,
    names: BinaryHeap<TopicName>,
}

impl TopicPage {
    pub(crate) fn new(map: Arc<TopicMap>, prefix: &str, after: &str, max: usize) -> Self {
        let (prefix, after) = (prefix.into(), after.into());
        let max_kept = max.saturating_add(1);
        Self { map, prefix, after, max_kept, shard: 0, names: BinaryHeap::new() }
    }

    /// Visits the next few hundred topics, and keeps the matching names that are `wanted`. Returns whether
    /// there are more topics to visit. `wanted` is called without a lock.
    pub fn step(&mut self, mut wanted: impl FnMut(&TopicName) -> bool) -> bool {
        let names = self.map.names_in(self.shard, |name| {
            let text = name.as_str();
            text > &*self.after && text.starts_with(&*self.prefix) && self.belongs(name)
        });
        for name in names.into_iter().flatten() {
            // The page may have filled with lower names in between.
            if self.belongs(&name) && wanted(&name) {
                self.names.push(name);
                if self.names.len() > self.max_kept {
                    self.names.pop();
                }
            }
        }
        self.shard += 1;
        self.shard < TopicMap::SHARDS
    }

    /// Whether the page is not full, or the name comes before its last one.
    fn belongs(&self, name: &TopicName) -> bool {
        self.names.len() < self.max_kept || self.names.peek().is_some_and(|last| name < last)
    }

    /// The names in order, and whether there are more after them.
    pub fn into_names(self) -> (Vec<TopicName>, bool) {
        let max_kept = self.max_kept;
        let mut names = self.names.into_sorted_vec();
        let more = names.len() == max_kept;
        names.truncate(max_kept - 1);
        (names, more)
    }
}

/// The counters of all topics and of the whole bus, read slice by slice. See
/// [`MessageBus::walk_stats`](crate::MessageBus::walk_stats).
#[derive(Debug)]
pub struct StatsWalk {
    map: Arc<TopicMap>,
    shard: usize,
    topics: vec::IntoIter<Arc<SharedTopic>>,
    totals: BusStats,
}

impl StatsWalk {
    /// Topics visited in one step.
    const SLICE: usize = 256;

    pub(crate) fn new(map: Arc<TopicMap>) -> Self {
        Self { map, shard: 0, topics: Vec::new().into_iter(), totals: BusStats::default() }
    }

    /// The counters of the next topics, in no order. `None` after the last topic.
    pub fn next_slice(&mut self) -> Option<Vec<TopicStats>> {
        let mut stats = Vec::new();
        self.visit(|topic| stats.push(topic)).then_some(stats)
    }

    /// The totals of the topics visited so far, of all removed topics and of all patterns.
    pub fn totals(&self) -> BusStats {
        let mut totals = BusStats { bytes: self.map.bytes_used(), ..self.totals };
        self.map.patterns.add_to(&mut totals);
        totals
    }

    /// Visits the remaining topics and returns the totals.
    pub(crate) fn finish(mut self) -> BusStats {
        while self.visit(drop) {}
        self.totals()
    }

    /// Visits some topics. Returns `false` after the last one.
    fn visit(&mut self, mut each: impl FnMut(TopicStats)) -> bool {
        while self.topics.len() == 0 {
            let Some((retired, topics)) = self.map.topics_in(self.shard) else { return false };
            self.shard += 1;
            // Both are from one moment. A topic that is removed later is not counted twice: it is visited
            // here although the map no longer has it.
            self.totals.counters += retired;
            self.totals.topics += topics.len();
            self.topics = topics.into_iter();
        }
        for topic in self.topics.by_ref().take(Self::SLICE) {
            let mut locked = topic.lock_and_expire();
            let is_deleted = locked.is_deleted();
            let stats = locked.stats(clock::monotonic());
            drop(locked);
            self.totals.counters += stats.counters;
            self.totals.retained += stats.retained;
            self.totals.subscribers += stats.subscribers;
            if !is_deleted {
                each(stats);
            }
        }
        if self.topics.len() == 0 {
            take(&mut self.topics);
        }
        true
    }
}
