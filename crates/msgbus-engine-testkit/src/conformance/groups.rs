//! The part of the contract that is about groups.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::Utc;
use msgbus_core::{
    BatchLimit, GroupConfig, GroupError, GroupName, GroupSettings, Headers, LeaseOptions, Message,
    MessageBus, NewMessage, Position, SettleError, Settlement, TopicName,
    engine::{
        Begin, Engine, EngineError, EngineGroup, EngineGroupSettings, Fetch, Fetched, LeaseKey,
        MAX_LEASE_KEY,
    },
    store::StoreError,
};

use super::{MANY, Subject, is_unsupported, publish, texts};
use crate::{SOON, bus, fresh, soon};

const ACK: Settlement = Settlement::Ack;
/// A lease that does not run out, although the machine has much else to do.
const LONG: Duration = Duration::from_secs(60);

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

fn fetch(limit: usize, wait: Duration) -> Fetch {
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
async fn take_later(engine: &Arc<dyn Engine>, topic: &TopicName, group: &GroupName) -> Fetched {
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

async fn is_empty(engine: &Arc<dyn Engine>, topic: &TopicName, group: &GroupName) -> bool {
    let limit = BatchLimit::ONE;
    let wait = Duration::from_millis(300);
    let fetch = Fetch { limit, lease: LONG, wait, from: Begin::First };
    soon(engine.fetch(topic, Some(group), fetch)).await.unwrap().messages.is_empty()
}

async fn settle(
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
    let begin = |from| Fetch { from, ..fetch(10, Duration::from_millis(500)) };
    let starts = [
        ("next", Begin::Next, 0),
        ("last", Begin::Sequence(receipt.last), 1),
        ("first", Begin::First, 3),
        ("time", Begin::Time(Utc::now() - Duration::from_secs(3600)), 3),
    ];
    for (name, from, expected) in starts {
        let jobs = soon(subject.one.fetch(&topic, Some(&group(name)), begin(from))).await;
        assert_eq!(jobs.unwrap().messages.len(), expected, "{name}");
    }
    publish(&subject.one, &topic, texts(3..4)).await;
    let jobs = take(&subject.one, &topic, &group("next"), 10).await;
    assert_eq!(jobs[0].message.payload, "3");
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

/// After ten deliveries a message goes to the topic for dead letters. Each message has its letter for each group, also those
/// of a batch with one idempotency key.
pub async fn jobs_that_fail_too_often_are_dead_letters(subject: &Subject) {
    let topic = fresh("dying");
    let bus = bus(Arc::clone(&subject.one));
    let bad = |text: &'static str| {
        NewMessage::new(text).header(Headers::IDEMPOTENCY_KEY, "one for all").unwrap()
    };
    soon(bus.publish_batch(&topic, vec![bad("bad 1"), bad("bad 2")])).await.unwrap();
    for workers in [group("a"), group("b")] {
        fail_until_there_is_a_good_job(&bus, &topic, &workers).await;
    }
    let dead = topic.dead_letters().unwrap();
    let redrive = group("redrive");
    let shown = soon(bus.peek_group(&dead, &redrive, MANY)).await.unwrap().unwrap();
    let letters: Vec<_> = shown.messages().cloned().collect();
    let mut found: Vec<_> = letters
        .iter()
        .map(|letter| {
            let header = |name| letter.headers().get(name).unwrap_or_else(|| panic!("no {name}"));
            assert_eq!(header("dead-letter-topic"), topic.as_str());
            assert_eq!(header("dead-letter-deliveries"), "10");
            assert_eq!(header("dead-letter-reason"), "broken");
            assert_eq!(header(Headers::IDEMPOTENCY_KEY), "one for all");
            (header("dead-letter-group").to_owned(), letter.payload().clone())
        })
        .collect();
    found.sort();
    let expected =
        ["a", "b"].map(|group| ["bad 1", "bad 2"].map(|text| (group.to_owned(), text.into())));
    assert_eq!(found, expected.as_flattened(), "once for each");
    what_a_group_has_not_acknowledged_is_shown(&bus, &dead, &redrive).await;
}

/// Messages expire after a short time, and dead letters do not. The engine keeps messages for at most two seconds.
pub async fn dead_letters_do_not_expire(engine: &Arc<dyn Engine>) {
    let topic = fresh("lasting");
    let dead = topic.dead_letters().unwrap();
    assert_eq!((engine.max_age(&dead), engine.max_age(&topic).is_some()), (None, true));
    for name in [&topic, &dead] {
        publish(engine, name, texts(0..1)).await;
    }
    let start = Instant::now();
    while soon(engine.stats(&topic)).await.unwrap().is_some() {
        assert!(start.elapsed() < SOON, "it does not expire");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let page = soon(engine.history(&dead, Begin::First, MANY)).await.unwrap();
    assert_eq!((page.messages.len(), page.messages[0].message.expires), (1, None));
    let listed = soon(engine.topics(topic.as_str(), "", 10)).await.unwrap();
    assert_eq!(listed.topics, [(dead.clone(), 1)]);
    assert!(soon(engine.delete(&dead)).await.unwrap());
}

/// Four messages are there, and the group was given none.
async fn what_a_group_has_not_acknowledged_is_shown(
    bus: &MessageBus,
    topic: &TopicName,
    group: &GroupName,
) {
    let shown = async || {
        let peek = soon(bus.peek_group(topic, group, MANY)).await.unwrap().unwrap();
        peek.messages().map(|message| message.id()).collect::<Vec<_>>()
    };
    let all = shown().await;
    assert_eq!(all.len(), 4);
    let lease = async || {
        let options = LeaseOptions { lease: LONG, ..LeaseOptions::default() };
        soon(bus.lease_wait(topic, group, options).unwrap()).await.unwrap().pop().unwrap()
    };
    let first = lease().await;
    assert_eq!(shown().await, all, "it is leased, and not acknowledged");
    soon(bus.settle(&first.token, &ACK)).await.unwrap();
    assert_eq!(shown().await, all[1..]);
    let two = BatchLimit { events: 2, ..MANY };
    let peek = soon(bus.peek_group(topic, group, two)).await.unwrap().unwrap();
    assert_eq!(peek.messages().map(|message| message.id()).collect::<Vec<_>>(), all[1..3]);
    for _ in 1..4 {
        soon(bus.settle(&lease().await.token, &ACK)).await.unwrap();
    }
    assert!(shown().await.is_empty());
}

/// Gives two jobs back until they have become dead letters, which shows by another one that comes alone.
async fn fail_until_there_is_a_good_job(bus: &MessageBus, topic: &TopicName, workers: &GroupName) {
    let options = || LeaseOptions { lease: LONG, ..LeaseOptions::default() };
    let mut deliveries = [0; 2];
    while deliveries.iter().any(|count| *count < 10) {
        let leased = soon(bus.lease_wait(topic, workers, options()).unwrap()).await.unwrap();
        for leased in leased {
            if leased.message.payload() == "good" {
                soon(bus.settle(&leased.token, &ACK)).await.unwrap();
                continue;
            }
            let number = usize::from(leased.message.payload() == "bad 2");
            // A lease that nobody has received counts, too.
            assert!(leased.deliveries > deliveries[number] && leased.deliveries <= 10);
            deliveries[number] = leased.deliveries;
            let text = leased.token.to_string();
            let back = Settlement::Nack { delay: Duration::ZERO, reason: Some("broken".into()) };
            soon(bus.settle(&text.parse().unwrap(), &back)).await.unwrap();
            if leased.deliveries == 10 {
                let dead = topic.dead_letters().unwrap();
                let letters = soon(bus.peek_group(&dead, workers, MANY)).await.unwrap().unwrap();
                let is_it = |letter: &Message| {
                    letter.payload() == leased.message.payload()
                        && letter.headers().get("dead-letter-group") == Some(workers.as_str())
                };
                assert!(letters.messages().any(is_it), "it is there at once");
                let again = soon(bus.settle(&leased.token, &back)).await;
                assert_eq!(again, Err(SettleError::Lost), "that lease is over");
            }
        }
    }
    soon(bus.publish(topic, "good")).await.unwrap();
    let leased = soon(bus.lease_wait(topic, workers, options()).unwrap()).await.unwrap();
    assert_eq!(leased[0].message.payload(), "good");
    for leased in &leased {
        soon(bus.settle(&leased.token, &ACK)).await.unwrap();
    }
}

/// Groups can be made before anybody works for them, moved, and removed.
pub async fn groups_can_be_made_moved_and_removed(subject: &Subject) {
    let (topic, workers) = (fresh("admin"), group("workers"));
    publish(&subject.one, &topic, texts(0..3)).await;
    let made = soon(subject.one.set_group(&topic, &workers, None)).await;
    if is_unsupported(&made) {
        return;
    }
    assert!(made.unwrap(), "it is new");
    let stats = async || soon(subject.other.group(&topic, &workers)).await.unwrap();
    assert_eq!(stats().await, Some(shown(3, 0)));
    let job = take_later(&subject.other, &topic, &workers).await;
    assert_eq!(job.message.payload, "0");
    let old = job.key;
    assert_eq!(stats().await, Some(shown(2, 1)));
    assert!(!soon(subject.one.set_group(&topic, &workers, None)).await.unwrap());
    assert_eq!(stats().await, Some(shown(2, 1)), "it is as it was");
    assert!(!soon(subject.one.set_group(&topic, &workers, Some(Begin::Next))).await.unwrap());
    assert_eq!(stats().await, Some(shown(0, 0)));
    assert!(is_empty(&subject.other, &topic, &workers).await);
    // Who works on a job of before cannot end the leases of others.
    assert!(!soon(subject.one.set_group(&topic, &workers, Some(Begin::First))).await.unwrap());
    let job = take_later(&subject.one, &topic, &workers).await;
    assert_eq!(job.message.payload, "0");
    let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
    for engine in [&subject.other, &subject.one] {
        let lost = settle(engine, &topic, &workers, vec![old.clone()], &back).await;
        assert_eq!(lost, [0], "that lease is over");
    }
    assert!(soon(subject.one.remove_group(&topic, &workers)).await.unwrap());
    assert!(!soon(subject.other.remove_group(&topic, &workers)).await.unwrap());
    assert_eq!(stats().await, None);
    let job = take_later(&subject.other, &topic, &workers).await;
    assert_eq!(job.message.payload, "0", "the group is a new one");
}

fn shown(pending: u64, unacked: u64) -> EngineGroup {
    EngineGroup { pending, unacked, settings: EngineGroupSettings::default() }
}

/// What a group has of its own counts at every bus, and stays when it is moved.
pub async fn a_group_has_settings_of_its_own(subject: &Subject) {
    let (topic, workers, letters) = (fresh("settings"), group("workers"), fresh("letters"));
    publish(&subject.one, &topic, texts(0..1)).await;
    let [one, other] = [&subject.one, &subject.other].map(|engine| bus(Arc::clone(engine)));
    let config = GroupConfig {
        max_deliveries: Some(2),
        dead_letters: Some(letters.clone()),
        ..GroupConfig::default()
    };
    let set = soon(one.set_group(&topic, &workers, &config)).await;
    if matches!(set, Err(GroupError::Store(StoreError::Engine(EngineError::NotSupported { .. })))) {
        return;
    }
    set.unwrap();
    // What is not kept was not set.
    let change = EngineGroupSettings { max_deliveries: Some(1), dead_letters: None };
    let gone = soon(subject.one.change_group(&topic, &group("gone"), change)).await;
    assert_eq!(gone, Err(EngineError::Unavailable));
    let only = GroupConfig { max_deliveries: Some(1), ..GroupConfig::default() };
    soon(other.set_group(&topic, &workers, &only)).await.unwrap();
    let moved = GroupConfig { from: Some(Position::All), ..GroupConfig::default() };
    soon(one.set_group(&topic, &workers, &moved)).await.unwrap();
    let shown = soon(subject.other.group(&topic, &workers)).await.unwrap().unwrap();
    let settings = (shown.settings.max_deliveries, shown.settings.dead_letters.as_ref());
    assert_eq!(settings, (Some(1), Some(&letters)));
    let start = Instant::now();
    let options = LeaseOptions { lease: LONG, ..LeaseOptions::default() };
    let letter = loop {
        for leased in soon(other.lease(&topic, &workers, options.clone())).await.unwrap() {
            // Other buses may take a moment to hear of a change.
            let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
            let _ = soon(one.settle(&leased.token, &back)).await;
        }
        if let Some(letter) = soon(one.pull(&letters, BatchLimit::ONE)).await.unwrap().pop() {
            break letter;
        }
        assert!(start.elapsed() < SOON, "no dead letter");
    };
    let deliveries = letter.headers().get("dead-letter-deliveries").unwrap();
    assert!(deliveries.parse::<u32>().unwrap() < 10, "{deliveries}");
    let of_letters = fresh("failed").dead_letters().unwrap();
    soon(one.publish(&of_letters, "letter")).await.unwrap();
    for _ in 0..11 {
        let leased = take_later(&subject.one, &of_letters, &workers).await;
        let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
        settle(&subject.one, &of_letters, &workers, vec![leased.key], &back).await;
    }
    let options = LeaseOptions { lease: LONG, ..LeaseOptions::default() };
    let again = soon(one.lease_wait(&of_letters, &workers, options).unwrap()).await.unwrap();
    assert!(again[0].deliveries > 11, "groups of dead letters deliver without end");
}

/// A bus that has not heard yet that a group was moved gives leases that can be settled, at any bus.
pub async fn leases_after_a_move_can_be_settled(subject: &Subject) {
    let extend = Settlement::Extend { lease: LONG };
    for taken in [0, 1] {
        let (topic, workers) = (fresh("just-moved"), group("workers"));
        publish(&subject.one, &topic, texts(0..3)).await;
        if is_unsupported(&soon(subject.one.set_group(&topic, &workers, None)).await) {
            return;
        }
        for _ in 0..taken {
            take_later(&subject.other, &topic, &workers).await;
        }
        assert_eq!(
            soon(subject.other.settle(&topic, Some(&workers), vec![Box::default()], &ACK))
                .await
                .unwrap()
                .lost,
            [0]
        );
        let moved = subject.one.set_group(&topic, &workers, Some(Begin::First));
        assert_eq!(soon(moved).await, Ok(false), "it was there");
        for engine in [&subject.one, &subject.other, &subject.one] {
            let key = take_later(&subject.other, &topic, &workers).await.key;
            if taken > 0 {
                let lost = settle(engine, &topic, &workers, vec![key.clone()], &extend).await;
                assert!(lost.is_empty(), "it is live");
            }
            assert!(settle(engine, &topic, &workers, vec![key], &ACK).await.is_empty());
        }
        assert!(is_empty(&subject.one, &topic, &workers).await, "all are done");
    }
}

/// Workers that wait do not make a group again that is being moved: it begins where the move says.
pub async fn a_group_is_moved_while_others_work(subject: &Subject) {
    let (topic, workers) = (fresh("moved"), group("workers"));
    publish(&subject.one, &topic, texts(0..3)).await;
    if is_unsupported(&soon(subject.one.set_group(&topic, &workers, None)).await) {
        return;
    }
    for _ in 0..5 {
        let waiting = [&subject.one, &subject.other].map(|engine| {
            let fetch = Fetch { from: Begin::Next, ..fetch(1, Duration::from_millis(500)) };
            let (engine, topic, workers) = (Arc::clone(engine), topic.clone(), workers.clone());
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while let Some(job) = {
                    let leases = engine.fetch(&topic, Some(&workers), fetch).await;
                    leases.map(|leases| leases.messages).unwrap_or_default().pop()
                } {
                    let keys = vec![job.key];
                    let _ = engine.settle(&topic, Some(&workers), keys, &ACK).await;
                    seen.push(job.message.id);
                }
                seen
            })
        });
        let moved = subject.one.set_group(&topic, &workers, Some(Begin::First));
        assert_eq!(soon(moved).await, Ok(false), "it was there");
        for waiting in waiting {
            let _ = soon(waiting).await.unwrap();
        }
        let shown = soon(subject.other.group(&topic, &workers)).await.unwrap();
        assert!(shown.is_some(), "it is there");
    }
    assert!(soon(subject.one.remove_group(&topic, &workers)).await.unwrap());
    assert!(soon(subject.other.set_group(&topic, &workers, Some(Begin::First))).await.unwrap());
    let mut seen = BTreeSet::new();
    while seen.len() < 3 {
        seen.insert(take_later(&subject.one, &topic, &workers).await.message.id);
    }
}

/// A client that makes up names of groups does not fill the engine.
pub async fn a_topic_has_a_limited_number_of_groups(subject: &Subject) {
    let topic = fresh("many-groups");
    publish(&subject.one, &topic, texts(0..1)).await;
    let limit = GroupSettings::MAX_GROUPS;
    for number in 0..limit {
        let made = soon(subject.one.set_group(&topic, &group(&format!("g{number}")), None)).await;
        if is_unsupported(&made) {
            return;
        }
        assert_eq!(made, Ok(true));
    }
    let (other, refused) = (group("other"), EngineError::TooManyGroups { limit });
    assert_eq!(soon(subject.other.set_group(&topic, &other, None)).await, Err(refused));
    let fetched = subject.other.fetch(&topic, Some(&other), fetch(1, Duration::from_secs(1)));
    assert_eq!(soon(fetched).await.map(drop), Err(refused));
    // Those that are there go on, and so do plain pulls.
    assert_eq!(soon(subject.other.set_group(&topic, &group("g0"), None)).await, Ok(false));
    take_later(&subject.other, &topic, &group("g1")).await;
    let pulled = subject.other.fetch(&topic, None, fetch(1, Duration::from_secs(10)));
    assert_eq!(soon(pulled).await.unwrap().messages.len(), 1);
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
