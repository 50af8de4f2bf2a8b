//! Topics and services that live in engines: which engine has which, and the windows of topics that are followed.
//!
//! They are not in the map of topics. Lock order: the list of windows, a window, the topic of the window.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use self::{closing::Closing, window::Window};
pub(crate) use self::{
    messages::history,
    reads::{PAGE, Read},
    services::Away,
    window::Follow,
};
pub use self::{services::ServiceSink, window::WindowSink};
use super::{
    MessageBus,
    map::{SharedTopic, TopicMap},
    topic_ref::TopicRef,
};
use crate::{
    engine::{Answer, Engine, EngineError, EngineRule, EngineUsage},
    model::{TopicInfo, TopicName},
    options::Options,
    store::{Store, StoreError},
};

mod closing;
mod dead_letters;
mod leases;
mod messages;
mod queries;
mod reads;
mod services;
mod window;

/// The engines of a bus.
#[derive(Debug)]
pub(crate) struct Engines {
    /// The most specific pattern first.
    rules: Vec<(EngineRule, Option<SharedEngine>)>,
    windows: Mutex<HashMap<TopicName, Arc<Window>>>,
}

/// An engine, and how many operations it has not answered. Clones refer to the same.
#[derive(Debug, Clone)]
pub(crate) struct SharedEngine {
    engine: Arc<dyn Engine>,
    usage: Arc<Usage>,
}

/// What was asked of an engine.
#[derive(Debug, Default)]
struct Usage {
    in_flight: AtomicUsize,
    answered: AtomicU64,
    failed: AtomicU64,
    /// In microseconds.
    time: AtomicU64,
    closing: Closing,
}

impl Usage {
    fn read(&self) -> EngineUsage {
        EngineUsage {
            answered: self.answered.load(Relaxed),
            failed: self.failed.load(Relaxed),
            time: Duration::from_micros(self.time.load(Relaxed)),
            in_flight: self.in_flight.load(Relaxed),
        }
    }

    fn record<T>(&self, began: Instant, answer: &Result<T, EngineError>) {
        self.answered.fetch_add(1, Relaxed);
        if answer.as_ref().is_err_and(|error| error.is_temporary()) {
            self.failed.fetch_add(1, Relaxed);
        }
        let time = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.time.fetch_add(time, Relaxed);
    }
}

/// An operation that an engine has not answered.
struct Permit(Arc<Usage>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl SharedEngine {
    /// The maximum number of operations that one engine has not answered.
    const MAX_IN_FLIGHT: usize = 4096;

    fn new(engine: &Arc<dyn Engine>) -> Self {
        Self { engine: Arc::clone(engine), usage: Arc::default() }
    }

    /// Calls the engine, unless the bus is closed or too much waits for it.
    async fn call<T>(
        &self,
        begin: impl FnOnce(&dyn Engine) -> Answer<T>,
    ) -> Result<T, EngineError> {
        self.usage.closing.check()?;
        let is_full = self.usage.in_flight.fetch_add(1, Relaxed) >= Self::MAX_IN_FLIGHT;
        let _permit = Permit(Arc::clone(&self.usage));
        let began = Instant::now();
        let answer = if is_full { Err(EngineError::Busy) } else { begin(&*self.engine).await };
        self.usage.record(began, &answer);
        answer
    }

    /// The refusal of an operation that no engine has.
    pub(crate) fn unsupported(&self, operation: &'static str) -> EngineError {
        EngineError::NotSupported { engine: self.engine.kind(), operation }
    }
}

impl Engines {
    pub(super) fn new(mut rules: Vec<EngineRule>) -> Option<Box<Self>> {
        if rules.is_empty() {
            return None;
        }
        rules.sort_by(|a, b| a.pattern.cmp(&b.pattern));
        let mut known: Vec<SharedEngine> = Vec::new();
        let rules = rules.into_iter().map(|rule| {
            let shared = rule.engine.as_ref().map(|engine| {
                let same = known.iter().find(|known| Arc::ptr_eq(&known.engine, engine));
                let shared = same.cloned().unwrap_or_else(|| SharedEngine::new(engine));
                known.push(shared.clone());
                shared
            });
            (rule, shared)
        });
        let rules = rules.collect();
        Some(Box::new(Self { rules, windows: Mutex::default() }))
    }

    /// The engine in which a topic lives. A topic of dead letters without a rule of its own lives where they come from.
    pub(super) fn find(&self, name: &TopicName) -> Option<&SharedEngine> {
        match self.rules.iter().find(|(rule, _)| rule.pattern.matches(name)) {
            Some((_, engine)) => engine.as_ref(),
            None => self.find(&name.origin_of_dead_letters()?),
        }
    }

    fn windows(&self) -> Vec<Arc<Window>> {
        self.windows.lock().values().map(Arc::clone).collect()
    }

    /// Wakes those that wait to ask an engine again, and closes the windows that nobody has followed for some time.
    pub(super) fn sweep(&self) {
        for window in self.windows() {
            if window.sweep() {
                self.forget(&window);
            }
        }
    }

    pub(super) fn close(&self) {
        for engine in self.rules.iter().filter_map(|(_, engine)| engine.as_ref()) {
            engine.usage.closing.close();
        }
        for window in self.windows() {
            window.close();
        }
    }

    fn forget(&self, window: &Arc<Window>) {
        let mut windows = self.windows.lock();
        if windows.get(window.name()).is_some_and(|other| Arc::ptr_eq(other, window)) {
            windows.remove(window.name());
        }
    }
}

impl TopicMap {
    pub(super) fn engines(&self) -> Option<&Engines> {
        self.engines.as_deref()
    }
}

impl TopicRef<'_> {
    /// The engine in which the topic lives. `None` if it is in the map, or would be. Without engines it is one branch.
    #[inline]
    pub(crate) fn engine(&mut self) -> Option<SharedEngine> {
        let engines = self.map().engines()?;
        self.find_engine(engines)
    }

    #[inline(never)]
    fn find_engine(&mut self, engines: &Engines) -> Option<SharedEngine> {
        if self.find_location() {
            return None;
        }
        engines.find(self.name()).cloned()
    }
}

impl MessageBus {
    /// Creates a bus with engines, in which some topics live. It may have a store for others, see [`open`](Self::open).
    ///
    /// Operations on topics of engines wait for the engine. Those that return their result block the thread until then,
    /// which must not be one that the engine needs; those that return an [`Op`](crate::Op) are futures. Patterns do not
    /// match such topics, and the statistics of the bus do not count them. A batch is published in order, but not in one
    /// step. Deleting a topic removes its messages, and ends no subscription.
    ///
    /// # Errors
    /// When the store cannot be read, or has kept a topic that is to live in an engine.
    pub fn with_engines(
        options: Options,
        store: Option<Arc<dyn Store>>,
        rules: Vec<EngineRule>,
    ) -> Result<Self, StoreError> {
        let map = TopicMap::new(options, store, Engines::new(rules));
        map.recover()?;
        let Some(engines) = map.engines() else { return Ok(Self(map)) };
        for shard in 0..TopicMap::SHARDS {
            let conflicts = map.names_in(shard, |name| engines.find(name).is_some());
            if conflicts.is_some_and(|names| !names.is_empty()) {
                return Err(EngineError::Conflict.into());
            }
        }
        Ok(Self(map))
    }
}

impl SharedEngine {
    /// The properties of a topic.
    fn info(&self, name: &TopicName, epoch: u64) -> Arc<TopicInfo> {
        let created = i64::try_from(epoch).unwrap_or(i64::MAX);
        let created = chrono::DateTime::from_timestamp_nanos(created);
        let ttl = self.engine.max_age(name);
        Arc::new(TopicInfo { name: name.clone(), epoch, created, ttl })
    }
}

/// A topic that is not in the map.
fn detached(map: &TopicMap, topic: crate::topic::Topic) -> Arc<SharedTopic> {
    Arc::new(SharedTopic::new(topic, std::sync::Weak::clone(&map.own)))
}
