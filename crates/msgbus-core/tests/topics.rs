//! When topics are created and removed, walks over many of them, and how their messages are freed.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream as _;
use msgbus_core::{
    BatchLimit, Event, LagPolicy, LimitReached, MessageBus, NewMessage, Options, Overflow,
    Position, PublishError, RecvError, SubscribeOptions, TopicName, TopicSettings,
};

const ONE: BatchLimit = BatchLimit { events: 1, bytes: usize::MAX };
/// More time than any passing test needs.
const SOON: Duration = Duration::from_secs(20);

fn name(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_topic_without_a_publish_is_removed_with_its_last_consumer_and_uses_no_limit() {
    let bus = MessageBus::new(Options { max_topics: 1, max_bytes: 4_000, ..Options::default() });
    let names: Vec<_> = (0..100).map(|n| name(&format!("quiet/{n}"))).collect();
    let followers: Vec<_> =
        names.iter().map(|name| bus.subscribe(name, Position::New).unwrap()).collect();
    let waiters: Vec<_> = names.iter().map(|name| bus.pull_wait(name, ONE).unwrap()).collect();
    assert_eq!((bus.topics().len(), bus.stats().bytes), (100, 0));

    bus.put(&name("loud"), "x").unwrap();
    let full = Err(PublishError::LimitReached(LimitReached::Topics { limit: 1 }));
    assert_eq!(bus.put(&names[0], "x"), full, "a publish is what makes it count");
    drop(followers);
    assert_eq!(bus.topics().len(), 101, "somebody waits for each");
    drop(waiters);
    assert_eq!(bus.topics(), [name("loud")]);

    assert!(bus.delete(&name("loud")).wait().unwrap());
    let follower = bus.subscribe(&names[0], Position::New).unwrap();
    bus.put(&names[0], "x").unwrap();
    drop(follower);
    assert_eq!(bus.topics(), [names[0].clone()], "it was published to");
    assert_eq!(bus.put(&names[1], "x").map(drop), full.map(drop));
}

#[test]
fn consumers_and_publishers_of_one_topic_that_come_and_go_lose_nothing() {
    let bus = MessageBus::new(Options { max_topics: 1, ..Options::default() });
    let topic = name("t");
    thread::scope(|scope| {
        let followers = scope.spawn(|| {
            for _ in 0..20_000 {
                drop(bus.subscribe(&topic, Position::New).unwrap());
                drop(bus.pull_wait(&topic, ONE).unwrap());
            }
        });
        while !followers.is_finished() {
            let published = bus.put(&topic, "x").unwrap();
            assert_eq!(published.id, 0);
            assert_eq!(bus.get(&topic).unwrap().unwrap().topic().epoch, published.epoch);
            assert!(bus.delete(&topic).wait().unwrap());
        }
    });
    assert_eq!((bus.topics().len(), bus.stats().bytes), (0, 0));
    bus.put(&topic, "x").unwrap();
}

#[test]
fn resuming_at_the_start_of_a_topic_that_was_never_published_to_misses_nothing() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let start = |from| bus.subscribe(&topic, from).unwrap().start();
    let epoch = bus.subscribe(&topic, Position::New).unwrap().epoch();
    assert!(!start(Position::Start { epoch }).restarted);

    // The subscriber waits for what was published in between.
    bus.put(&topic, "a").unwrap();
    let resumed = start(Position::Start { epoch });
    assert_eq!((resumed.next_id, resumed.missed, resumed.restarted), (0, 0, false));

    bus.delete(&topic).wait().unwrap();
    assert!(start(Position::Start { epoch }).restarted, "a message may have been missed");
    assert!(start(Position::Start { epoch: 17 }).restarted, "of another bus");
    assert!(start(Position::Start { epoch: u64::MAX }).restarted, "of no bus yet");
}

#[test]
fn an_empty_batch_creates_no_topic() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let nothing = bus.put_batch(&topic, Vec::new()).unwrap();
    assert_eq!((nothing.epoch, nothing.ids), (0, 0..0));
    assert_eq!(bus.topics(), []);
    let published = bus.put(&topic, "x").unwrap();
    let nothing = bus.put_batch(&topic, Vec::new()).unwrap();
    assert_eq!((nothing.epoch, nothing.ids), (published.epoch, 1..1));
    bus.close().unwrap();
    assert_eq!(bus.put_batch(&topic, Vec::new()), Err(PublishError::Closed));
}

#[test]
fn a_completed_pull_does_not_block_the_queue() {
    #[derive(Default)]
    struct Wakes(AtomicUsize);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let mut first = bus.pull_wait(&topic, ONE).unwrap();
    let mut second = bus.pull_wait(&topic, ONE).unwrap();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    assert!(Pin::new(&mut second).poll(&mut Context::from_waker(&waker)).is_pending());

    bus.put_batch(&topic, vec!["a".into(), "b".into()]).unwrap();
    assert!(poll(&mut first).is_ready());
    assert_eq!(wakes.0.load(SeqCst), 1, "there is something left for the second");
    assert!(poll(&mut first).is_pending(), "it takes no more");
    assert_eq!(bus.topic(&topic).unwrap().waiters, 1);
    let Poll::Ready(Ok(messages)) = poll(&mut second) else { panic!("the second is served") };
    assert_eq!(messages[0].payload(), "b");
}

#[test]
fn the_stream_of_a_subscription_ends_with_the_reason() {
    let settings = TopicSettings { max_messages: 1, ..TopicSettings::default() };
    let bus = MessageBus::new(Options { topic: settings, ..Options::default() });
    let topic = name("t");
    let lag = SubscribeOptions { lag: LagPolicy::Disconnect, ..SubscribeOptions::default() };
    let mut lagging = bus.subscribe(&topic, lag).unwrap();
    for _ in 0..3 {
        bus.put(&topic, "x").unwrap();
    }
    let mut cx = Context::from_waker(Waker::noop());
    let mut next = || Pin::new(&mut lagging).poll_next(&mut cx);
    assert_eq!(next(), Poll::Ready(Some(Err(RecvError::Lagged { missed: 2 }))));
    assert_eq!(next(), Poll::Ready(None));
}

#[test]
fn a_page_has_the_first_names_and_whether_there_are_more() {
    let bus = MessageBus::new(Options::default());
    let all: BTreeSet<_> = (0..1000).map(|n| format!("{}/{n}", ["a", "b", "c"][n % 3])).collect();
    for topic in &all {
        bus.put(&name(topic), "x").unwrap();
    }
    for (prefix, after, max) in [
        ("", "", 5),
        ("b/", "", 7),
        ("b", "b/5", 1),
        ("b/", "", 333),
        ("b/", "", 332),
        ("z", "", 3),
    ] {
        let mut page = bus.topic_page(prefix, after, max);
        while page.step(|name| !name.as_str().ends_with('7')) {}
        let (names, more) = page.into_names();
        let mut expected = all.iter().filter(|text| {
            text.starts_with(prefix) && text.as_str() > after && !text.ends_with('7')
        });
        let first: Vec<_> = expected.by_ref().take(max).map(|text| name(text)).collect();
        assert_eq!((names, more), (first, expected.next().is_some()), "{prefix} {after} {max}");
    }
    assert_eq!(bus.topics().len(), 1000);
    assert!(bus.topics().is_sorted());
}

/// Counters never decrease and always balance, although topics are created and removed while they are read.
#[test]
fn a_walk_counts_each_topic_once_wherever_it_is() {
    let bus = MessageBus::new(Options::default());
    let topics: Vec<_> = (0..50).map(|n| name(&format!("{n}"))).collect();
    thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for round in 0..200 {
                for topic in topics.iter().skip(round % 2).step_by(2) {
                    bus.put(topic, "x").unwrap();
                    assert!(bus.delete(topic).wait().unwrap());
                }
            }
        });
        let mut published = 0;
        while !churn.is_finished() {
            let counters = bus.stats().counters;
            assert!(counters.published >= published);
            published = counters.published;
        }
    });
    let counters = bus.stats().counters;
    assert_eq!((counters.published, counters.deleted.total), (5_000, 5_000));
}

type Act = (&'static str, Box<dyn FnOnce(&MessageBus) + Send>);

fn ignore<T>(_: T) {}

/// A payload whose drop locks its topic. If it were dropped under the lock, it would deadlock.
struct Looks(MessageBus, TopicName, mpsc::Sender<()>);

impl AsRef<[u8]> for Looks {
    fn as_ref(&self) -> &[u8] {
        b"payload"
    }
}

impl Drop for Looks {
    fn drop(&mut self) {
        // This also takes the shard's lock for writing.
        self.0.delete(&name("another")).wait().unwrap();
        self.0.peek(&self.1, None, ONE).wait().unwrap();
        self.2.send(()).unwrap();
    }
}

#[test]
fn messages_are_freed_without_a_lock_for_whatever_reason_they_leave() {
    let settings = TopicSettings { max_messages: 2, ..TopicSettings::default() };
    let bus = MessageBus::new(Options { topic: settings, ..Options::default() });
    let (sender, freed) = mpsc::channel();
    let looks = |topic: &str| Bytes::from_owner(Looks(bus.clone(), name(topic), sender.clone()));
    let short = |topic: &str| NewMessage::new(looks(topic)).ttl(Duration::from_millis(1));
    let in_time = |what: &str, act: Box<dyn FnOnce(&MessageBus) + Send>| {
        let bus = bus.clone();
        thread::spawn(move || act(&bus));
        assert!(freed.recv_timeout(SOON).is_ok(), "{what} frees under a lock");
    };

    bus.put(&name("evict"), looks("evict")).unwrap();
    bus.put(&name("evict"), "x").unwrap();
    in_time("eviction", Box::new(|bus| ignore(bus.put(&name("evict"), "x").unwrap())));

    let too_many: Vec<NewMessage> = (0..3).map(|_| NewMessage::new(looks("evict"))).collect();
    in_time(
        "a refusal",
        Box::new(|bus| ignore(bus.put_batch(&name("evict"), too_many).unwrap_err())),
    );

    let acts: [Act; 5] = [
        ("put", Box::new(|bus| ignore(bus.put(&name("put"), "x").unwrap()))),
        ("get", Box::new(|bus| ignore(bus.get(&name("get")).unwrap()))),
        ("stats", Box::new(|bus| ignore(bus.stats()))),
        ("purge", Box::new(|bus| ignore(bus.purge_expired()))),
        ("delete", Box::new(|bus| assert!(bus.delete(&name("delete")).wait().unwrap()))),
    ];
    for (what, act) in acts {
        bus.put(&name(what), short(what)).unwrap();
        thread::sleep(Duration::from_millis(5)); // Real expiry needs real time.
        in_time(what, act);
    }
}

/// Nobody receives an expired message, although only a slice of them is removed at once. No unexpired message
/// is evicted while expired ones are left.
#[test]
fn many_messages_that_expire_at_once_are_skipped_and_counted() {
    const MANY: u64 = 5_000;
    let settings = TopicSettings {
        max_messages: usize::try_from(MANY).unwrap() + 1,
        overflow: Overflow::Reject,
        ..TopicSettings::default()
    };
    let bus = MessageBus::new(Options { topic: settings, ..Options::default() });
    let topic = name("t");
    bus.put(&topic, "first").unwrap();
    let mut behind = bus.subscribe(&topic, Position::All).unwrap();
    let short = || NewMessage::new("short").ttl(Duration::from_millis(200));
    bus.put_batch(&topic, (0..MANY).map(|_| short()).collect()).unwrap();
    thread::sleep(Duration::from_millis(210)); // Real expiry needs real time.

    assert_eq!(bus.get(&topic).unwrap().unwrap().payload(), "first");
    assert_eq!(bus.get(&topic).unwrap(), None);
    bus.put(&topic, "last").unwrap();
    assert_eq!(bus.get(&topic).unwrap().unwrap().payload(), "last");
    assert!(
        matches!(behind.recv_blocking(), Ok(Event::Message { message, .. }) if message.id() == 0)
    );
    assert_eq!(behind.recv_blocking(), Ok(Event::Missed { count: MANY, next_id: 1 + MANY }));
    let stats = bus.topic(&topic).unwrap();
    assert_eq!((stats.counters.expired.total, stats.counters.expired.unpulled), (MANY, MANY));
    assert_eq!((stats.counters.evicted.total, stats.retained, stats.counters.missed), (0, 2, MANY));
}
