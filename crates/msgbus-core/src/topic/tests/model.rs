//! A property test of the rules against a naive model, which keeps every message ever published in one `Vec`
//! and finds every result by walking it.

use std::time::Duration;

use proptest::prelude::*;

use super::{later, now, over, topic};
use crate::{
    error::{PublishError, RecvError},
    model::{Event, MonotonicTime, NewMessage, Now, Position, WallTime},
    options::{LagPolicy, Overflow, SubscribeOptions, TopicSettings},
    stats::{Counters, RemovalCount},
    store::Promise,
    topic::{CursorKey, Page, Topic},
};

const TTL: Duration = Duration::from_secs(100);

#[derive(Debug, Clone, Copy)]
enum Step {
    /// `gap` ids are left out before the message, as an engine leaves them out.
    Put {
        size: usize,
        ttl: Option<u64>,
        gap: u64,
    },
    Get,
    Subscribe {
        position: Position,
        lag: LagPolicy,
    },
    Receive {
        subscriber: usize,
    },
    Unsubscribe {
        subscriber: usize,
    },
    Wait {
        seconds: u64,
    },
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let position = prop_oneof![
        Just(Position::New),
        Just(Position::All),
        (0..80u64).prop_map(Position::Id),
        (0..3u64).prop_map(|epoch| Position::Start { epoch }),
        (0..2u64, 0..80u64).prop_map(|(epoch, id)| Position::After { epoch, id }),
        (0..200u64).prop_map(|seconds| Position::Ago(Duration::from_secs(seconds))),
    ];
    let lag = prop_oneof![3 => Just(LagPolicy::Skip), 1 => Just(LagPolicy::Disconnect)];
    prop_oneof![
        8 => (0..300usize, prop::option::weighted(0.4, 0..150u64), gap())
            .prop_map(|(size, ttl, gap)| Step::Put { size, ttl, gap }),
        3 => Just(Step::Get),
        2 => (position, lag).prop_map(|(position, lag)| Step::Subscribe { position, lag }),
        6 => (0..6usize).prop_map(|subscriber| Step::Receive { subscriber }),
        1 => (0..6usize).prop_map(|subscriber| Step::Unsubscribe { subscriber }),
        3 => (1..60u64).prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Sweep),
    ]
}

fn gap() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0), 1 => 1..6u64]
}

fn settings() -> impl Strategy<Value = TopicSettings> {
    let overflow = prop_oneof![Just(Overflow::DropOldest), Just(Overflow::Reject)];
    // Small limits for evictions, large ones for holes and compaction.
    let bounds = prop_oneof![(1..12usize, 200..3000u64), (Just(1000), Just(1 << 20))];
    (prop::option::weighted(0.8, Just(TTL)), bounds, overflow).prop_map(
        |(ttl, (max_messages, max_bytes), overflow)| TopicSettings {
            memory_bytes: u64::MAX,
            promise: Promise::Memory,
            ttl,
            max_messages,
            max_bytes,
            overflow,
        },
    )
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Retained,
    Expired,
    Evicted,
}

#[derive(Debug)]
struct Record {
    id: u64,
    deadline: Option<MonotonicTime>,
    created: WallTime,
    accounted_size: u64,
    pulled: bool,
    fate: Fate,
}

/// `start` and `next` are indices in [`Model::all`].
#[derive(Debug)]
struct Reader {
    start: u64,
    next: u64,
    pending_gap: u64,
    received: u64,
    lag: LagPolicy,
}

type Received = Result<u64, (u64, u64)>;

struct Model {
    settings: TopicSettings,
    epoch: u64,
    all: Vec<Record>,
    next_id: u64,
    missed_by_removed: u64,
    delivered: u64,
}

impl Model {
    fn retained(&self) -> impl Iterator<Item = (u64, &Record)> {
        self.all
            .iter()
            .enumerate()
            .map(|(at, m)| (at as u64, m))
            .filter(|(_, m)| m.fate == Fate::Retained)
    }

    fn first_from(&self, start: u64) -> Option<u64> {
        self.retained().map(|(at, _)| at).find(|at| *at >= start)
    }

    /// The index of the first message with this or a higher id.
    fn index(&self, id: u64) -> u64 {
        self.all.iter().filter(|m| m.id < id).count() as u64
    }

    fn id(&self, index: u64) -> u64 {
        self.all.get(usize::try_from(index).unwrap()).map_or(self.next_id, |m| m.id)
    }

    fn tail(&self) -> u64 {
        self.all.len() as u64
    }

    fn expire(&mut self, now: MonotonicTime) {
        for message in &mut self.all {
            if message.fate == Fate::Retained && message.deadline.is_some_and(|at| at <= now) {
                message.fate = Fate::Expired;
            }
        }
    }

    fn put(&mut self, message: &NewMessage, now: Now) -> Result<u64, PublishError> {
        let limit = self.settings.max_bytes;
        let accounted_size = message.payload.len() as u64 + 128;
        if accounted_size > limit {
            return Err(PublishError::TooLarge { size: accounted_size, limit });
        }
        let mut oldest: Vec<usize> =
            self.retained().map(|(id, _)| usize::try_from(id).unwrap()).collect();
        oldest.reverse();
        let mut leaving = Vec::new();
        loop {
            let bytes: u64 = oldest.iter().map(|id| self.all[*id].accounted_size).sum();
            if oldest.len() < self.settings.max_messages && bytes + accounted_size <= limit {
                break;
            }
            let id = oldest.pop().unwrap();
            if self.settings.overflow == Overflow::Reject && !self.all[id].pulled {
                return Err(PublishError::TopicFull);
            }
            leaving.push(id);
        }
        for id in leaving {
            self.all[id].fate = Fate::Evicted;
        }
        let ttl = match (message.ttl, self.settings.ttl) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let id = self.next_id;
        self.next_id += 1;
        self.all.push(Record {
            id,
            deadline: ttl.map(|ttl| now.monotonic.after(ttl.into())),
            created: now.wall,
            accounted_size,
            pulled: false,
            fate: Fate::Retained,
        });
        Ok(id)
    }

    fn get(&mut self) -> Option<u64> {
        let unpulled = |m: &&mut Record| m.fate == Fate::Retained && !m.pulled;
        let message = self.all.iter_mut().find(unpulled)?;
        message.pulled = true;
        Some(message.id)
    }

    fn subscribe(&self, position: Position, lag: LagPolicy, now: Now) -> (Reader, bool) {
        let tail = self.tail();
        let first_created_at =
            |time| self.retained().find(|(_, m)| m.created >= time).map_or(tail, |(at, _)| at);
        let (start, restarted) = match position {
            Position::New => (tail, false),
            Position::All => (self.first_from(0).unwrap_or(tail), false),
            Position::Id(id) if id <= self.next_id => (self.index(id), false),
            Position::After { epoch, id } if epoch == self.epoch && id < self.next_id => {
                (self.index(id + 1), false)
            }
            Position::Start { epoch } => (0, epoch != self.epoch),
            Position::Id(_) | Position::After { .. } => (0, true),
            Position::Ago(ago) => (first_created_at(now.wall.before(ago.into())), false),
            Position::At(time) => (first_created_at(time.into()), false),
        };
        let next = start.max(self.first_from(0).unwrap_or(tail));
        (Reader { start, next, pending_gap: next - start, received: 0, lag }, restarted)
    }

    /// The id of a message, or how many were missed and the id after them.
    fn receive(&mut self, reader: &mut Reader) -> Result<Option<Received>, RecvError> {
        if reader.pending_gap > 0 {
            let count = std::mem::take(&mut reader.pending_gap);
            return Ok(Some(Err((count, self.id(reader.next)))));
        }
        let reached = self.first_from(reader.next).unwrap_or(self.tail());
        let missed = reached - reader.next;
        if missed > 0 && reader.lag == LagPolicy::Disconnect {
            return Err(RecvError::Lagged { missed });
        }
        reader.next = reached;
        if missed > 0 {
            return Ok(Some(Err((missed, self.id(reached)))));
        }
        if reached == self.tail() {
            return Ok(None);
        }
        reader.next += 1;
        reader.received += 1;
        self.delivered += 1;
        Ok(Some(Ok(self.id(reached))))
    }

    fn pending(&self, reader: &Reader) -> u64 {
        self.retained().filter(|(id, _)| *id >= reader.next).count() as u64
    }

    fn missed(&self, reader: &Reader) -> u64 {
        self.tail() - reader.start - reader.received - self.pending(reader)
    }

    fn counters(&self, readers: &[(CursorKey, Reader)]) -> Counters {
        let count = |fate| {
            let removed: Vec<_> = self.all.iter().filter(|m| m.fate == fate).collect();
            RemovalCount {
                total: removed.len() as u64,
                unpulled: removed.iter().filter(|m| !m.pulled).count() as u64,
            }
        };
        Counters {
            published: self.tail(),
            pulled: self.all.iter().filter(|m| m.pulled).count() as u64,
            delivered: self.delivered,
            missed: self.missed_by_removed
                + readers.iter().map(|(_, reader)| self.missed(reader)).sum::<u64>(),
            expired: count(Fate::Expired),
            evicted: count(Fate::Evicted),
            deleted: RemovalCount::default(),
        }
    }
}

/// A topic and its model, side by side.
struct Pair {
    topic: Topic,
    model: Model,
    readers: Vec<(CursorKey, Reader)>,
    now: Now,
}

impl Pair {
    fn new(settings: TopicSettings) -> Self {
        let now = now();
        let model = Model {
            settings,
            epoch: 1,
            all: Vec::new(),
            next_id: 0,
            missed_by_removed: 0,
            delivered: 0,
        };
        Self { topic: topic(settings, u64::MAX, now), model, readers: Vec::new(), now }
    }

    fn take(&mut self, step: Step) {
        self.model.expire(self.now.monotonic);
        match step {
            Step::Put { size, ttl, gap } => self.put(size, ttl.map(Duration::from_secs), gap),
            Step::Get => {
                let pulled = self.topic.take_next(self.now.monotonic);
                assert_eq!(pulled.map(|message| message.id()), self.model.get());
            }
            Step::Subscribe { position, lag } => self.subscribe(position, lag),
            Step::Receive { subscriber } => self.receive(subscriber),
            Step::Unsubscribe { subscriber } => self.unsubscribe(subscriber),
            Step::Wait { seconds } => {
                self.now = later(self.now, Duration::from_secs(seconds));
                // Reading the counters would remove expired messages, which the next step must do by itself.
                return;
            }
            Step::Sweep => {
                self.topic.sweep(self.now.monotonic);
            }
        }
        self.compare();
    }

    fn put(&mut self, size: usize, ttl: Option<Duration>, gap: u64) {
        self.model.next_id += gap;
        self.topic.log.skip_to(self.model.next_id);
        let message = NewMessage { ttl, ..NewMessage::new(vec![0; size]) };
        let expected = self.model.put(&message, self.now);
        assert_eq!(self.topic.put(message, self.now), expected);
        self.model.expire(self.now.monotonic);
    }

    fn subscribe(&mut self, position: Position, lag: LagPolicy) {
        let (reader, restarted) = self.model.subscribe(position, lag, self.now);
        let options = SubscribeOptions { from: position, lag, label: None };
        let (key, start) = self.topic.subscribe(options, self.now).unwrap();
        assert_eq!(
            (start.next_id, start.missed, start.restarted),
            (self.model.id(reader.next), reader.pending_gap, restarted)
        );
        assert_eq!(self.model.index(start.requested_id), reader.start);
        self.readers.push((key, reader));
    }

    fn receive(&mut self, subscriber: usize) {
        let Some((key, reader)) = self.readers.get_mut(subscriber) else { return };
        self.topic.expire(self.now.monotonic);
        let event = self.topic.next_event(*key, self.now.monotonic, &mut Page::default());
        let event = event.map_err(over).map(|event| {
            event.map(|event| match event {
                Event::Message { message, .. } => Ok(message.id()),
                Event::Missed { count, next_id } => Err((count, next_id)),
            })
        });
        assert_eq!(event, self.model.receive(reader));
    }

    fn unsubscribe(&mut self, subscriber: usize) {
        if subscriber < self.readers.len() {
            let (key, reader) = self.readers.swap_remove(subscriber);
            drop(self.topic.unsubscribe(key, self.now.monotonic));
            self.model.missed_by_removed += self.model.missed(&reader);
        }
    }

    fn compare(&mut self) {
        let Self { topic, model, readers, now } = self;
        model.expire(now.monotonic);
        let stats = topic.stats(now.monotonic);
        let counters = stats.counters;
        assert_eq!(counters, model.counters(readers));
        assert_eq!(
            counters.published,
            stats.retained
                + counters.expired.total
                + counters.evicted.total
                + counters.deleted.total
        );
        assert_eq!(stats.retained, model.retained().count() as u64);
        assert_eq!(stats.unpulled, model.retained().filter(|(_, m)| !m.pulled).count() as u64);
        assert_eq!(stats.bytes, model.retained().map(|(_, m)| m.accounted_size).sum::<u64>());
        assert_eq!(stats.first_id, model.id(model.first_from(0).unwrap_or(model.tail())));
        assert_eq!(stats.next_id, model.next_id);
        for (key, reader) in readers {
            let stats = topic.subscription_stats(*key, now.monotonic);
            assert_eq!(stats.received, reader.received);
            assert_eq!(stats.pending, model.pending(reader));
            assert_eq!(stats.received + stats.missed + stats.pending, model.tail() - reader.start);
        }
    }

    /// A topic may be deleted with expired messages in it. They count as expired, the others as deleted.
    fn delete(mut self) {
        let Self { topic, model, readers, now } = &mut self;
        let now = later(*now, Duration::from_secs(30)).monotonic;
        model.expire(now);
        drop(topic.delete(now));
        let Counters { expired, deleted, .. } = topic.stats(now).counters;
        assert_eq!(expired, model.counters(readers).expired);
        assert_eq!(deleted.total, model.retained().count() as u64);
        assert_eq!(deleted.unpulled, model.retained().filter(|(_, m)| !m.pulled).count() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_topic_does_what_the_naive_model_does(
        settings in settings(),
        has_gaps in any::<bool>(),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut pair = Pair::new(settings);
        for step in steps {
            pair.take(match step {
                Step::Put { size, ttl, .. } if !has_gaps => Step::Put { size, ttl, gap: 0 },
                step => step,
            });
        }
        pair.delete();
    }
}
