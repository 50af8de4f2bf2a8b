//! A property test of groups against a naive model, which keeps every message in one `Vec` and finds every result by
//! walking it; and rules by example.

#![expect(clippy::cast_possible_truncation, reason = "ids are small")]

use std::time::Duration;

use proptest::prelude::*;

use super::{later, now, topic};
use crate::{
    error::{LeaseError, PublishError},
    model::{GroupName, LeaseToken, Leased, MonotonicTime, NewMessage, Now, Position, Settlement},
    options::{BatchLimit, GroupConfig, LeaseOptions, Overflow, TopicSettings},
    stats::GroupCounters,
    topic::{Burial, Page, TakeError, Topic},
};

fn workers() -> GroupName {
    "workers".parse().unwrap()
}

fn options(events: usize, lease: u64) -> LeaseOptions {
    LeaseOptions {
        lease: Duration::from_secs(lease),
        limit: BatchLimit { events, bytes: usize::MAX },
        ..LeaseOptions::default()
    }
}

fn lease(topic: &mut Topic, events: usize, seconds: u64, now: Now) -> Vec<Leased> {
    match topic.lease(&workers(), &options(events, seconds), now, &mut Page::default()) {
        Ok(taken) => taken.messages,
        Err(TakeError::Over(LeaseError::TooManyLeases { .. })) => Vec::new(),
        Err(error) => unreachable!("{error:?}"),
    }
}

/// Returns whether the lease was settled.
fn settle(topic: &mut Topic, token: &LeaseToken, settlement: &Settlement, now: Now) -> bool {
    topic.settle(token.group, &[token.key], settlement, now).unwrap().lost.is_empty()
}

fn nack(seconds: u64) -> Settlement {
    Settlement::Nack { delay: Duration::from_secs(seconds), reason: None }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Put { ttl: Option<u64> },
    Lease { events: usize, seconds: u64 },
    Ack { lease: usize },
    Nack { lease: usize, delay: u64 },
    Extend { lease: usize, seconds: u64 },
    Wait { seconds: u64 },
    RunDue { accepts: bool },
    Move { position: Option<u64> },
    Get,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::option::weighted(0.4, 1..150u64).prop_map(|ttl| Step::Put { ttl }),
        5 => (1..4usize, 1..60u64).prop_map(|(events, seconds)| Step::Lease { events, seconds }),
        4 => (0..30usize).prop_map(|lease| Step::Ack { lease }),
        3 => (0..30usize, prop_oneof![Just(0), 1..40u64])
            .prop_map(|(lease, delay)| Step::Nack { lease, delay }),
        1 => (0..30usize, 1..60u64).prop_map(|(lease, seconds)| Step::Extend { lease, seconds }),
        3 => (1..30u64).prop_map(|seconds| Step::Wait { seconds }),
        2 => any::<bool>().prop_map(|accepts| Step::RunDue { accepts }),
        1 => prop::option::weighted(0.2, 0..40u64).prop_map(|position| Step::Move { position }),
        1 => Just(Step::Get),
    ]
}

fn settings() -> impl Strategy<Value = TopicSettings> {
    let overflow = prop_oneof![Just(Overflow::DropOldest), Just(Overflow::Reject)];
    let max_messages = prop_oneof![3..12usize, Just(1000)];
    (prop::option::weighted(0.7, Just(Duration::from_secs(100))), max_messages, overflow).prop_map(
        |(ttl, max_messages, overflow)| TopicSettings {
            ttl,
            max_messages,
            overflow,
            ..TopicSettings::default()
        },
    )
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Work {
    New,
    Leased {
        nonce: u64,
        until: MonotonicTime,
    },
    Delayed {
        until: MonotonicTime,
    },
    Ready,
    /// It becomes a dead letter at the next call of the timer after this time.
    Dying {
        after: MonotonicTime,
    },
    Settled,
}

#[derive(Debug)]
struct Record {
    deadline: Option<MonotonicTime>,
    is_retained: bool,
    was_pulled: bool,
    deliveries: u32,
    work: Work,
}

struct Model {
    settings: TopicSettings,
    all: Vec<Record>,
    exists: bool,
    has_pulled: bool,
    counters: GroupCounters,
    max_deliveries: u32,
    max_leases: usize,
}

impl Model {
    fn after(now: Now, seconds: u64) -> MonotonicTime {
        later(now, Duration::from_secs(seconds)).monotonic
    }

    fn expire(&mut self, now: Now) {
        for id in 0..self.all.len() {
            let record = &self.all[id];
            if record.is_retained && record.deadline.is_some_and(|at| at <= now.monotonic) {
                self.forget(id, true);
            }
        }
    }

    fn forget(&mut self, id: usize, expired: bool) {
        self.all[id].is_retained = false;
        if self.exists && self.all[id].work != Work::Settled {
            self.all[id].work = Work::Settled;
            let count =
                if expired { &mut self.counters.expired } else { &mut self.counters.evicted };
            *count += 1;
        }
    }

    fn end_due(&mut self, now: Now) {
        for record in &mut self.all {
            match record.work {
                Work::Leased { until, .. } if until <= now.monotonic => {
                    self.counters.lease_expired += 1;
                    record.work = if record.deliveries >= self.max_deliveries {
                        Work::Dying { after: now.monotonic }
                    } else {
                        Work::Ready
                    };
                }
                Work::Delayed { until } if until <= now.monotonic => record.work = Work::Ready,
                _ => {}
            }
        }
    }

    fn put(&mut self, ttl: Option<u64>, now: Now) -> Result<u64, PublishError> {
        self.expire(now);
        let retained: Vec<usize> =
            (0..self.all.len()).filter(|id| self.all[*id].is_retained).collect();
        if retained.len() >= self.settings.max_messages {
            let oldest = retained[0];
            if self.settings.overflow == Overflow::Reject && oldest >= self.first_needed() {
                return Err(PublishError::TopicFull);
            }
            self.forget(oldest, false);
        }
        let ttl = match (ttl.map(Duration::from_secs), self.settings.ttl) {
            (Some(own), Some(topic)) => Some(own.min(topic)),
            (own, topic) => own.or(topic),
        };
        self.all.push(Record {
            deadline: ttl.map(|ttl| later(now, ttl).monotonic),
            is_retained: true,
            was_pulled: false,
            deliveries: 0,
            work: Work::New,
        });
        Ok(self.all.len() as u64 - 1)
    }

    fn first_needed(&self) -> usize {
        let first = |needed: &dyn Fn(&Record) -> bool| {
            self.all.iter().position(needed).unwrap_or(self.all.len())
        };
        let by_group = first(&|record| record.work != Work::Settled);
        let by_pulls = first(&|record| record.is_retained && !record.was_pulled);
        match (self.exists, self.has_pulled) {
            (true, false) => by_group,
            (true, true) => by_group.min(by_pulls),
            (false, _) => by_pulls,
        }
    }

    fn count(&self, wanted: impl Fn(Work) -> bool) -> u64 {
        self.all.iter().filter(|record| wanted(record.work)).count() as u64
    }

    /// The next message to deliver.
    fn next(&self) -> Option<usize> {
        if self.count(|work| matches!(work, Work::Leased { .. })) >= self.max_leases as u64 {
            return None;
        }
        let ready = self.all.iter().position(|record| record.work == Work::Ready);
        ready.or_else(|| self.all.iter().position(|record| record.work == Work::New))
    }

    fn is_live(&self, token: &LeaseToken, now: Now) -> bool {
        self.all.get(token.key.id as usize).is_some_and(|record| {
            matches!(record.work, Work::Leased { nonce, until }
                if nonce == token.key.nonce && until > now.monotonic)
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_group_behaves_as_a_naive_model(
        settings in settings(),
        max_leases in prop_oneof![1..5usize, Just(100)],
        max_deliveries in 1..4u32,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut run = Run::new(settings, max_leases, max_deliveries);
        for step in steps {
            run.take(step);
            run.check();
        }
    }
}

struct Run {
    now: Now,
    topic: Topic,
    model: Model,
    /// Leases ever given.
    tokens: Vec<LeaseToken>,
}

impl Run {
    fn new(settings: TopicSettings, max_leases: usize, max_deliveries: u32) -> Self {
        let now = now();
        let counters = GroupCounters::default();
        let model = Model {
            settings,
            all: Vec::new(),
            exists: true,
            has_pulled: false,
            counters,
            max_deliveries,
            max_leases,
        };
        let mut run =
            Self { now, topic: topic(settings, u64::MAX, now), model, tokens: Vec::new() };
        let config = GroupConfig {
            max_deliveries: Some(max_deliveries),
            max_leases: Some(max_leases as u32),
            ..GroupConfig::default()
        };
        let set = run.topic.set_group(&workers(), &config, now, |_| Ok(None)).unwrap();
        assert!(set.is_new);
        run
    }

    fn take(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Put { ttl } => {
                let message = NewMessage::new("x");
                let message = match ttl {
                    Some(ttl) => message.ttl(Duration::from_secs(ttl)),
                    None => message,
                };
                assert_eq!(self.topic.put(message, now), self.model.put(ttl, now));
            }
            Step::Lease { events, seconds } => self.lease(events, seconds),
            Step::Ack { lease } => self.settle(lease, &Settlement::Ack, |_, _| Work::Settled),
            Step::Nack { lease, delay } => {
                self.settle(lease, &nack(delay), |deliveries, max| {
                    match (deliveries >= max, delay) {
                        (true, _) => Work::Dying { after: now.monotonic },
                        (false, 0) => Work::Ready,
                        (false, _) => Work::Delayed { until: Model::after(now, delay) },
                    }
                });
            }
            Step::Extend { lease, seconds } => {
                let nonce = self.tokens.get(lease).map_or(0, |token| token.key.nonce);
                let until = Model::after(now, seconds);
                let extend = Settlement::Extend { lease: Duration::from_secs(seconds) };
                self.settle(lease, &extend, |_, _| Work::Leased { nonce, until });
            }
            Step::Wait { seconds } => self.now = later(now, Duration::from_secs(seconds)),
            Step::RunDue { accepts } => self.run_due(accepts),
            Step::Move { position } => self.set(position),
            Step::Get => {
                let taken = self.topic.take_next(now.monotonic).map(|message| message.id());
                self.model.expire(now);
                let next = self.model.all.iter_mut().position(|r| r.is_retained && !r.was_pulled);
                assert_eq!(taken, next.map(|id| id as u64));
                if let Some(id) = next {
                    self.model.all[id].was_pulled = true;
                    self.model.has_pulled = true;
                }
            }
        }
    }

    fn lease(&mut self, events: usize, seconds: u64) {
        let now = self.now;
        let leased = lease(&mut self.topic, events, seconds, now);
        self.model.expire(now);
        self.model.end_due(now);
        let mut expected = Vec::new();
        while expected.len() < events
            && let Some(id) = self.model.next()
        {
            let record = &mut self.model.all[id];
            record.deliveries += 1;
            let nonce = leased.get(expected.len()).map_or(0, |leased| leased.token.key.nonce);
            record.work = Work::Leased { nonce, until: Model::after(now, seconds) };
            expected.push((id as u64, record.deliveries));
            self.model.counters.delivered += 1;
            self.model.counters.redelivered += u64::from(record.deliveries > 1);
        }
        let given: Vec<_> = leased.iter().map(|l| (l.message.id(), l.deliveries)).collect();
        assert_eq!(given, expected);
        self.tokens.extend(leased.into_iter().map(|leased| leased.token));
    }

    fn settle(
        &mut self,
        lease: usize,
        settlement: &Settlement,
        next: impl FnOnce(u32, u32) -> Work,
    ) {
        let Some(token) = self.tokens.get(lease).cloned() else { return };
        let is_live = self.model.is_live(&token, self.now);
        assert_eq!(
            settle(&mut self.topic, &token, settlement, self.now),
            is_live,
            "{settlement:?}"
        );
        if is_live {
            let model = &mut self.model;
            let record = &mut model.all[token.key.id as usize];
            record.work = next(record.deliveries, model.max_deliveries);
            match settlement {
                Settlement::Ack => model.counters.acked += 1,
                Settlement::Nack { .. } => model.counters.nacked += 1,
                Settlement::Extend { .. } => {}
            }
        }
    }

    fn run_due(&mut self, accepts: bool) {
        let now = self.now;
        self.model.expire(now);
        self.model.end_due(now);
        let due = self.topic.run_due(now.monotonic);
        let mut dead: Vec<u64> = due.dead.iter().map(|dead| dead.key.id).collect();
        dead.sort_unstable();
        let is_due = |work: Work| matches!(work, Work::Dying { after } if after <= now.monotonic);
        let expected: Vec<u64> =
            (0..).zip(&self.model.all).filter(|(_, r)| is_due(r.work)).map(|(id, _)| id).collect();
        assert_eq!(dead, expected);
        let burial = if accepts { Burial::Done } else { Burial::Refused };
        for dead in due.dead {
            drop(self.topic.end_burial(&dead, burial, now));
            let record = &mut self.model.all[dead.key.id as usize];
            if accepts {
                record.work = Work::Settled;
                self.model.counters.dead_lettered += 1;
            } else {
                record.work = Work::Dying { after: Model::after(now, 5) };
                self.model.counters.dead_letters_refused += 1;
            }
        }
    }

    /// Moves the group, or changes nothing.
    fn set(&mut self, position: Option<u64>) {
        let Some(id) = position else { return };
        let from = Some(Position::Id(id));
        let config = GroupConfig { from, ..GroupConfig::default() };
        drop(self.topic.set_group(&workers(), &config, self.now, |_| unreachable!()).unwrap());
        self.model.expire(self.now);
        let model = &mut self.model;
        // An id beyond the end is a position from another epoch.
        let first = if id as usize <= model.all.len() { id as usize } else { 0 };
        model.counters = GroupCounters::default();
        for (id, record) in model.all.iter_mut().enumerate() {
            let is_of_group = id >= first && record.is_retained;
            record.work = if is_of_group { Work::New } else { Work::Settled };
            record.deliveries = 0;
        }
    }

    fn check(&mut self) {
        let now = self.now;
        self.model.expire(now);
        self.model.end_due(now);
        let (stats, leases) = self.topic.group_stats(&workers(), usize::MAX, now).unwrap();
        let model = &self.model;
        assert_eq!(stats.counters, model.counters);
        assert_eq!(stats.pending, model.count(|work| work == Work::New));
        let leased = |work| matches!(work, Work::Leased { .. });
        assert_eq!(stats.leased, model.count(leased));
        let waiting =
            |work| matches!(work, Work::Ready | Work::Delayed { .. } | Work::Dying { .. });
        assert_eq!(stats.waiting, model.count(waiting));
        assert_eq!(leases.len() as u64, stats.leased);
        assert!(stats.leased <= model.max_leases as u64);
        let limit = BatchLimit { events: usize::MAX, bytes: usize::MAX };
        let peek = self.topic.peek_group(&workers(), limit, now, &mut Page::default()).unwrap();
        assert_eq!(peek.events.len() as u64, model.count(|work| work != Work::Settled));
        self.balance();
    }

    /// Every message of the group is in one place.
    fn balance(&mut self) {
        let now = self.now;
        let (stats, _) = self.topic.group_stats(&workers(), 0, now).unwrap();
        let counters = stats.counters;
        let there = stats.pending + stats.leased + stats.waiting;
        let gone = counters.acked + counters.dead_lettered + counters.expired + counters.evicted;
        assert_eq!(there + gone, self.topic.published_to(&workers()));
    }
}

#[test]
fn a_lease_that_ends_gives_the_message_to_the_next_worker() {
    let start = now();
    let mut topic = topic(TopicSettings::default(), u64::MAX, start);
    topic.put(NewMessage::new("a"), start).unwrap();
    topic.put(NewMessage::new("b"), start).unwrap();
    let first = lease(&mut topic, 1, 30, start);
    assert_eq!((first[0].message.id(), first[0].deliveries), (0, 1));
    let before = later(start, Duration::from_secs(29));
    assert_eq!(lease(&mut topic, 1, 30, before)[0].message.id(), 1);
    let after = later(start, Duration::from_secs(30));
    let again = lease(&mut topic, 1, 30, after);
    assert_eq!((again[0].message.id(), again[0].deliveries), (0, 2));
    assert!(!settle(&mut topic, &first[0].token, &Settlement::Ack, after), "its lease is over");
    assert!(settle(&mut topic, &again[0].token, &Settlement::Ack, after));
    assert!(!settle(&mut topic, &again[0].token, &Settlement::Ack, after), "acknowledged twice");
}

#[test]
fn a_new_group_starts_where_it_was_asked_to() {
    let now = now();
    let mut topic = topic(TopicSettings::default(), u64::MAX, now);
    topic.put(NewMessage::new("a"), now).unwrap();
    let late = LeaseOptions { from: Position::New, ..options(9, 30) };
    let taken = topic.lease(&workers(), &late, now, &mut Page::default()).unwrap();
    assert!(taken.messages.is_empty());
    topic.put(NewMessage::new("b"), now).unwrap();
    assert_eq!(lease(&mut topic, 9, 30, now)[0].message.id(), 1, "it exists since");
}

#[test]
fn a_topic_has_at_most_64_groups() {
    let now = now();
    let mut topic = topic(TopicSettings::default(), u64::MAX, now);
    topic.put(NewMessage::new("a"), now).unwrap();
    let mut lease = |number: usize| {
        let name = format!("g{number}").parse().unwrap();
        topic.lease(&name, &options(1, 30), now, &mut Page::default()).map(|t| t.messages.len())
    };
    for number in 0..64 {
        assert_eq!(lease(number), Ok(1));
    }
    assert_eq!(lease(64), Err(TakeError::Over(LeaseError::TooManyGroups { limit: 64 })));
    assert_eq!(lease(63), Ok(0));
}

#[test]
fn deadlines_of_settled_leases_do_not_pile_up() {
    let now = now();
    let mut topic = topic(TopicSettings::default(), u64::MAX, now);
    for _ in 0..10_000 {
        topic.put(NewMessage::new("a"), now).unwrap();
        let leased = lease(&mut topic, 1, 3600, now);
        assert!(settle(&mut topic, &leased[0].token, &Settlement::Ack, now));
    }
    assert!(topic.deadlines_of(&workers()) < 200);
}
