//! A made-up bus over a store on a simulated disk. All choices come from a seed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use chrono::DateTime;
use msgbus_core::{
    BatchLimit, Headers, Message, TopicInfo,
    store::{
        Adopted, CommitObserver, Promise, Record, RecoveredMessage, RecoveredTopic, StoreError,
        TopicState, TopicStore,
    },
};

use super::{
    groups,
    model::{Ending, ModelTopic},
    observer::Observer,
};
use crate::{
    disk::{
        Disk,
        simulated::{Plan, SimulatedDisk},
    },
    error::OpenError,
    options::StoreOptions,
    shared::Shared,
    stats::RecoveryReport,
    store::Recovered,
    writer::{Next, Writer},
};

/// A bus over a store.
#[derive(Debug)]
pub(super) struct World {
    pub(super) disk: SimulatedDisk,
    pub(super) random: fastrand::Rng,
    pub(super) now: Instant,
    boot: u8,
    next_epoch: u64,
    pub(super) options: StoreOptions,
    pub(super) writer: Option<Writer>,
    /// By epoch.
    pub(super) topics: BTreeMap<u64, ModelTopic>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            disk: SimulatedDisk::new(seed),
            random: fastrand::Rng::with_seed(seed),
            now: Instant::now(),
            boot: 1,
            next_epoch: 1,
            options: StoreOptions {
                segment_bytes: 8 << 10,
                queue_bytes: 16 << 10,
                ..StoreOptions::default()
            },
            writer: None,
            topics: BTreeMap::new(),
        }
    }

    /// Opens the store, and checks what it has kept of the run that ended in this way.
    pub(super) fn open(&mut self, ending: Ending) -> Result<RecoveryReport, OpenError> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let options = self.options.clone();
        let mut recovered = Recovered::open(&disk, options, Some([self.boot; 16]), true)?;
        let mut topics = std::mem::take(&mut self.topics);
        let mut kept = BTreeMap::new();
        let shared = Arc::clone(&recovered.writer.shared);
        recovered.hand_over(&mut |found: RecoveredTopic| {
            let epoch = found.info.epoch;
            let mut topic = topics.remove(&epoch).expect("no other topics");
            let all = BatchLimit { events: usize::MAX, bytes: usize::MAX };
            topic.check(&found, &read(&*found.store, &shared, 0, all), ending);
            topic.rebase(found);
            let observer = Arc::downgrade(&topic.observer) as Weak<dyn CommitObserver>;
            let promise = topic.promise;
            kept.insert(epoch, topic);
            Adopted { observer, promise }
        });
        for topic in topics.values() {
            topic.check_absent(ending);
        }
        self.topics = kept;
        self.writer = Some(recovered.writer);
        Ok(recovered.report)
    }

    /// Ends the run.
    pub(super) fn end(&mut self, ending: Ending) {
        match ending {
            Ending::Close => {
                if let Some(mut writer) = self.writer.take() {
                    writer.shared.buffer.close();
                    writer.finish(self.now).expect("a clean stop");
                    self.writer = Some(writer);
                    self.listen();
                }
            }
            Ending::Kill => self.disk.kill(),
            Ending::PowerCut => {
                self.disk.cut_power();
                self.boot += 1;
            }
        }
        self.writer = None;
    }

    /// Ends the run and opens the store again.
    pub(super) fn restart(&mut self, ending: Ending) -> RecoveryReport {
        self.end(ending);
        self.disk.plan(Plan::Work);
        self.open(ending).expect("a crash leaves no damage")
    }

    /// Lets the writer work until it has nothing to do.
    pub(super) fn work(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let mut turns = 0;
        while writer.turn(self.now) == Next::Now {
            turns += 1;
            assert!(turns < 10_000, "no end");
        }
        self.listen();
    }

    fn listen(&mut self) {
        self.topics.values_mut().for_each(ModelTopic::listen);
        if self.writer.as_ref().is_some_and(|writer| !writer.tail.is_unsynced()) {
            for topic in self.topics.values_mut() {
                topic.durable = topic.committed;
            }
        }
        let is_durable = |topic: &ModelTopic| {
            topic.durable.is_deleted
                || (topic.committed.is_deleted && topic.promise == Promise::Synced)
        };
        // What is gone for good must not come back: see `open`.
        self.topics.retain(|_, topic| !is_durable(topic));
    }

    /// One step of a history.
    pub(super) fn step(&mut self) {
        match self.random.u32(..100) {
            0..38 => self.append(),
            38..44 => self.pull(),
            44..60 => {
                if let Some(epoch) = self.pick().map(|topic| topic.info.epoch) {
                    self.change_group(epoch);
                }
            }
            60..67 => self.release(),
            67..69 => self.delete(),
            69..72 => self.now += Duration::from_millis(self.random.u64(..3000)),
            72..76 => self.read(),
            _ => self.work(),
        }
    }

    fn pick(&mut self) -> Option<&mut ModelTopic> {
        let alive = |topic: &&mut ModelTopic| !topic.is_being_deleted();
        let count = self.topics.values_mut().filter(alive).count();
        let index = self.random.usize(..count.max(1));
        self.topics.values_mut().filter(alive).nth(index)
    }

    fn append(&mut self) {
        let is_new = self.random.u32(..100) < 8 || self.topics.is_empty();
        if is_new && self.topics.len() < 12 {
            self.create();
        }
        let count = self.random.usize(1..4);
        let mut random = self.random.fork();
        let Some(topic) = self.pick() else { return };
        let mut state = topic.last_state();
        let messages: Vec<Message> =
            (state.next_id..).map(|id| message(&topic.info, &mut random, id)).take(count).collect();
        state.next_id += count as u64;
        state.appended += count as u64;
        state.counters.published += count as u64;
        let _ = topic.append(Record::Messages(messages), state);
    }

    fn create(&mut self) {
        let names = ["a", "b/c", "größe", "d", "e", "f"];
        let name = names[self.random.usize(..names.len())];
        let promise = match self.random.u32(..3) {
            0 => Promise::Written { sync_every: Duration::from_secs(1) },
            _ => Promise::Synced,
        };
        let of_name =
            |topic: &ModelTopic| topic.info.name.as_str() == name && !topic.committed.is_deleted;
        if !self.topics.values().any(of_name) {
            self.create_topic(name, promise);
        }
    }

    /// Makes a topic, and returns its epoch.
    pub(super) fn create_topic(&mut self, name: &str, promise: Promise) -> u64 {
        let epoch = self.next_epoch;
        let Some(writer) = &self.writer else { return epoch };
        let created = DateTime::from_timestamp_nanos(epoch.cast_signed() * 1_000_000_007);
        let name = name.parse().expect("a name");
        let info = Arc::new(TopicInfo { name, epoch, created, ttl: None });
        let observer = Arc::new(Observer::default());
        let weak = Arc::downgrade(&observer) as Weak<dyn CommitObserver>;
        let Ok(store) = writer.shared.create(&info, promise, weak) else { return epoch };
        self.next_epoch += 1;
        self.topics.insert(epoch, ModelTopic::new(info, promise, Box::new(store), observer));
        epoch
    }

    /// Appends messages with payloads of this size.
    pub(super) fn publish(
        &mut self,
        epoch: u64,
        count: u64,
        size: usize,
    ) -> Result<(), StoreError> {
        let topic = self.topics.get_mut(&epoch).expect("a topic");
        let mut state = topic.last_state();
        let message = |id: u64| {
            let payload = vec![id.to_le_bytes()[0]; size].into();
            let (created, headers) = (topic.info.created, Headers::default());
            let message = RecoveredMessage { id, created, expires: None, headers, payload };
            Message::recovered(&topic.info, message)
        };
        let ids = state.next_id..state.next_id + count;
        let messages = ids.map(message).collect();
        state.next_id += count;
        state.appended += count;
        topic.append(Record::Messages(messages), state)
    }

    /// Appends a record without messages.
    pub(super) fn note(&mut self, epoch: u64, record: Record) -> Result<(), StoreError> {
        let topic = self.topics.get_mut(&epoch).expect("a topic");
        let mut state = topic.last_state();
        state.pull_next += u64::from(matches!(record, Record::Pulled));
        topic.append(record, state)
    }

    /// Releases all but the newest messages.
    pub(super) fn keep(&mut self, epoch: u64, count: u64) {
        let topic = self.topics.get_mut(&epoch).expect("a topic");
        let first_id = topic.committed.state.next_id.saturating_sub(count);
        topic.committed.state.first_id = first_id;
        topic.store.release(first_id);
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.writer.as_ref().expect("a store").shared
    }

    fn pull(&mut self) {
        let Some(topic) = self.pick() else { return };
        let mut state = topic.last_state();
        if topic.committed.exists && state.pull_next < topic.committed.state.next_id {
            state.pull_next = topic.committed.state.next_id.min(state.pull_next + 2);
            state.counters.pulled += 1;
            let _ = topic.append(Record::Pulled, state);
        }
    }

    /// Makes any change to a group.
    pub(super) fn change_group(&mut self, epoch: u64) {
        let mut random = self.random.fork();
        let Some(topic) = self.topics.get_mut(&epoch) else { return };
        let known = topic.committed.state;
        let (number, change) = groups::any_change(&mut random, topic.last_groups(), known);
        let state = topic.last_state();
        let _ = topic.append(Record::Group { number, change }, state);
    }

    fn release(&mut self) {
        let mut random = self.random.fork();
        let Some(topic) = self.pick() else { return };
        let TopicState { first_id, next_id, .. } = topic.committed.state;
        let first_id = random.u64(first_id..=next_id);
        topic.committed.state.first_id = first_id;
        topic.store.release(first_id);
    }

    fn delete(&mut self) {
        let Some(topic) = self.pick() else { return };
        if topic.committed.exists {
            let state = topic.last_state();
            let _ = topic.append(Record::Deleted, state);
        }
    }

    /// Reads a part of a topic, and compares it with what was appended.
    fn read(&mut self) {
        let mut random = self.random.fork();
        let Some(shared) = self.writer.as_ref().map(|writer| Arc::clone(&writer.shared)) else {
            return;
        };
        let Some(topic) = self.pick() else { return };
        let TopicState { first_id, next_id, .. } = topic.committed.state;
        let from = random.u64(first_id..=next_id);
        let limit = BatchLimit { events: random.usize(1..20), bytes: random.usize(1..2000) };
        let found = read(&*topic.store, &shared, from, limit);
        let expected = topic.messages.range(from..next_id).map(|(_, message)| message);
        for (found, message) in found.iter().zip(expected) {
            assert_eq!((found.id, &found.payload), (message.id(), message.payload()));
        }
        assert_eq!(found.is_empty(), topic.messages.range(from..next_id).next().is_none());
    }
}

/// Reads messages back.
pub(super) fn read(
    store: &dyn TopicStore,
    shared: &Shared,
    from_id: u64,
    limit: BatchLimit,
) -> Vec<RecoveredMessage> {
    let mut read = store.read(from_id, limit);
    shared.readers.serve_one();
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(found) = read.as_mut().poll(&mut context) else { panic!("nobody answers") };
    found.expect("readable")
}

/// A message with random contents.
fn message(topic: &Arc<TopicInfo>, random: &mut fastrand::Rng, id: u64) -> Message {
    let size = random.choice([0..1, 1..90, 90..600, 1800..2700]).expect("some");
    let payload: Vec<u8> = vec![random.u8(..); random.usize(size)];
    let headers: &[_] = match random.u32(..4) {
        0 => &[("type", "t"), ("x", ""), ("x", "é")],
        _ => &[],
    };
    let mut time = || DateTime::from_timestamp_nanos(random.i64(0..1 << 60));
    let (created, expires) = (time(), Some(time()).filter(|_| id.is_multiple_of(2)));
    let headers = Headers::new(headers.iter().copied()).expect("valid");
    let payload = payload.into();
    Message::recovered(topic, RecoveredMessage { id, created, expires, headers, payload })
}
