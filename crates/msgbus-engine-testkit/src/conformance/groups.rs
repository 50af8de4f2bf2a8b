//! The part of the contract that is about groups.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::Utc;
use msgbus_core::{
    BatchLimit, GroupName, Settlement, TopicName,
    engine::{Begin, Engine, EngineError, Fetch, Fetched, LeaseKey, MAX_LEASE_KEY},
};

use super::{MANY, Subject, publish, texts};
use crate::{SOON, bus, fresh, soon};

pub(super) const ACK: Settlement = Settlement::Ack;
/// A lease that does not run out, although the machine has much else to do.
pub(super) const LONG: Duration = Duration::from_secs(60);

pub(super) fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

pub(super) fn fetch(limit: usize, wait: Duration) -> Fetch {
    let limit = BatchLimit { events: limit, ..MANY };
    Fetch { limit, lease: LONG, wait, from: Begin::First }
}

/// Waits long enough for what is there already.
async fn take(
    engine: &Arc<dyn Engine>,
    topic: &TopicName,
    group: &GroupName,
    limit: usize,
) -> Vec<Fetched> {
    let fetch = fetch(limit, Duration::from_secs(2));
    let start = Utc::now();
    let leases = soon(engine.fetch(topic, Some(group), fetch)).await.unwrap();
    for leased in &leases.messages {
        assert!(leased.key.len() <= MAX_LEASE_KEY);
        assert!(leased.expires > start, "it has just been given");
    }
    leases.messages
}

/// Takes a job as soon as there is one, after leases that may have to end.
pub(super) async fn take_later(
    engine: &Arc<dyn Engine>,
    topic: &TopicName,
    group: &GroupName,
) -> Fetched {
    lease_later(engine, topic, group, LONG).await
}

async fn lease_later(
    engine: &Arc<dyn Engine>,
    topic: &TopicName,
    group: &GroupName,
    lease: Duration,
) -> Fetched {
    let start = Instant::now();
    loop {
        let fetch = Fetch { lease, ..fetch(1, Duration::from_secs(2)) };
        let leases = soon(engine.fetch(topic, Some(group), fetch)).await.unwrap();
        if let Some(job) = leases.messages.into_iter().next() {
            return job;
        }
        assert!(start.elapsed() < SOON, "no job comes back");
    }
}

pub(super) async fn is_empty(
    engine: &Arc<dyn Engine>,
    topic: &TopicName,
    group: &GroupName,
) -> bool {
    let limit = BatchLimit::ONE;
    let wait = Duration::from_millis(300);
    let fetch = Fetch { limit, lease: LONG, wait, from: Begin::First };
    soon(engine.fetch(topic, Some(group), fetch)).await.unwrap().messages.is_empty()
}

pub(super) async fn settle(
    engine: &Arc<dyn Engine>,
    topic: &TopicName,
    group: &GroupName,
    keys: Vec<LeaseKey>,
    settlement: &Settlement,
) -> Vec<usize> {
    soon(engine.settle(topic, Some(group), keys, settlement)).await.unwrap().lost
}

/// Two workers share all jobs, in order, and what they have done does not come back.
pub async fn each_job_goes_to_one_worker(subject: &Subject) {
    let (topic, workers) = (fresh("jobs"), group("workers"));
    let receipt = publish(&subject.one, &topic, texts(0..20)).await;
    let (mut seen, mut turn) = (BTreeSet::new(), 0);
    while seen.len() < 20 {
        let engine = [&subject.one, &subject.other][turn % 2];
        turn += 1;
        let jobs = take(engine, &topic, &workers, 3).await;
        assert!(jobs.len() <= 3);
        for job in &jobs {
            assert!(job.deliveries >= 1);
            assert!((receipt.first..=receipt.last).contains(&job.message.id));
            assert!(seen.insert(job.message.id), "given twice");
        }
        let keys = jobs.into_iter().map(|job| job.key).collect();
        // Another bus than that which has given the lease may settle it.
        let engine = [&subject.one, &subject.other][turn % 2];
        let lost = settle(engine, &topic, &workers, keys, &ACK).await;
        assert!(lost.is_empty());
    }
    assert!(is_empty(&subject.one, &topic, &workers).await);
}

/// A job that fails is given again, with its count; no later than that, and never before. A lease that is given at the end
/// of a fetch may be lost on its way, so the count may be higher.
pub async fn jobs_come_back_until_they_are_done(subject: &Subject) {
    let (topic, workers) = (fresh("again"), group("g.1_-"));
    publish(&subject.one, &topic, texts(0..1)).await;
    let first = take_later(&subject.one, &topic, &workers).await;
    assert!(is_empty(&subject.other, &topic, &workers).await, "it is leased");

    let at_once = Settlement::Nack { delay: Duration::ZERO, reason: Some("broken".into()) };
    let lost = settle(&subject.one, &topic, &workers, vec![first.key.clone()], &at_once).await;
    assert!(lost.is_empty());
    let second = take_later(&subject.other, &topic, &workers).await;
    assert_eq!(second.message.id, first.message.id);
    assert!(second.deliveries > first.deliveries);

    let (delay, second_deliveries) = (Duration::from_secs(1), second.deliveries);
    let later = Settlement::Nack { delay, reason: None };
    let before = Instant::now();
    assert!(settle(&subject.other, &topic, &workers, vec![second.key], &later).await.is_empty());
    let third = take_later(&subject.one, &topic, &workers).await;
    assert!(third.deliveries > second_deliveries);
    assert!(before.elapsed() >= delay, "not before the delay has passed");

    assert!(settle(&subject.one, &topic, &workers, vec![third.key], &ACK).await.is_empty());
    assert!(is_empty(&subject.one, &topic, &workers).await);
    let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
    let rubbish: Vec<LeaseKey> = vec![Box::default(), [0; MAX_LEASE_KEY].into()];
    assert_eq!(settle(&subject.one, &topic, &workers, rubbish, &back).await, [0, 1]);
}

/// A job whose worker is gone is given again when its lease has ended, and not before. Then that lease is over.
pub async fn jobs_come_back_when_their_worker_is_gone(subject: &Subject) {
    let (topic, workers) = (fresh("gone"), group("workers"));
    publish(&subject.one, &topic, texts(0..1)).await;
    let first = lease_later(&subject.one, &topic, &workers, subject.lease).await;
    let second = take_later(&subject.other, &topic, &workers).await;
    assert!(second.deliveries > first.deliveries);
    assert!(Utc::now() >= first.expires, "not before the lease has ended");
    let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
    let extend = Settlement::Extend { lease: subject.lease };
    for late in [&back, &extend] {
        let lost = settle(&subject.one, &topic, &workers, vec![first.key.clone()], late).await;
        assert_eq!(lost, [0], "that lease is over: {late:?}");
    }
    let expires = second.expires;
    let is_leased = is_empty(&subject.one, &topic, &workers).await;
    assert!(is_leased || Utc::now() >= expires, "the second lease goes on");
    let lost = settle(&subject.other, &topic, &workers, vec![second.key], &ACK).await;
    assert!(lost.is_empty() || Utc::now() >= expires);
}

/// A worker that needs longer says so.
pub async fn an_extended_lease_goes_on(subject: &Subject) {
    let (topic, workers) = (fresh("extended"), group("workers"));
    publish(&subject.one, &topic, texts(0..1)).await;
    let job = lease_later(&subject.one, &topic, &workers, subject.lease).await;
    let (mut expires, mut turn) = (job.expires, 0);
    let start = Instant::now();
    while start.elapsed() < subject.lease * 2 {
        let is_leased = is_empty(&subject.other, &topic, &workers).await;
        // A machine that has stood still may be too late for everything.
        let is_late = || Utc::now() + subject.lease / 4 >= expires;
        if !is_leased {
            assert!(is_late(), "it is leased");
            return;
        }
        let extend = Settlement::Extend { lease: subject.lease };
        let keys = vec![job.key.clone()];
        // Whichever bus extends it, all know.
        let engine = [&subject.one, &subject.other][turn % 2];
        turn += 1;
        let settled = soon(engine.settle(&topic, Some(&workers), keys, &extend)).await.unwrap();
        if !settled.lost.is_empty() {
            assert!(is_late(), "lost before its end");
            return;
        }
        expires = settled.expires.unwrap();
    }
    let lost = settle(&subject.one, &topic, &workers, vec![job.key], &ACK).await;
    assert!(lost.is_empty() || Utc::now() >= expires, "lost before its end");
    if lost.is_empty() && Utc::now() < expires {
        assert!(is_empty(&subject.other, &topic, &workers).await);
    }
}

/// Who has given a job back can do nothing to the lease of the next worker, on whatever bus.
pub async fn a_lease_is_given_back_once(subject: &Subject) {
    let (topic, workers) = (fresh("given-back"), group("workers"));
    publish(&subject.one, &topic, texts(0..1)).await;
    let first = take_later(&subject.one, &topic, &workers).await;
    let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
    let keys = || vec![first.key.clone()];
    assert!(settle(&subject.one, &topic, &workers, keys(), &back).await.is_empty());
    let second = take_later(&subject.other, &topic, &workers).await;
    let extend = Settlement::Extend { lease: LONG };
    for engine in [&subject.other, &subject.one] {
        assert_eq!(settle(engine, &topic, &workers, keys(), &back).await, [0]);
        assert_eq!(settle(engine, &topic, &workers, keys(), &extend).await, [0]);
    }
    assert!(is_empty(&subject.one, &topic, &workers).await, "the second worker has it");
    let lost = settle(&subject.one, &topic, &workers, vec![second.key], &ACK).await;
    assert!(lost.is_empty());
}

/// Each group gets every message.
pub async fn groups_are_independent(subject: &Subject) {
    let topic = fresh("groups");
    publish(&subject.one, &topic, texts(0..4)).await;
    for name in ["a", "b", "B"] {
        let workers = group(name);
        let mut jobs = Vec::new();
        while jobs.len() < 4 {
            jobs.extend(take(&subject.one, &topic, &workers, 4).await);
        }
        let keys = jobs.into_iter().map(|job| job.key).collect();
        assert!(settle(&subject.one, &topic, &workers, keys, &ACK).await.is_empty());
    }
}

/// The first fetch says where a new group begins.
pub async fn new_groups_begin_where_they_say(subject: &Subject) {
    let topic = fresh("begin");
    let receipt = publish(&subject.one, &topic, texts(0..3)).await;
    let starts = [
        ("next", Begin::Next, 0),
        ("last", Begin::Sequence(receipt.last), 1),
        ("first", Begin::First, 3),
        ("time", Begin::Time(Utc::now() - Duration::from_secs(3600)), 3),
    ];
    for (name, from, expected) in starts {
        // What is there comes at once, however long that takes.
        let wait = if expected == 0 { Duration::from_millis(500) } else { LONG };
        let begin = Fetch { from, ..fetch(10, wait) };
        let jobs = soon(subject.one.fetch(&topic, Some(&group(name)), begin)).await;
        assert_eq!(jobs.unwrap().messages.len(), expected, "{name}");
    }
    publish(&subject.one, &topic, texts(3..4)).await;
    let job = take_later(&subject.one, &topic, &group("next")).await;
    assert_eq!(job.message.payload, "3");
}

/// A fetch that waits gets a message when it is published.
pub async fn who_waits_gets_the_next_job(subject: &Subject) {
    let (topic, workers) = (fresh("wait"), group("workers"));
    assert!(is_empty(&subject.one, &topic, &workers).await);
    let waiting = subject.one.fetch(&topic, Some(&workers), fetch(1, Duration::from_secs(60)));
    let waiting = tokio::spawn(waiting);
    publish(&subject.other, &topic, texts(0..1)).await;
    let jobs = soon(waiting).await.unwrap().unwrap().messages;
    assert_eq!(jobs.len(), 1);
    let keys = vec![jobs[0].key.clone()];
    assert!(settle(&subject.one, &topic, &workers, keys, &ACK).await.is_empty());
}

/// A fetch that is dropped while it waits takes no job for long.
pub async fn a_fetch_that_nobody_awaits_keeps_no_job(subject: &Subject) {
    let (topic, workers) = (fresh("dropped"), group("workers"));
    assert!(is_empty(&subject.one, &topic, &workers).await);
    for _ in 0..5 {
        let waiting = subject.one.fetch(&topic, Some(&workers), fetch(1, Duration::from_secs(60)));
        let dropped = tokio::time::timeout(Duration::from_millis(50), waiting).await;
        assert!(dropped.is_err());
    }
    publish(&subject.other, &topic, texts(0..1)).await;
    let job = take_later(&subject.other, &topic, &workers).await;
    assert_eq!(job.message.payload, "0");
}

/// Plain pulls of all buses share the messages, whatever groups do.
pub async fn pulls_take_each_message_once(subject: &Subject) {
    let topic = fresh("pulls");
    let buses = [bus(Arc::clone(&subject.one)), bus(Arc::clone(&subject.other))];
    for n in 0..12 {
        soon(buses[n % 2].publish(&topic, n.to_string())).await.unwrap();
    }
    let limit = BatchLimit { events: 2, ..MANY };
    let mut pulled = Vec::new();
    let start = Instant::now();
    while pulled.len() < 12 {
        let bus = &buses[pulled.len() / 2 % 2];
        let messages = soon(bus.pull(&topic, limit)).await.unwrap();
        assert!(messages.len() <= 2);
        pulled.extend(messages.iter().map(|message| message.payload().clone()));
        assert!(start.elapsed() < SOON);
    }
    pulled.sort_by_key(|payload| String::from_utf8_lossy(payload).parse::<u32>().unwrap());
    let expected: Vec<String> = (0..12).map(|n| n.to_string()).collect();
    assert_eq!(pulled, expected);
    let mut waiting = buses[0].pull_wait(&topic, BatchLimit::ONE).unwrap();
    let early = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
    assert!(early.is_err(), "there is nothing left");
    soon(buses[1].publish(&topic, "later")).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap()[0].payload(), "later");
}

/// What an engine answers while it is away: nothing is accepted, and it is not asked without end.
pub async fn refuses_while_it_is_away(subject: &Subject) {
    let topic = fresh("away");
    let refused = soon(subject.one.publish(&topic, texts(0..1))).await.unwrap_err();
    assert!(matches!(refused, EngineError::Unavailable | EngineError::Unknown), "{refused:?}");
    let refused = soon(subject.one.history(&topic, Begin::First, MANY)).await.unwrap_err();
    assert!(refused.is_temporary(), "{refused:?}");
    let fetch = fetch(1, Duration::from_secs(1));
    let refused = soon(subject.one.fetch(&topic, None, fetch)).await.unwrap_err();
    assert!(refused.is_temporary(), "{refused:?}");
    let bus = bus(Arc::clone(&subject.one));
    let refused = soon(bus.follow(&topic, msgbus_core::Position::New)).await;
    assert!(refused.is_err(), "a topic that nobody follows cannot be followed");
}
