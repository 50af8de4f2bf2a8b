//! The map of topics, with a lock over each shard and a lock over each topic.
//!
//! Lock order: a shard or the list of deleted topics, then a topic. No lock is held while a consumer is woken.

use std::{
    hash::{BuildHasher, RandomState},
    iter,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use hashbrown::HashTable;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};

use super::{
    clock,
    engines::Engines,
    locked_topic::LockedTopic,
    op::Op,
    patterns::Patterns,
    services::ServiceMap,
    timer::Timer,
    wake_queue::{self, WakeQueue},
};
use crate::{
    error::{DeleteError, LimitReached},
    model::{Now, Position, TopicInfo, TopicName, TopicPattern},
    options::Options,
    stats::{Counters, Purged},
    store::{Store, StoreError},
    topic::{Budget, Log, Reservation, Topic, Wakers},
};

/// A topic under its lock. The map shares it with handles, subscriptions and waiting pulls.
#[derive(Debug)]
pub(crate) struct SharedTopic {
    name: TopicName,
    pub(super) map: Weak<TopicMap>,
    topic: Mutex<Topic>,
}

impl SharedTopic {
    pub(super) fn new(topic: Topic, map: Weak<TopicMap>) -> Self {
        Self { name: topic.info().name.clone(), map, topic: Mutex::new(topic) }
    }

    pub(super) fn name(&self) -> &TopicName {
        &self.name
    }

    #[inline]
    pub(crate) fn lock(&self) -> LockedTopic<'_> {
        LockedTopic::new(self.topic.lock())
    }

    /// Removes expired messages, a slice under each lock, and returns the lock that found no more.
    pub(crate) fn lock_and_expire(&self) -> LockedTopic<'_> {
        loop {
            let mut topic = self.lock();
            if !topic.expire(clock::monotonic()) {
                return topic;
            }
        }
    }

    /// Releases the lock. Removes the topic from the map if it existed only for its consumers and the last
    /// of them has just left.
    pub(crate) fn unlock_and_remove_if_abandoned(&self, topic: LockedTopic<'_>) {
        let is_abandoned = topic.is_abandoned();
        drop(topic);
        if is_abandoned && let Some(map) = self.map.upgrade() {
            map.remove_if(self, Topic::is_abandoned);
        }
    }
}

/// All topics of a bus by name.
#[derive(Debug)]
pub(crate) struct TopicMap {
    /// For topics, which remove themselves.
    pub(crate) own: Weak<Self>,
    options: Options,
    pub(super) store: Option<Arc<dyn Store>>,
    /// `None` if no topic lives in an engine.
    pub(super) engines: Option<Box<Engines>>,
    shards: Box<[RwLock<Shard>]>,
    hasher: RandomState,
    /// Topics that were ever published to. Only they count toward the limit.
    published_topics: AtomicUsize,
    pub(super) budget: Arc<Budget>,
    pub(crate) wake_queue: WakeQueue,
    pub(super) timer: Timer,
    pub(super) patterns: Patterns,
    pub(super) services: ServiceMap,
    /// Deleted topics whose deletion is not known to be kept.
    deleted: Mutex<Vec<Arc<SharedTopic>>>,
    last_epoch: AtomicU64,
    /// The epoch that a new topic would have got when a published topic was last removed, or when the bus
    /// was created.
    last_removal: AtomicU64,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Shard {
    topics: HashTable<Arc<SharedTopic>>,
    /// The counters of removed topics.
    retired: Counters,
}

impl Shard {
    fn find(&self, key: Key<'_>) -> Option<&Arc<SharedTopic>> {
        self.topics.find(key.hash, |topic| topic.name() == key.name)
    }
}

/// A name and its hash, which selects the shard and the bucket.
#[derive(Debug, Clone, Copy)]
struct Key<'a> {
    name: &'a TopicName,
    hash: u64,
}

pub(crate) enum Entry<'a> {
    Occupied(Arc<SharedTopic>),
    Vacant(VacantEntry<'a>),
}

/// A vacant entry. It holds the shard's write lock, so nobody else can create the topic.
pub(crate) struct VacantEntry<'a> {
    map: &'a TopicMap,
    shard: RwLockWriteGuard<'a, Shard>,
    key: Key<'a>,
}

impl VacantEntry<'_> {
    /// Creates a topic and calls `act` with it. Adds it to the map only if `act` succeeds.
    pub(crate) fn create<T, E>(
        mut self,
        act: impl FnOnce(&Arc<SharedTopic>, &mut Topic) -> Result<T, E>,
    ) -> Result<(Arc<SharedTopic>, T), E> {
        let topic = self.map.new_topic(self.key.name);
        let topic = Arc::new(SharedTopic::new(topic, Weak::clone(&self.map.own)));
        let result = act(&topic, &mut topic.lock())?;
        self.insert(&topic);
        Ok((topic, result))
    }

    pub(super) fn insert(&mut self, topic: &Arc<SharedTopic>) {
        let hash = |topic: &Arc<SharedTopic>| self.map.key(topic.name()).hash;
        self.shard.topics.insert_unique(self.key.hash, Arc::clone(topic), hash);
    }
}

impl TopicMap {
    /// Few enough to walk, and enough that copying one takes microseconds with 100,000 topics.
    pub(crate) const SHARDS: usize = 256;

    pub(crate) fn new(
        options: Options,
        store: Option<Arc<dyn Store>>,
        engines: Option<Box<Engines>>,
    ) -> Arc<Self> {
        let map = Arc::new_cyclic(|own| Self {
            own: Weak::clone(own),
            budget: Budget::new(options.max_bytes),
            options,
            store,
            engines,
            shards: iter::repeat_with(RwLock::default).take(Self::SHARDS).collect(),
            hasher: RandomState::new(),
            published_topics: AtomicUsize::new(0),
            wake_queue: WakeQueue::default(),
            timer: Timer::default(),
            patterns: Patterns::default(),
            services: ServiceMap::new(),
            deleted: Mutex::default(),
            last_epoch: AtomicU64::new(0),
            last_removal: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        map.forget_earlier_epochs();
        map
    }

    /// A position in an earlier epoch than the next one says nothing about what was missed.
    fn forget_earlier_epochs(&self) {
        self.last_removal.store(self.next_epoch(clock::now()), Relaxed);
    }

    /// Takes notice of an epoch that was given out before a restart.
    pub(super) fn continue_after(&self, epoch: u64) {
        self.last_epoch.fetch_max(epoch, Relaxed);
        self.forget_earlier_epochs();
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// The names in one shard that are `wanted`. `None` after the last shard.
    pub(crate) fn names_in(
        &self,
        shard: usize,
        wanted: impl Fn(&TopicName) -> bool,
    ) -> Option<Vec<TopicName>> {
        let shard = self.shards.get(shard)?.read();
        let names = shard.topics.iter().map(|topic| topic.name());
        Some(names.filter(|name| wanted(name)).cloned().collect())
    }

    /// The topics in one shard, and the counters of the topics that were removed from it. `None` after the
    /// last shard.
    pub(crate) fn topics_in(&self, shard: usize) -> Option<(Counters, Vec<Arc<SharedTopic>>)> {
        let shard = self.shards.get(shard)?.read();
        Some((shard.retired, shard.topics.iter().map(Arc::clone).collect()))
    }

    /// The topics in one shard whose names match a pattern.
    pub(super) fn topics_matching(
        &self,
        shard: usize,
        pattern: &TopicPattern,
    ) -> Vec<Arc<SharedTopic>> {
        let Some(shard) = self.shards.get(shard) else { return Vec::new() };
        let shard = shard.read();
        let matching = shard.topics.iter().filter(|topic| pattern.matches(topic.name()));
        matching.map(Arc::clone).collect()
    }

    /// Bytes reserved by topics.
    pub(crate) fn bytes_used(&self) -> u64 {
        self.budget.used()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Counts a topic that is about to be published to for the first time.
    ///
    /// # Errors
    /// When the limit on topics is reached.
    pub(crate) fn admit_topic(&self) -> Result<(), LimitReached> {
        let limit = self.options.max_topics;
        let one_more = |topics| (topics < limit).then_some(topics + 1);
        let admitted = self.published_topics.fetch_update(Relaxed, Relaxed, one_more);
        admitted.map(drop).map_err(|_| LimitReached::Topics { limit })
    }

    /// Takes back an admission: the topic's first publish was refused.
    pub(super) fn dismiss_topic(&self) {
        self.published_topics.fetch_sub(1, Relaxed);
    }

    /// Counts a topic that was published to before a restart, limit or not.
    pub(super) fn count_recovered(&self) {
        self.published_topics.fetch_add(1, Relaxed);
    }

    /// The position to subscribe from. A subscriber that has received nothing from an epoch of this bus has
    /// missed nothing, unless a published topic was removed since: that may have been its topic. Otherwise
    /// nothing was published to its topic, and the current topic of that name continues it.
    pub(crate) fn resume(&self, position: Position) -> Position {
        match position {
            Position::Start { epoch }
                if epoch > self.last_removal.load(Relaxed)
                    && epoch <= self.last_epoch.load(Relaxed) =>
            {
                Position::Id(0)
            }
            other => other,
        }
    }

    pub(crate) fn delete(&self, name: &TopicName) -> Op<Result<bool, DeleteError>> {
        let key = self.key(name);
        let mut shard = self.shard(key).write();
        let Some(topic) = shard.find(key).map(Arc::clone) else { return Op::ready(Ok(false)) };
        let mut locked = topic.lock();
        let commit = match locked.store_deletion() {
            Ok(commit) => commit,
            Err(error) => return Op::ready(Err(DeleteError::Refused(error))),
        };
        let (wakers, retained) = self.remove(&mut shard, &mut locked);
        drop(shard);
        drop(locked);
        self.wake_queue.wake(wakers);
        drop(retained);
        if commit.is_some() {
            self.deleted.lock().push(Arc::clone(&topic));
        }
        Op::after(commit, &topic, true).map(|outcome| outcome.map_err(DeleteError::NotKept))
    }

    pub(crate) fn purge_expired(&self) -> Purged {
        let mut purged = Purged::default();
        self.deleted.lock().retain(|topic| !topic.lock().retry_deletion());
        self.patterns.sweep(clock::monotonic());
        self.services.remove_idle();
        if let Some(engines) = &self.engines {
            engines.sweep();
        }
        for shard in 0..Self::SHARDS {
            let (_, topics) = self.topics_in(shard).unwrap_or_default();
            for topic in topics {
                let (messages, is_idle) = Self::sweep(&topic);
                purged.messages += messages;
                if is_idle && self.remove_if(&topic, |topic| topic.is_idle(clock::monotonic())) {
                    purged.topics += 1;
                }
            }
        }
        purged
    }

    /// Sweeps a topic, a slice under each lock. Returns how many messages were removed, and whether the
    /// topic is idle.
    fn sweep(topic: &SharedTopic) -> (usize, bool) {
        let mut removed = 0;
        loop {
            let mut locked = topic.lock();
            let now = clock::monotonic();
            let (messages, more) = locked.sweep(now);
            removed += messages;
            if !more {
                return (removed, locked.is_idle(now));
            }
        }
    }

    pub(crate) fn close(&self) -> Result<(), StoreError> {
        self.closed.store(true, Relaxed);
        for shard in &self.shards {
            // Topics are created under the shard's write lock, and `closed` is read under it. So a topic is
            // either seen here or created closed.
            let topics: Vec<_> = shard.write().topics.iter().map(Arc::clone).collect();
            for topic in topics {
                let mut locked = topic.lock();
                locked.close();
                let wakers = locked.take_wakers(wake_queue::spare);
                drop(locked);
                self.wake_queue.wake(wakers);
            }
        }
        self.services.close();
        if let Some(engines) = &self.engines {
            engines.close();
        }
        let closed = self.store.as_ref().map_or(Ok(()), |store| store.close());
        // By now everything that was accepted is visible.
        self.patterns.close(&self.wake_queue);
        closed
    }

    fn key<'a>(&self, name: &'a TopicName) -> Key<'a> {
        Key { name, hash: self.hasher.hash_one(name) }
    }

    /// The shard is selected by bits of the hash that do not select the bucket.
    fn shard(&self, key: Key<'_>) -> &RwLock<Shard> {
        &self.shards[(key.hash >> 32) as usize % Self::SHARDS]
    }

    pub(crate) fn find(&self, name: &TopicName) -> Option<Arc<SharedTopic>> {
        let key = self.key(name);
        self.shard(key).read().find(key).map(Arc::clone)
    }

    /// Finds a topic, or the vacant entry for it.
    pub(crate) fn entry<'a>(&'a self, name: &'a TopicName) -> Entry<'a> {
        let key = self.key(name);
        if let Some(topic) = self.shard(key).read().find(key) {
            return Entry::Occupied(Arc::clone(topic));
        }
        let shard = self.shard(key).write();
        // Another thread may have created it in between.
        match shard.find(key) {
            Some(topic) => Entry::Occupied(Arc::clone(topic)),
            None => Entry::Vacant(VacantEntry { map: self, shard, key }),
        }
    }

    fn new_topic(&self, name: &TopicName) -> Topic {
        let now = clock::now();
        let settings = self.options.settings_for(name);
        let info = TopicInfo {
            name: name.clone(),
            epoch: self.next_epoch(now),
            created: now.wall.into(),
            ttl: settings.ttl,
        };
        let reservation = Reservation::new(Arc::clone(&self.budget));
        let mut topic = Topic::new(Arc::new(info), settings, reservation, now);
        if self.is_closed() {
            topic.close();
        }
        self.patterns.attach(name, &mut topic);
        topic
    }

    /// The time in nanoseconds, or the last epoch plus one if the clock has not advanced.
    pub(super) fn next_epoch(&self, now: Now) -> u64 {
        let time = u64::try_from(now.wall.nanoseconds()).unwrap_or(0);
        let next = |last: u64| time.max(last + 1);
        let last = self.last_epoch.fetch_update(Relaxed, Relaxed, |last| Some(next(last)));
        next(last.unwrap_or_else(|last| last))
    }

    /// Removes a topic from the map if it is still `unused`.
    fn remove_if(&self, topic: &SharedTopic, unused: impl FnOnce(&Topic) -> bool) -> bool {
        let mut shard = self.shard(self.key(topic.name())).write();
        let mut locked = topic.lock();
        // If the store does not accept the removal now, the next purge tries again.
        let is_unused = unused(&locked) && locked.store_deletion().is_ok();
        if is_unused {
            // An unused topic has no consumers to wake and no messages to drop.
            let _ = self.remove(&mut shard, &mut locked);
        }
        drop(shard);
        is_unused
    }

    /// Removes a topic from the map and ends it. After the locks are released, the caller wakes the consumers
    /// and drops the messages: freeing many takes long.
    fn remove(&self, shard: &mut Shard, topic: &mut Topic) -> (Wakers, Log) {
        let now = clock::monotonic();
        let retained = topic.delete(now);
        let key = self.key(&topic.info().name);
        if let Ok(entry) = shard.topics.find_entry(key.hash, |topic| topic.name() == key.name) {
            entry.remove();
        }
        shard.retired += topic.stats(now).counters;
        if topic.was_published() {
            self.published_topics.fetch_sub(1, Relaxed);
            self.last_removal.store(self.next_epoch(clock::now()), Relaxed);
        }
        (topic.take_wakers(wake_queue::spare), retained)
    }
}
