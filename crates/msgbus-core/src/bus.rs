//! The bus: the map of topics, and the locks over its shards.
//!
//! Lock order: a shard of the map, then a topic. No lock is held while anyone is woken.

use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
};

use hashbrown::HashTable;
use parking_lot::{RwLock, RwLockWriteGuard};

use crate::{
    access::Access,
    budget::{Budget, Reservation},
    cell::TopicCell,
    clock::{Now, Tick},
    error::{NoRoom, PublishError, SubscribeError},
    event::Peek,
    handle::TopicHandle,
    log::Log,
    message::{Draft, Message, TopicInfo},
    name::TopicName,
    options::{BatchLimit, Options, SubscribeOptions},
    position::Position,
    pull::Pull,
    stats::{BusStats, Counters, SubscriberStats, TopicStats},
    subscription::Subscription,
    topic::Topic,
};

/// A message bus: topics by name, each a bounded log that can be published to, pulled from and
/// subscribed to. Cheap to clone; all clones are the same bus.
///
/// It starts no thread: memory of expired messages is given back by use, and by
/// [`purge_expired`](Self::purge_expired), which a long-lived program calls every few seconds.
#[derive(Debug, Clone)]
pub struct MessageBus(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: Options,
    shards: [RwLock<Shard>; SHARDS],
    hasher: RandomState,
    topics: AtomicUsize,
    budget: Arc<Budget>,
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
    bus: &'a MessageBus,
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
        let mut topic = self.bus.new_topic(self.key.name)?;
        let begun = begin(&mut topic)?;
        let limit = self.bus.0.options.max_topics;
        let one_more = |topics| (topics < limit).then_some(topics + 1);
        if self.bus.0.topics.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            return Err(NoRoom::Topics { limit }.into());
        }
        let cell = Arc::new(TopicCell::new(topic));
        let hash = |cell: &Arc<TopicCell>| self.bus.key(cell.name()).hash;
        self.shard.topics.insert_unique(self.key.hash, Arc::clone(&cell), hash);
        Ok((cell, begun))
    }
}

/// Where an accepted message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The life of the topic, see [`TopicInfo::epoch`].
    pub epoch: u64,
    /// The number of the message in it.
    pub id: u64,
}

/// Where the messages of an accepted batch went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedBatch {
    /// The life of the topic, see [`TopicInfo::epoch`].
    pub epoch: u64,
    /// The numbers of the messages in it.
    pub ids: Range<u64>,
}

/// What a sweep has dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Purged {
    /// Expired messages.
    pub messages: usize,
    /// Topics that nobody used any more.
    pub topics: usize,
}

impl MessageBus {
    /// Makes an empty bus.
    pub fn new(options: Options) -> Self {
        Self(Arc::new(Shared {
            budget: Budget::new(options.max_bytes),
            options,
            shards: Default::default(),
            hasher: RandomState::new(),
            topics: AtomicUsize::new(0),
            last_epoch: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }))
    }

    /// The settings that the bus was made with.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Publishes a message, creating the topic if need be. When this returns, the message has its
    /// number and its place, and everyone who waits for it has been woken. It never blocks on a
    /// subscriber.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put(
        &self,
        topic: &TopicName,
        message: impl Into<Draft>,
    ) -> Result<Published, PublishError> {
        self.at(topic, &mut None).put(message.into())
    }

    /// Publishes messages in one step, all or none: nobody sees some of them before the others, and
    /// no other message comes between.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn put_all(
        &self,
        topic: &TopicName,
        messages: Vec<Draft>,
    ) -> Result<PublishedBatch, PublishError> {
        self.at(topic, &mut None).put_all(messages)
    }

    /// Pulls the oldest message of a topic that nobody has pulled yet; `None` when there is none.
    /// Each message is pulled once at most. It stays in the log for subscriptions that replay it,
    /// until it expires or a bound is reached.
    pub fn get(&self, topic: &TopicName) -> Option<Message> {
        self.at(topic, &mut None).get()
    }

    /// Pulls messages until a limit is reached or none is left; empty when there is none.
    pub fn get_all(&self, topic: &TopicName, limit: BatchLimit) -> Vec<Message> {
        self.at(topic, &mut None).get_all(limit)
    }

    /// Pulls messages as soon as there are any, creating the topic if need be. Those who wait are
    /// served in order; a [`get`](Self::get) does not queue and may be faster.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn wait(&self, topic: &TopicName, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        self.at(topic, &mut None).wait(limit)
    }

    /// Looks at messages without taking them: from a position on, or those that nobody has pulled.
    /// `None` when there is no such topic.
    pub fn peek(
        &self,
        topic: &TopicName,
        from: Option<Position>,
        limit: BatchLimit,
    ) -> Option<Peek> {
        self.at(topic, &mut None).peek(from, limit)
    }

    /// Subscribes to a topic, creating it if need be. From the return on, nothing that is
    /// published escapes the subscription unannounced.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn subscribe(
        &self,
        topic: &TopicName,
        options: impl Into<SubscribeOptions>,
    ) -> Result<Subscription, SubscribeError> {
        self.at(topic, &mut None).subscribe(options.into())
    }

    /// A topic at hand: what is done through it need not be found by its name each time. There need
    /// be no such topic, and none is made before one is needed.
    pub fn handle(&self, topic: &TopicName) -> TopicHandle {
        TopicHandle::new(self.clone(), topic.clone())
    }

    fn at<'a>(&'a self, name: &'a TopicName, cell: &'a mut Option<Arc<TopicCell>>) -> Access<'a> {
        Access::new(self, name, cell)
    }

    /// The names of all topics, sorted.
    pub fn topics(&self) -> Vec<TopicName> {
        let mut names = Vec::new();
        for shard in &self.0.shards {
            names.extend(shard.read().topics.iter().map(|cell| cell.name().clone()));
        }
        names.sort_unstable();
        names
    }

    /// The counters of one topic; `None` when there is no such topic.
    pub fn topic(&self, topic: &TopicName) -> Option<TopicStats> {
        self.at(topic, &mut None).look(|topic| topic.stats(Tick::now()))
    }

    /// The subscriptions of one topic; none when there is no such topic.
    pub fn subscribers(&self, topic: &TopicName) -> Vec<SubscriberStats> {
        self.at(topic, &mut None).look(|topic| topic.subscribers(Tick::now())).unwrap_or_default()
    }

    /// The counters of the whole bus. Visits every topic.
    pub fn stats(&self) -> BusStats {
        let mut stats = BusStats { bytes: self.0.budget.used(), ..BusStats::default() };
        for shard in &self.0.shards {
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

    /// Deletes a topic with its messages and ends its subscriptions. Says whether there was one.
    pub fn delete(&self, topic: &TopicName) -> bool {
        let key = self.key(topic);
        let mut shard = self.shard(key).write();
        let Some(cell) = shard.find(key).map(Arc::clone) else { return false };
        let (sleepers, retained) = self.remove(&mut shard, &mut cell.lock());
        drop(shard);
        wake(sleepers);
        drop(retained);
        true
    }

    /// Frees the memory of expired messages, and forgets topics that are not in use: without
    /// messages, subscriptions, and any publish for ten times their ttl (10 minutes at least).
    pub fn purge_expired(&self) -> Purged {
        let mut purged = Purged::default();
        for shard in &self.0.shards {
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

    /// Closes the bus: publishing and subscribing end at once; what is retained can still be
    /// pulled, and received by subscriptions, which end after it.
    pub fn close(&self) {
        self.0.closed.store(true, Relaxed);
        let mut sleepers = Vec::new();
        for shard in &self.0.shards {
            // Creating a topic takes the shard's lock for writing and looks at `closed` under it:
            // whatever is created is either seen here, or not created.
            for cell in &shard.write().topics {
                let mut topic = cell.lock();
                topic.close();
                sleepers.append(&mut topic.sleepers());
            }
        }
        wake(sleepers);
    }

    fn key<'a>(&self, name: &'a TopicName) -> Key<'a> {
        Key { name, hash: self.0.hasher.hash_one(name) }
    }

    /// Chosen by bits that the place in the shard does not depend on.
    fn shard(&self, key: Key<'_>) -> &RwLock<Shard> {
        &self.0.shards[(key.hash >> 32) as usize % SHARDS]
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
            None => Place::Free(FreePlace { bus: self, shard, key }),
        }
    }

    fn new_topic(&self, name: &TopicName) -> Result<Topic, NoRoom> {
        let now = Now::read();
        let settings = self.0.options.settings_for(name);
        let info = TopicInfo {
            name: name.clone(),
            epoch: self.next_epoch(now),
            created: now.wall.into(),
            ttl: settings.ttl,
        };
        let room = Reservation::new(Arc::clone(&self.0.budget));
        let mut topic = Topic::new(Arc::new(info), settings, room, now)?;
        if self.0.closed.load(Relaxed) {
            topic.close();
        }
        Ok(topic)
    }

    /// The time in nanoseconds, or one more than the last epoch where the clock has not moved on.
    fn next_epoch(&self, now: Now) -> u64 {
        let next = |last: u64| now.wall.nanoseconds().max(last + 1);
        let last = self.0.last_epoch.fetch_update(Relaxed, Relaxed, |last| Some(next(last)));
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

    /// Takes a topic out of the map and ends it. When the locks are released, the sleepers are to be
    /// woken and the messages dropped: freeing many takes a while.
    #[must_use]
    fn remove(&self, shard: &mut Shard, topic: &mut Topic) -> (Vec<Waker>, Log) {
        let now = Tick::now();
        let retained = topic.delete(now);
        let key = self.key(&topic.info().name);
        if let Ok(entry) = shard.topics.find_entry(key.hash, |cell| cell.name() == key.name) {
            entry.remove();
        }
        shard.gone += topic.stats(now).counters;
        self.0.topics.fetch_sub(1, Relaxed);
        (topic.sleepers(), retained)
    }
}

pub(crate) fn wake(sleepers: Vec<Waker>) {
    for sleeper in sleepers {
        sleeper.wake();
    }
}
