//! The map of topics, and the locks over its shards.
//!
//! Lock order: a shard of the map, then a topic. No lock is held while anyone is woken.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use hashbrown::HashTable;
use parking_lot::{RwLock, RwLockWriteGuard};

use crate::{
    budget::{Budget, Reservation},
    cell::TopicCell,
    clock::{Now, Tick},
    error::NoRoom,
    log::Log,
    message::TopicInfo,
    name::TopicName,
    options::Options,
    stats::{BusStats, Counters, Purged},
    topic::Topic,
    wakes::{WakeQueue, Wakes},
};

/// All topics of a bus by their names.
#[derive(Debug)]
pub(crate) struct TopicMap {
    options: Options,
    shards: [RwLock<Shard>; SHARDS],
    hasher: RandomState,
    topics: AtomicUsize,
    budget: Arc<Budget>,
    pub(crate) wakes: WakeQueue,
    last_epoch: AtomicU64,
    closed: AtomicBool,
}

/// Enough that threads rarely meet at one lock, and few enough to walk.
const SHARDS: usize = 16;

#[derive(Debug, Default)]
struct Shard {
    topics: HashTable<Arc<TopicCell>>,
    /// What happened to the messages of topics that are gone.
    gone: Counters,
}

impl Shard {
    fn find(&self, key: Key<'_>) -> Option<&Arc<TopicCell>> {
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
    Taken(Arc<TopicCell>),
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
    pub(crate) fn create<T, E: From<NoRoom>>(
        mut self,
        begin: impl FnOnce(&mut Topic) -> Result<T, E>,
    ) -> Result<(Arc<TopicCell>, T), E> {
        let mut topic = self.map.new_topic(self.key.name)?;
        let begun = begin(&mut topic)?;
        let limit = self.map.options.max_topics;
        let one_more = |topics| (topics < limit).then_some(topics + 1);
        if self.map.topics.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            return Err(NoRoom::Topics { limit }.into());
        }
        let cell = Arc::new(TopicCell::new(topic));
        let hash = |cell: &Arc<TopicCell>| self.map.key(cell.name()).hash;
        self.shard.topics.insert_unique(self.key.hash, Arc::clone(&cell), hash);
        Ok((cell, begun))
    }
}

impl TopicMap {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            budget: Budget::new(options.max_bytes),
            options,
            shards: Default::default(),
            hasher: RandomState::new(),
            topics: AtomicUsize::new(0),
            wakes: WakeQueue::default(),
            last_epoch: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn names(&self) -> Vec<TopicName> {
        let mut names = Vec::new();
        for shard in &self.shards {
            names.extend(shard.read().topics.iter().map(|cell| cell.name().clone()));
        }
        names.sort_unstable();
        names
    }

    pub(crate) fn stats(&self) -> BusStats {
        let mut stats = BusStats { bytes: self.budget.used(), ..BusStats::default() };
        for shard in &self.shards {
            // The lock is kept while the topics are read, so that one which leaves is counted
            // either there or in `gone`.
            let shard = shard.read();
            stats.counters += shard.gone;
            stats.topics += shard.topics.len();
            for topic in &shard.topics {
                let topic = topic.lock().stats(Tick::now());
                stats.counters += topic.counters;
                stats.retained += topic.retained;
                stats.subscribers += topic.subscribers;
            }
        }
        stats
    }

    pub(crate) fn delete(&self, name: &TopicName) -> bool {
        let key = self.key(name);
        let mut shard = self.shard(key).write();
        let Some(cell) = shard.find(key).map(Arc::clone) else { return false };
        let (wakes, retained) = self.remove(&mut shard, &mut cell.lock());
        drop(shard);
        self.wakes.wake(wakes);
        drop(retained);
        true
    }

    pub(crate) fn purge_expired(&self) -> Purged {
        let mut purged = Purged::default();
        for shard in &self.shards {
            let topics: Vec<_> = shard.read().topics.iter().map(Arc::clone).collect();
            for cell in topics {
                let mut topic = cell.lock();
                let now = Tick::now();
                purged.messages += topic.sweep(now);
                let idle = topic.is_idle(now);
                drop(topic);
                if idle && self.forget(&mut shard.write(), &cell) {
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
                let wakes = topic.take_wakers();
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
        &self.shards[(key.hash >> 32) as usize % SHARDS]
    }

    pub(crate) fn find(&self, name: &TopicName) -> Option<Arc<TopicCell>> {
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

    fn new_topic(&self, name: &TopicName) -> Result<Topic, NoRoom> {
        let now = Now::read();
        let settings = self.options.settings_for(name);
        let info = TopicInfo {
            name: name.clone(),
            epoch: self.next_epoch(now),
            created: now.wall.into(),
            ttl: settings.ttl,
        };
        let room = Reservation::new(Arc::clone(&self.budget));
        let mut topic = Topic::new(Arc::new(info), settings, room, now)?;
        if self.closed.load(Relaxed) {
            topic.close();
        }
        Ok(topic)
    }

    /// The time in nanoseconds, or one more than the last epoch where the clock has not moved on.
    fn next_epoch(&self, now: Now) -> u64 {
        let next = |last: u64| now.wall.nanoseconds().max(last + 1);
        let last = self.last_epoch.fetch_update(Relaxed, Relaxed, |last| Some(next(last)));
        next(last.unwrap_or_else(|last| last))
    }

    /// Takes an idle topic out of the map, unless it is in use again.
    fn forget(&self, shard: &mut Shard, cell: &TopicCell) -> bool {
        let mut topic = cell.lock();
        let idle = topic.is_idle(Tick::now());
        if idle {
            // Nobody sleeps where nobody subscribes, and nothing is retained.
            let _ = self.remove(shard, &mut topic);
        }
        idle
    }

    /// Takes a topic out of the map and ends it. When the locks are released, the wakers are to be
    /// woken and the messages dropped: freeing many takes a while.
    fn remove(&self, shard: &mut Shard, topic: &mut Topic) -> (Wakes, Log) {
        let now = Tick::now();
        let retained = topic.delete(now);
        let key = self.key(&topic.info().name);
        if let Ok(entry) = shard.topics.find_entry(key.hash, |cell| cell.name() == key.name) {
            entry.remove();
        }
        shard.gone += topic.stats(now).counters;
        self.topics.fetch_sub(1, Relaxed);
        (topic.take_wakers(), retained)
    }
}
