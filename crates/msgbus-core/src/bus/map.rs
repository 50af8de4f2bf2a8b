//! The map of topics, and the locks over its shards.
//!
//! Lock order: a shard of the map, then a topic. No lock is held while anyone is woken.

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
    locked_topic::LockedTopic,
    wake_queue::{self, WakeQueue},
};
use crate::{
    error::NoRoom,
    model::{Now, Position, TopicInfo, TopicName},
    options::Options,
    stats::{Counters, Purged},
    topic::{Budget, Log, Reservation, Topic, Wakes},
};

/// A topic, as the map and its subscriptions share it.
#[derive(Debug)]
pub(crate) struct SharedTopic {
    name: TopicName,
    map: Weak<TopicMap>,
    topic: Mutex<Topic>,
}

impl SharedTopic {
    pub(crate) fn new(topic: Topic, map: Weak<TopicMap>) -> Self {
        Self { name: topic.info().name.clone(), map, topic: Mutex::new(topic) }
    }

    pub(crate) fn name(&self) -> &TopicName {
        &self.name
    }

    pub(crate) fn lock(&self) -> LockedTopic<'_> {
        LockedTopic::new(self.topic.lock())
    }

    /// Locks the topic after its expired messages were removed, a slice under each lock.
    pub(crate) fn lock_expired(&self) -> LockedTopic<'_> {
        loop {
            let mut topic = self.lock();
            if !topic.expire(clock::monotonic()) {
                return topic;
            }
        }
    }

    /// Releases the lock, and takes the topic out of the map if it was made for consumers only and
    /// the last of them has just left.
    pub(crate) fn unlock_and_forget_abandoned(self: &Arc<Self>, topic: LockedTopic<'_>) {
        let is_abandoned = topic.is_abandoned();
        drop(topic);
        if is_abandoned && let Some(map) = self.map.upgrade() {
            map.forget_if(self, Topic::is_abandoned);
        }
    }
}

/// All topics of a bus by their names.
#[derive(Debug)]
pub(crate) struct TopicMap {
    /// For the topics, which take themselves out.
    own: Weak<Self>,
    options: Options,
    shards: Box<[RwLock<Shard>]>,
    hasher: RandomState,
    /// The topics that count for the bound: those that were ever published to.
    published_topics: AtomicUsize,
    budget: Arc<Budget>,
    pub(crate) wakes: WakeQueue,
    last_epoch: AtomicU64,
    /// The epoch that a topic would have got when the last one was removed that was ever published to;
    /// at first, when the bus was made.
    last_removal: AtomicU64,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Shard {
    topics: HashTable<Arc<SharedTopic>>,
    /// What happened to the messages of topics that are gone.
    gone: Counters,
}

impl Shard {
    fn find(&self, key: Key<'_>) -> Option<&Arc<SharedTopic>> {
        self.topics.find(key.hash, |cell| cell.name() == key.name)
    }
}

/// A name, and its hash for shard and place.
#[derive(Debug, Clone, Copy)]
struct Key<'a> {
    name: &'a TopicName,
    hash: u64,
}

/// Where in the map a name belongs.
pub(crate) enum Place<'a> {
    Taken(Arc<SharedTopic>),
    Free(FreePlace<'a>),
}

/// Room in the map for a topic that there is not; nobody else makes it meanwhile.
pub(crate) struct FreePlace<'a> {
    map: &'a TopicMap,
    shard: RwLockWriteGuard<'a, Shard>,
    key: Key<'a>,
}

impl FreePlace<'_> {
    /// Makes a topic, does with it what it is made for, and if that succeeds puts it into the map:
    /// what is refused leaves nothing behind.
    pub(crate) fn create<T, E>(
        mut self,
        begin: impl FnOnce(&mut Topic) -> Result<T, E>,
    ) -> Result<(Arc<SharedTopic>, T), E> {
        let mut topic = self.map.new_topic(self.key.name);
        let begun = begin(&mut topic)?;
        let cell = Arc::new(SharedTopic::new(topic, Weak::clone(&self.map.own)));
        let hash = |cell: &Arc<SharedTopic>| self.map.key(cell.name()).hash;
        self.shard.topics.insert_unique(self.key.hash, Arc::clone(&cell), hash);
        Ok((cell, begun))
    }
}

impl TopicMap {
    /// Few enough to walk, and so many that a walk holds each lock for microseconds at a hundred thousand
    /// topics.
    pub(crate) const SHARDS: usize = 256;

    pub(crate) fn new(options: Options) -> Arc<Self> {
        let map = Arc::new_cyclic(|own| Self {
            own: Weak::clone(own),
            budget: Budget::new(options.max_bytes),
            options,
            shards: iter::repeat_with(RwLock::default).take(Self::SHARDS).collect(),
            hasher: RandomState::new(),
            published_topics: AtomicUsize::new(0),
            wakes: WakeQueue::default(),
            last_epoch: AtomicU64::new(0),
            last_removal: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        map.last_removal.store(map.next_epoch(clock::now()), Relaxed);
        map
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// The names in one shard that are `wanted`; `None` behind the last shard.
    pub(crate) fn names_in(
        &self,
        shard: usize,
        wanted: impl Fn(&TopicName) -> bool,
    ) -> Option<Vec<TopicName>> {
        let shard = self.shards.get(shard)?.read();
        let names = shard.topics.iter().map(|cell| cell.name());
        Some(names.filter(|name| wanted(name)).cloned().collect())
    }

    /// The topics in one shard, and the counters of those that have left it; `None` behind the last
    /// shard.
    pub(crate) fn cells_in(&self, shard: usize) -> Option<(Counters, Vec<Arc<SharedTopic>>)> {
        let shard = self.shards.get(shard)?.read();
        Some((shard.gone, shard.topics.iter().map(Arc::clone).collect()))
    }

    /// Bytes set aside for topics and messages.
    pub(crate) fn bytes_used(&self) -> u64 {
        self.budget.used()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Counts a topic that is about to be published to for the first time.
    ///
    /// # Errors
    /// When there are as many as may be.
    pub(crate) fn count_topic(&self) -> Result<(), NoRoom> {
        let limit = self.options.max_topics;
        let one_more = |topics| (topics < limit).then_some(topics + 1);
        let counted = self.published_topics.fetch_update(Relaxed, Relaxed, one_more);
        counted.map(drop).map_err(|_| NoRoom::Topics { limit })
    }

    /// A position to subscribe from. Who has received nothing from an incarnation that this bus made has
    /// missed nothing, unless a topic with messages was removed since: then that may have been it.
    /// Otherwise nothing was ever published to it, and whatever its name has now follows it.
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

    pub(crate) fn delete(&self, name: &TopicName) -> bool {
        let key = self.key(name);
        let mut shard = self.shard(key).write();
        let Some(cell) = shard.find(key).map(Arc::clone) else { return false };
        let mut topic = cell.lock();
        let (wakes, retained) = self.remove(&mut shard, &mut topic);
        drop(shard);
        drop(topic);
        self.wakes.wake(wakes);
        drop(retained);
        true
    }

    pub(crate) fn purge_expired(&self) -> Purged {
        let mut purged = Purged::default();
        for shard in 0..Self::SHARDS {
            let (_, cells) = self.cells_in(shard).unwrap_or_default();
            for cell in cells {
                let more = || {
                    let mut topic = cell.lock();
                    let now = clock::monotonic();
                    let (expired, more) = topic.sweep(now);
                    (expired, more, topic.is_idle(now))
                };
                let idle = loop {
                    let (expired, more, idle) = more();
                    purged.messages += expired;
                    if !more {
                        break idle;
                    }
                };
                if idle && self.forget_if(&cell, |topic| topic.is_idle(clock::monotonic())) {
                    purged.topics += 1;
                }
            }
        }
        purged
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Relaxed);
        for shard in &self.shards {
            // Creating a topic takes the shard's lock for writing and looks at `closed` under it:
            // whatever is created is either seen here, or born closed.
            let cells: Vec<_> = shard.write().topics.iter().map(Arc::clone).collect();
            for cell in cells {
                let mut topic = cell.lock();
                topic.close();
                let wakes = topic.take_wakers(wake_queue::spare);
                drop(topic);
                self.wakes.wake(wakes);
            }
        }
    }

    fn key<'a>(&self, name: &'a TopicName) -> Key<'a> {
        Key { name, hash: self.hasher.hash_one(name) }
    }

    /// Chosen by bits that the place in the shard does not depend on.
    fn shard(&self, key: Key<'_>) -> &RwLock<Shard> {
        &self.shards[(key.hash >> 32) as usize % Self::SHARDS]
    }

    pub(crate) fn find(&self, name: &TopicName) -> Option<Arc<SharedTopic>> {
        let key = self.key(name);
        self.shard(key).read().find(key).map(Arc::clone)
    }

    /// Finds a topic, or where it is to be.
    pub(crate) fn place<'a>(&'a self, name: &'a TopicName) -> Place<'a> {
        let key = self.key(name);
        if let Some(cell) = self.shard(key).read().find(key) {
            return Place::Taken(Arc::clone(cell));
        }
        let shard = self.shard(key).write();
        // Another thread may have made it in between.
        match shard.find(key) {
            Some(cell) => Place::Taken(Arc::clone(cell)),
            None => Place::Free(FreePlace { map: self, shard, key }),
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
        let room = Reservation::new(Arc::clone(&self.budget));
        let mut topic = Topic::new(Arc::new(info), settings, room, now);
        if self.is_closed() {
            topic.close();
        }
        topic
    }

    /// The time in nanoseconds, or one more than the last epoch where the clock has not moved on.
    fn next_epoch(&self, now: Now) -> u64 {
        let time = u64::try_from(now.wall.nanoseconds()).unwrap_or(0);
        let next = |last: u64| time.max(last + 1);
        let last = self.last_epoch.fetch_update(Relaxed, Relaxed, |last| Some(next(last)));
        next(last.unwrap_or_else(|last| last))
    }

    /// Takes a topic out of the map if it is still `unused`.
    pub(crate) fn forget_if(
        &self,
        cell: &SharedTopic,
        unused: impl FnOnce(&Topic) -> bool,
    ) -> bool {
        let mut shard = self.shard(self.key(cell.name())).write();
        let mut topic = cell.lock();
        let is_unused = unused(&topic);
        if is_unused {
            // Nobody sleeps where nobody subscribes, and nothing is retained.
            let _ = self.remove(&mut shard, &mut topic);
        }
        drop(shard);
        is_unused
    }

    /// Takes a topic out of the map and ends it. When the locks are released, the wakers are to be
    /// woken and the messages dropped: freeing many takes a while.
    fn remove(&self, shard: &mut Shard, topic: &mut Topic) -> (Wakes, Log) {
        let now = clock::monotonic();
        let retained = topic.delete(now);
        let key = self.key(&topic.info().name);
        if let Ok(entry) = shard.topics.find_entry(key.hash, |cell| cell.name() == key.name) {
            entry.remove();
        }
        shard.gone += topic.stats(now).counters;
        if topic.was_published() {
            self.published_topics.fetch_sub(1, Relaxed);
            self.last_removal.store(self.next_epoch(clock::now()), Relaxed);
        }
        (topic.take_wakers(wake_queue::spare), retained)
    }
}
