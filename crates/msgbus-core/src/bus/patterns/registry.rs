//! The patterns that are followed.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};

use super::SharedPattern;
use crate::{
    bus::{clock, map::TopicMap, wake_queue::WakeQueue},
    derived::{DerivedLog, Reference},
    error::SubscribeError,
    model::{MonotonicTime, TopicName, TopicPattern},
    stats::{BusStats, Counters},
    topic::{Reservation, Topic},
};

/// The patterns that are followed, or that were followed in the last minutes.
#[derive(Debug, Default)]
pub(in crate::bus) struct Patterns {
    all: RwLock<HashMap<TopicPattern, Arc<SharedPattern>>>,
    /// The counters of those that were dropped.
    retired: Mutex<Counters>,
}

impl Patterns {
    /// Every publish costs a little for each pattern that matches its topic.
    const MAX: usize = 1024;
    /// How long a derived log is kept after its last subscription has ended, so that a client can resume.
    const IDLE: Duration = Duration::from_secs(300);

    pub(super) fn find(&self, pattern: &TopicPattern) -> Option<Arc<SharedPattern>> {
        self.all.read().get(pattern).cloned()
    }

    /// The pattern, which is created if there is none.
    ///
    /// # Errors
    /// When too many are followed.
    pub(super) fn get_or_create(
        &self,
        map: &TopicMap,
        pattern: &TopicPattern,
    ) -> Result<Arc<SharedPattern>, SubscribeError> {
        if let Some(known) = self.find(pattern) {
            return Ok(known);
        }
        let mut dropped = None;
        let mut all = self.all.write();
        if let Some(known) = all.get(pattern) {
            return Ok(Arc::clone(known));
        }
        if all.len() >= Self::MAX {
            dropped = self.drop_longest_unused(&mut all);
            if dropped.is_none() {
                return Err(SubscribeError::TooManyPatterns { limit: Self::MAX });
            }
        }
        let now = clock::now();
        let reservation = Reservation::new(Arc::clone(&map.budget));
        let capacity = map.options().topic.max_messages;
        let log = DerivedLog::new(capacity, reservation, now.monotonic);
        let shared = SharedPattern::new(pattern, map.next_epoch(now), map.own.clone(), log);
        let shared = Arc::new(shared);
        all.insert(pattern.clone(), Arc::clone(&shared));
        drop(all);
        drop(dropped);
        Ok(shared)
    }

    /// Lets a new topic feed the patterns that match it. The caller holds the topic's shard, see [`TopicMap::entry`], so
    /// that a pattern that is not seen here finds the topic in the map.
    pub(in crate::bus) fn attach(&self, name: &TopicName, topic: &mut Topic) {
        let all = self.all.read();
        for shared in all.values().filter(|shared| shared.pattern.matches(name)) {
            topic.attach(shared);
        }
    }

    /// Whether a pattern matches a topic.
    pub(in crate::bus) fn matches(&self, name: &TopicName) -> bool {
        self.all.read().keys().any(|pattern| pattern.matches(name))
    }

    /// Drops the derived logs that nobody has followed for some minutes, and frees memory of the others.
    pub(in crate::bus) fn sweep(&self, now: MonotonicTime) {
        let all: Vec<_> = self.all.read().values().map(Arc::clone).collect();
        for shared in all {
            let mut log = shared.lock();
            log.sweep(now);
            let is_idle = is_unused(&log, now, Self::IDLE);
            drop(log);
            if is_idle {
                let mut all = self.all.write();
                // Somebody may follow it again by now.
                let is_idle = is_unused(&shared.lock(), now, Self::IDLE);
                let references = is_idle.then(|| self.remove(&mut all, &shared));
                drop(all);
                drop(references);
            }
        }
    }

    /// Removes a pattern and ends its log. Returns what is to be dropped without a lock.
    fn remove(
        &self,
        all: &mut HashMap<TopicPattern, Arc<SharedPattern>>,
        shared: &SharedPattern,
    ) -> VecDeque<Reference> {
        all.remove(&shared.pattern);
        *self.retired.lock() += shared.lock().totals().0;
        shared.end()
    }

    /// Makes room for another pattern.
    fn drop_longest_unused(
        &self,
        all: &mut HashMap<TopicPattern, Arc<SharedPattern>>,
    ) -> Option<VecDeque<Reference>> {
        let unused =
            all.values().filter_map(|shared| Some((shared.lock().unused_since()?, shared)));
        let (_, oldest) = unused.min_by_key(|(since, _)| *since)?;
        let oldest = Arc::clone(oldest);
        Some(self.remove(all, &oldest))
    }

    /// Lets all subscriptions end after the last message. New ones are refused by then.
    pub(in crate::bus) fn close(&self, wake_queue: &WakeQueue) {
        let all: Vec<_> = self.all.read().values().map(Arc::clone).collect();
        for shared in all {
            wake_queue.wake(shared.close());
        }
    }

    /// Adds what patterns have to the totals of a bus.
    pub(in crate::bus) fn add_to(&self, totals: &mut BusStats) {
        let all = self.all.read();
        totals.patterns = all.len();
        totals.counters += *self.retired.lock();
        for shared in all.values() {
            let log = shared.lock();
            let (counters, subscribers) = log.totals();
            totals.counters += counters;
            totals.subscribers += subscribers;
            totals.references += log.len() as u64;
        }
    }
}

fn is_unused(log: &DerivedLog, now: MonotonicTime, at_least: Duration) -> bool {
    log.unused_since().is_some_and(|since| now.since(since) >= at_least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Position, bus::MessageBus};

    #[test]
    fn an_order_is_dropped_five_minutes_after_the_last_subscription() {
        let map = TopicMap::new(Options::default(), None, None);
        let bus = MessageBus(Arc::clone(&map));
        let (pattern, topic): (TopicPattern, TopicName) =
            ("a/*".parse().unwrap(), "a/b".parse().unwrap());
        let follow = |from| bus.subscribe_pattern(&pattern, from).unwrap();
        let (one, other) = (follow(Position::New), follow(Position::New));
        let position = Position::before(one.epoch(), one.start().next_id);
        bus.put(&topic, "x").unwrap();
        drop(one);
        let begin = clock::monotonic();
        map.patterns.sweep(begin.after(Patterns::IDLE.into()));
        assert!(!follow(position).start().restarted, "somebody follows it");
        drop(other);
        let end = clock::monotonic();
        map.patterns.sweep(begin.after(Duration::from_secs(290).into()));
        assert!(bus.pattern(&pattern).is_some());
        let delivered = bus.stats().counters.delivered;
        map.patterns.sweep(end.after(Patterns::IDLE.into()));
        assert!(bus.pattern(&pattern).is_none());
        assert_eq!(bus.stats().counters.delivered, delivered, "they never decrease");

        // The topic feeds it no longer, and a new order begins.
        bus.purge_expired();
        assert!(!map.find(&topic).unwrap().lock().feeds_any());
        bus.put(&topic, "y").unwrap();
        let mut again = follow(position);
        assert!(again.start().restarted);
        assert!(again.try_recv().unwrap().is_some() && again.try_recv().unwrap().is_some());
        assert_eq!(again.try_recv(), Ok(None));
    }
}
