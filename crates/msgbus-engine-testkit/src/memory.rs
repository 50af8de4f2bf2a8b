//! An engine in memory, which several buses can share, with faults.

mod groups;
mod services;
mod topic;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use chrono::Utc;
use msgbus_core::{
    BatchLimit, GroupName, NewMessage, SettledBatch, Settlement, TopicName,
    engine::{
        Answer, Asked, Begin, Engine, EngineError, EngineGroup, EngineGroupSettings, EngineStats,
        EngineTopics, Fetch, Health, LeaseKey, Leases, Page, Receipt, ServiceSink, TakeRequest,
        Unsettled, Urgency, WindowSink,
    },
    store::RecoveredMessage,
};
use tokio::{
    sync::Notify,
    task::yield_now,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use self::topic::Topic;

/// An engine in memory. Clones are the same engine. It needs a runtime of tokio.
#[derive(Debug, Clone)]
pub struct MemoryEngine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Notify,
}

/// How messages are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// Each topic for itself, without gaps. What is gone is counted.
    Dense,
    /// All topics together. What is gone is not counted.
    Shared,
}

/// What goes wrong. Chances are in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Everything fails with this error, and nothing is delivered.
    pub error: Option<EngineError>,
    /// A request is lost.
    pub lost_requests: u32,
    /// A request is served, and its answer lost.
    pub lost_answers: u32,
    /// A tail does not know whether it has left something out.
    pub doubts: u32,
    /// The maximum number of times that a request lets others go first.
    pub delays: u32,
    /// How long a request that does not wait for messages takes before it is served.
    pub pause: Duration,
    /// An ack is refused with [`EngineError::Unavailable`].
    pub refused_acks: u32,
    /// An ack that is not refused is served, and its answer lost.
    pub lost_acks: u32,
}

#[derive(Debug)]
struct Inner {
    numbers: Numbers,
    /// The maximum number of messages in a topic.
    retain: usize,
    faults: Faults,
    /// It takes no messages.
    refuses: Option<TopicName>,
    random: fastrand::Rng,
    epoch: u64,
    next: u64,
    topics: BTreeMap<TopicName, Topic>,
    /// The buses that serve each service.
    services: BTreeMap<TopicName, Vec<Arc<ServiceSink>>>,
}

impl MemoryEngine {
    /// An empty engine. What it does depends on the seed, and on the order of calls.
    pub fn new(numbers: Numbers, seed: u64) -> Self {
        let inner = Inner {
            numbers,
            retain: usize::MAX,
            faults: Faults::default(),
            refuses: None,
            random: fastrand::Rng::with_seed(seed),
            epoch: 1_700_000_000_000_000_000,
            next: 1,
            topics: BTreeMap::new(),
            services: BTreeMap::new(),
        };
        Self(Arc::new(Shared { inner: Mutex::new(inner), changed: Notify::new() }))
    }

    /// From now on this goes wrong.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
        self.0.changed.notify_waiters();
    }

    /// From now on this topic refuses messages with [`EngineError::Denied`].
    pub fn refuse(&self, topic: &TopicName) {
        self.lock().refuses = Some(topic.clone());
    }

    /// From now on a topic retains only its latest messages.
    pub fn retain(&self, messages: usize) {
        self.lock().retain = messages;
    }

    /// Loses everything. Numbers begin again in a new epoch.
    pub fn empty(&self) {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.next = 1;
        inner.topics.clear();
        drop(inner);
        self.0.changed.notify_waiters();
    }

    /// Ids and payloads of all messages of a topic that were ever published in this epoch, retained or not.
    pub fn published(&self, topic: &TopicName) -> Vec<(u64, bytes::Bytes)> {
        self.lock().topics.get(topic).map(|topic| topic.published.clone()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap()
    }

    /// Serves a request, or not.
    fn serve<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Inner) -> Result<T, EngineError> + Send + 'static,
    ) -> Answer<T> {
        let engine = self.clone();
        Box::pin(async move {
            let (delays, pause) = {
                let mut inner = engine.lock();
                let Faults { delays, pause, .. } = inner.faults;
                (inner.random.u32(0..=delays), pause)
            };
            if !pause.is_zero() {
                sleep(pause).await;
            }
            for _ in 0..delays {
                yield_now().await;
            }
            let answer = engine.serve_now(act);
            engine.0.changed.notify_waiters();
            answer
        })
    }

    fn serve_now<T>(
        &self,
        act: impl FnOnce(&mut Inner) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut inner = self.lock();
        if let Some(error) = inner.faults.error {
            return Err(error);
        }
        let faults = inner.faults;
        if inner.happens(faults.lost_requests) {
            return Err(EngineError::Unknown);
        }
        let answer = act(&mut inner)?;
        let is_lost = inner.happens(faults.lost_answers);
        if is_lost { Err(EngineError::Unknown) } else { Ok(answer) }
    }

    async fn fetch_now(
        self,
        topic: TopicName,
        group: Option<GroupName>,
        fetch: Fetch,
    ) -> Result<Leases, EngineError> {
        let end = Instant::now() + fetch.wait.min(Duration::from_secs(3600));
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (leases, due) = self.serve_now(|inner| {
                let epoch = inner.epoch;
                let next = inner.next;
                let topic = inner.topics.entry(topic.clone()).or_insert_with(|| Topic::new(next));
                topic.check_count(group.as_ref())?;
                let (messages, due) = topic.fetch(group.as_ref(), &fetch, &mut inner.random);
                let settings = topic.settings(group.as_ref());
                Ok((Leases { epoch, messages, settings }, due))
            })?;
            let now = Instant::now();
            if !leases.messages.is_empty() || now >= end {
                return Ok(leases);
            }
            let until = due.map_or(end, |due| due.min(end));
            let _ = timeout_at(until, changed).await;
        }
    }

    async fn feed(self, topic: TopicName, sink: WindowSink) {
        let mut feed: Option<(u64, u64)> = None;
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let error = self.lock().faults.error;
            if let (None, Some(error)) = (feed, error) {
                sink.fail(error);
                return;
            }
            if !self.feed_once(&topic, &sink, &mut feed) {
                return;
            }
            // Not only when something changes, because a fault may pass unnoticed.
            let retry = sleep_until(Instant::now() + Duration::from_millis(20));
            tokio::select! {
                () = changed => {}
                () = retry => {}
                () = sink.closed() => return,
            }
        }
    }

    /// Delivers what there is. `feed` is the epoch and the next number. Returns `false` when the window has ended.
    fn feed_once(
        &self,
        topic: &TopicName,
        sink: &WindowSink,
        feed: &mut Option<(u64, u64)>,
    ) -> bool {
        let mut inner = self.lock();
        if let Some(error) = inner.faults.error {
            drop(inner);
            sink.stall(error);
            return !sink.is_closed();
        }
        let (epoch, end) = (inner.epoch, inner.end(topic));
        let doubts = inner.faults.doubts;
        let has_doubts = inner.happens(doubts);
        let (_, next) = *feed.get_or_insert((0, end));
        let log = inner.topics.get(topic);
        let messages = log.map(|log| log.from(next)).unwrap_or_default();
        let is_gone = log.is_some_and(|log| log.gone(next, end) > 0);
        drop(inner);
        let first = messages.first().map_or(end, |message| message.id);
        let is_new = feed.is_some_and(|(known, _)| known != epoch);
        if (is_new || is_gone || has_doubts) && !sink.open(epoch, first) {
            return false;
        }
        sink.resume();
        let next = messages.last().map_or(next.max(first), |message| message.id + 1);
        *feed = Some((epoch, next));
        sink.append(messages)
    }
}

impl Inner {
    fn happens(&mut self, thousandths: u32) -> bool {
        self.random.u32(0..1000) < thousandths
    }

    /// The lowest number that the next message of a topic may get.
    fn end(&self, topic: &TopicName) -> u64 {
        match self.numbers {
            Numbers::Shared => self.next,
            Numbers::Dense => self.topics.get(topic).map_or(1, |topic| topic.next),
        }
    }

    fn publish(&mut self, name: &TopicName, messages: Vec<NewMessage>) -> Receipt {
        let (numbers, epoch, retain) = (self.numbers, self.epoch, self.retain);
        let (mut ids, mut repeats) = (Vec::new(), BTreeMap::new());
        for message in messages {
            let next = self.next;
            let topic = self.topics.entry(name.clone()).or_insert_with(|| Topic::new(1));
            let id_key = message.repeat_key().map(|key| {
                let count = repeats.entry(key.to_owned()).or_insert(0);
                *count += 1;
                format!("{count} {key}")
            });
            let (payload, ttl, headers) = message.into_parts();
            if let Some(id) = id_key.as_ref().and_then(|key| topic.keys.get(key)) {
                ids.push(*id);
                continue;
            }
            let id = match numbers {
                Numbers::Shared => next,
                Numbers::Dense => topic.next,
            };
            let created = Utc::now();
            let expires = ttl.map(|ttl| created + ttl);
            topic.keys.extend(id_key.map(|key| (key, id)));
            topic.push(RecoveredMessage { id, created, expires, headers, payload }, retain);
            self.next += 1;
            ids.push(id);
        }
        let (first, last) = (ids.iter().min().copied(), ids.iter().max().copied());
        Receipt { epoch, first: first.unwrap_or(0), last: last.unwrap_or(0) }
    }

    fn history(&self, name: &TopicName, from: Begin, limit: BatchLimit) -> Page {
        let end = self.end(name);
        let counts = self.numbers == Numbers::Dense;
        match self.topics.get(name) {
            Some(topic) => topic.page(self.epoch, from, limit, end, counts),
            None => Page { epoch: self.epoch, messages: Vec::new(), next: end, skipped: Some(0) },
        }
    }
}

impl Engine for MemoryEngine {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn health(&self) -> Health {
        Health { problem: self.lock().faults.error, ..Health::default() }
    }

    fn max_age(&self, _: &TopicName) -> Option<Duration> {
        None
    }

    fn publish(&self, topic: &TopicName, messages: Vec<NewMessage>) -> Answer<Receipt> {
        let topic = topic.clone();
        self.serve(move |inner| {
            if inner.refuses.as_ref() == Some(&topic) {
                return Err(EngineError::Denied);
            }
            Ok(inner.publish(&topic, messages))
        })
    }

    fn fetch(&self, topic: &TopicName, group: Option<&GroupName>, fetch: Fetch) -> Answer<Leases> {
        Box::pin(self.clone().fetch_now(topic.clone(), group.cloned(), fetch))
    }

    fn settle(
        &self,
        topic: &TopicName,
        group: Option<&GroupName>,
        keys: Vec<LeaseKey>,
        settlement: &Settlement,
    ) -> Answer<SettledBatch> {
        let (topic, group, settlement) = (topic.clone(), group.cloned(), settlement.clone());
        self.serve(move |inner| {
            let Faults { refused_acks, lost_acks, .. } = inner.faults;
            let is_ack = settlement == Settlement::Ack;
            if is_ack && inner.happens(refused_acks) {
                return Err(EngineError::Unavailable);
            }
            let is_lost = is_ack && inner.happens(lost_acks);
            let settled = match inner.topics.get_mut(&topic) {
                Some(topic) => topic.settle(group.as_ref(), &keys, &settlement),
                None => SettledBatch { lost: (0..keys.len()).collect(), expires: None },
            };
            if is_lost { Err(EngineError::Unknown) } else { Ok(settled) }
        })
    }

    fn history(&self, topic: &TopicName, from: Begin, limit: BatchLimit) -> Answer<Page> {
        let topic = topic.clone();
        self.serve(move |inner| Ok(inner.history(&topic, from, limit)))
    }

    fn tail(&self, topic: &TopicName, sink: WindowSink) {
        tokio::spawn(self.clone().feed(topic.clone(), sink));
    }

    fn delete(&self, topic: &TopicName) -> Answer<bool> {
        let topic = topic.clone();
        self.serve(move |inner| {
            let topic = inner.topics.get_mut(&topic);
            Ok(topic.is_some_and(|topic| !std::mem::take(&mut topic.messages).is_empty()))
        })
    }

    fn stats(&self, topic: &TopicName) -> Answer<Option<EngineStats>> {
        let name = topic.clone();
        self.serve(move |inner| {
            let (epoch, next) = (inner.epoch, inner.end(&name));
            let Some(topic) = inner.topics.get(&name) else { return Ok(None) };
            let Some(first) = topic.messages.keys().next().copied() else { return Ok(None) };
            Ok(Some(EngineStats { epoch, retained: topic.messages.len() as u64, first, next }))
        })
    }

    fn topics(&self, prefix: &str, after: &str, max: usize) -> Answer<EngineTopics> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        self.serve(move |inner| {
            let all = inner.topics.iter().map(|(name, topic)| (name.clone(), topic.messages.len()));
            let found = all.filter(|(name, count)| {
                *count > 0 && name.as_str().starts_with(&prefix) && name.as_str() > after.as_str()
            });
            let mut topics: Vec<_> = found.map(|(name, count)| (name, count as u64)).collect();
            let has_more = topics.len() > max;
            topics.truncate(max);
            Ok(EngineTopics { topics, has_more })
        })
    }

    fn group(&self, topic: &TopicName, group: &GroupName) -> Answer<Option<EngineGroup>> {
        let (topic, group) = (topic.clone(), group.clone());
        self.serve(move |inner| Ok(inner.topics.get(&topic).and_then(|topic| topic.group(&group))))
    }

    fn unsettled(
        &self,
        topic: &TopicName,
        group: &GroupName,
        max: usize,
    ) -> Answer<Option<Unsettled>> {
        let (topic, group) = (topic.clone(), group.clone());
        self.serve(move |inner| {
            Ok(inner.topics.get(&topic).and_then(|topic| topic.unsettled(&group, max)))
        })
    }

    fn set_group(&self, topic: &TopicName, group: &GroupName, from: Option<Begin>) -> Answer<bool> {
        let (topic, group) = (topic.clone(), group.clone());
        self.serve(move |inner| {
            let next = inner.next;
            let topic = inner.topics.entry(topic).or_insert_with(|| Topic::new(next));
            topic.check_count(Some(&group))?;
            Ok(topic.set_group(&group, from))
        })
    }

    fn change_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        change: EngineGroupSettings,
    ) -> Answer<()> {
        let (topic, group) = (topic.clone(), group.clone());
        self.serve(move |inner| {
            let topic = inner.topics.get_mut(&topic).ok_or(EngineError::Unavailable)?;
            topic.change_group(&group, change)
        })
    }

    fn remove_group(&self, topic: &TopicName, group: &GroupName) -> Answer<bool> {
        let (topic, group) = (topic.clone(), group.clone());
        self.serve(move |inner| {
            let topic = inner.topics.get_mut(&topic);
            Ok(topic.is_some_and(|topic| topic.groups.remove(&Some(group)).is_some()))
        })
    }

    fn serve(&self, service: &TopicName, sink: ServiceSink) {
        self.announce(service, sink);
    }

    fn request(&self, service: &TopicName, take: TakeRequest, urgency: Urgency) -> Answer<Asked> {
        Box::pin(self.clone().ask(service.clone(), take, urgency))
    }

    fn is_served(&self, service: &TopicName) -> Answer<bool> {
        let (engine, service) = (self.clone(), service.clone());
        Box::pin(async move { Ok(engine.find(&service)?.is_some()) })
    }
}
