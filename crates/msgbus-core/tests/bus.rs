//! The public API as a program uses it, with real threads.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_core::Stream;
use msgbus_core::{
    BatchLimit, BusStats, Event, LagPolicy, LimitReached, MessageBus, NewMessage, Options,
    Position, PublishError, RecvError, SubscribeError, SubscribeOptions, Subscription, TopicName,
    TopicSettings,
};

fn name(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn id(event: &Event) -> u64 {
    match event {
        Event::Message { message, .. } => message.id(),
        Event::Missed { count, .. } => panic!("{count} missed"),
    }
}

/// More time than any passing test needs.
const SOON: Duration = Duration::from_secs(20);

fn next(subscription: &mut Subscription) -> u64 {
    id(&subscription.recv_timeout(SOON).unwrap().expect("an event soon"))
}

#[test]
fn concurrent_publishers_and_pullers_share_each_id_once_and_in_order() {
    const PUBLISHERS: usize = 4;
    const EACH: usize = 5_000;
    let bus = MessageBus::new(Options::default());
    let jobs = name("jobs");
    let taken = Arc::new(AtomicUsize::new(0));

    let pullers: Vec<_> = (0..3)
        .map(|_| {
            let (bus, jobs, taken) = (bus.clone(), jobs.clone(), Arc::clone(&taken));
            thread::spawn(move || {
                let mut mine = Vec::new();
                while taken.load(SeqCst) < PUBLISHERS * EACH {
                    if let Some(message) = bus.get(&jobs).unwrap() {
                        taken.fetch_add(1, SeqCst);
                        mine.push(message.id());
                    }
                }
                mine
            })
        })
        .collect();
    thread::scope(|scope| {
        for _ in 0..PUBLISHERS {
            scope.spawn(|| {
                let mut last = None;
                for _ in 0..EACH {
                    let id = bus.put(&jobs, "job").unwrap().id;
                    assert!(last < Some(id), "ids rise for each publisher");
                    last = Some(id);
                }
            });
        }
    });

    let mut all = HashSet::new();
    for puller in pullers {
        let mine = puller.join().unwrap();
        assert!(mine.is_sorted(), "a puller sees ids in order");
        for id in mine {
            assert!(all.insert(id), "{id} was pulled twice");
        }
    }
    assert_eq!(all.len(), PUBLISHERS * EACH);
    assert_eq!(bus.topic(&jobs).unwrap().counters.pulled, (PUBLISHERS * EACH) as u64);
}

#[test]
fn a_blocked_subscriber_sees_everything_in_order_while_others_come_and_go() {
    const COUNT: u64 = 20_000;
    let bus = MessageBus::new(Options::default());
    let news = name("news");
    let mut subscription = bus.subscribe(&news, Position::New).unwrap();
    let done = AtomicBool::new(false);

    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..COUNT {
                bus.put(&news, "n").unwrap();
            }
        });
        scope.spawn(|| {
            while !done.load(SeqCst) {
                let mut passer_by = bus.subscribe(&news, Position::All).unwrap();
                let _ = passer_by.recv_timeout(Duration::from_micros(50));
            }
        });
        for expected in 0..COUNT {
            assert_eq!(next(&mut subscription), expected);
        }
        done.store(true, SeqCst);
    });
    assert_eq!(subscription.try_recv(), Ok(None));
    assert_eq!(bus.topic(&news).unwrap().subscribers, 1);
}

#[test]
fn no_accepted_message_is_lost_to_a_delete() {
    const COUNT: u64 = 20_000;
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let start = Barrier::new(3);
    thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            for _ in 0..COUNT {
                bus.put(&topic, "x").unwrap();
            }
        });
        scope.spawn(|| {
            let mut handle = bus.handle(&topic);
            start.wait();
            for _ in 0..COUNT {
                handle.put("x").unwrap();
            }
        });
        start.wait();
        for _ in 0..2_000 {
            bus.delete(&topic).wait().unwrap();
        }
    });
    let stats = bus.stats();
    assert_eq!(stats.counters.published, 2 * COUNT);
    assert_eq!(stats.retained + stats.counters.deleted.total, 2 * COUNT);
    assert_eq!(stats.counters.deleted.unpulled, stats.counters.deleted.total);
}

#[test]
fn a_handle_does_what_the_name_does() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let mut handle = bus.handle(&topic);
    assert_eq!(handle.get().unwrap(), None);
    assert_eq!(bus.topics(), [], "a handle makes no topic");

    let first = handle.put("a").unwrap();
    assert_eq!(bus.get(&topic).unwrap().unwrap().payload(), "a");
    bus.delete(&topic).wait().unwrap();
    let mut subscription = handle.subscribe(Position::New).unwrap();
    let again = bus.put(&topic, "b").unwrap();
    assert!(again.epoch > first.epoch);
    assert_eq!(next(&mut subscription), 0);
    assert_eq!(handle.get().unwrap().unwrap().payload(), "b");
}

#[test]
fn epochs_rise_and_distinguish_a_restart_from_a_lag() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let first = bus.put(&topic, "a").unwrap();
    bus.delete(&topic).wait().unwrap();
    let second = bus.put(&topic, "b").unwrap();
    assert_eq!((first.id, second.id), (0, 0));
    assert!(second.epoch > first.epoch);

    let after = |published: msgbus_core::Published| Position::After {
        epoch: published.epoch,
        id: published.id,
    };
    let mut resumed = bus.subscribe(&topic, after(first)).unwrap();
    assert!(resumed.start().restarted);
    assert_eq!(next(&mut resumed), 0, "all of the new life is replayed");

    let mut resumed = bus.subscribe(&topic, after(second)).unwrap();
    assert!(!resumed.start().restarted);
    assert_eq!(resumed.try_recv(), Ok(None));
    assert!(bus.subscribe(&topic, Position::Id(2)).unwrap().start().restarted, "ahead of the log");
}

#[test]
fn a_subscriber_overtaken_by_retention_receives_the_count() {
    let topic_settings = TopicSettings { max_messages: 10, ..TopicSettings::default() };
    let bus = MessageBus::new(Options { topic: topic_settings, ..Options::default() });
    let topic = name("t");
    let mut skips = bus.subscribe(&topic, Position::New).unwrap();
    let strict = SubscribeOptions { lag: LagPolicy::Disconnect, ..SubscribeOptions::default() };
    let mut ends = bus.subscribe(&topic, strict.clone()).unwrap();
    for _ in 0..25 {
        bus.put(&topic, "x").unwrap();
    }

    assert_eq!(skips.try_recv(), Ok(Some(Event::Missed { count: 15, next_id: 15 })));
    let mut events = Vec::new();
    let limit = BatchLimit { events: 4, bytes: usize::MAX };
    assert!(poll_once(skips.recv_batch(&mut events, limit)).is_ready());
    assert_eq!(events.iter().map(id).collect::<Vec<_>>(), [15, 16, 17, 18]);
    let stats = skips.stats();
    assert_eq!((stats.received, stats.missed, stats.pending), (4, 15, 6));

    assert_eq!(ends.try_recv(), Err(RecvError::Lagged { missed: 15 }));
    assert_eq!(ends.try_recv(), Err(RecvError::Lagged { missed: 15 }), "and stays ended");

    let mut late = bus.subscribe(&topic, Position::Id(3)).unwrap();
    assert_eq!((late.start().missed, late.start().next_id), (12, 15));
    assert_eq!(late.try_recv(), Ok(Some(Event::Missed { count: 12, next_id: 15 })));
    assert_eq!(next(&mut late), 15);
}

#[test]
fn a_batch_ends_at_its_limit_of_bytes() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    for _ in 0..10 {
        bus.put(&topic, vec![0; 100]).unwrap();
    }
    let mut subscription = bus.subscribe(&topic, Position::All).unwrap();
    for expected in [3, 3, 3, 1] {
        let mut events = Vec::new();
        let limit = BatchLimit { events: 64, bytes: 201 };
        assert!(poll_once(subscription.recv_batch(&mut events, limit)).is_ready());
        assert_eq!(events.len(), expected);
    }
}

#[test]
fn delete_ends_subscriptions_at_once_and_close_lets_them_drain() {
    let bus = MessageBus::new(Options::default());
    let (gone, kept) = (name("gone"), name("kept"));
    for topic in [&gone, &kept] {
        bus.put(topic, "1").unwrap();
        bus.put(topic, "2").unwrap();
    }
    let mut deleted = bus.subscribe(&gone, Position::All).unwrap();
    let mut drains = bus.subscribe(&kept, Position::All).unwrap();

    assert!(bus.delete(&gone).wait().unwrap());
    assert!(!bus.delete(&gone).wait().unwrap(), "there is none any more");
    assert_eq!(deleted.recv_blocking(), Err(RecvError::Deleted));
    assert_eq!(deleted.stats().missed, 2);

    bus.close().unwrap();
    assert_eq!(bus.put(&kept, "3"), Err(PublishError::Closed));
    assert_eq!(bus.put(&name("new"), "1"), Err(PublishError::Closed));
    assert_eq!(bus.subscribe(&kept, Position::All).err(), Some(SubscribeError::Closed));
    assert_eq!(bus.get(&kept).unwrap().unwrap().payload(), "1");
    assert_eq!((next(&mut drains), next(&mut drains)), (0, 1));
    assert_eq!(drains.recv_blocking(), Err(RecvError::Closed));
}

#[test]
fn delete_and_close_wake_a_blocked_thread() {
    let delete = |bus: &MessageBus| assert!(bus.delete(&name("t")).wait().unwrap());
    for end in [|bus: &MessageBus| bus.close().unwrap(), delete] {
        let bus = MessageBus::new(Options::default());
        let mut subscription = bus.subscribe(&name("t"), Position::New).unwrap();
        let blocked = thread::spawn(move || subscription.recv_timeout(SOON));
        // It must end whether it sleeps by now or not.
        thread::yield_now();
        end(&bus);
        assert!(blocked.join().unwrap().is_err());
    }
}

#[test]
fn a_receive_ends_at_its_deadline() {
    let bus = MessageBus::new(Options::default());
    let mut subscription = bus.subscribe(&name("t"), Position::New).unwrap();
    let start = Instant::now();
    assert_eq!(subscription.recv_timeout(Duration::from_millis(30)), Ok(None));
    assert!(start.elapsed() >= Duration::from_millis(30));
}

#[test]
fn a_dropped_receive_takes_nothing_and_the_wake_is_not_lost() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let mut subscription = bus.subscribe(&topic, Position::New).unwrap();
    for expected in 0..3 {
        // It parks and is dropped.
        assert!(poll_once(subscription.recv()).is_pending());
        assert!(poll_once(subscription.recv()).is_pending());
        bus.put(&topic, "x").unwrap();
        let Poll::Ready(event) = poll_once(subscription.recv()) else { panic!("pending") };
        assert_eq!(id(&event.unwrap()), expected);
    }
}

#[test]
fn a_parked_task_is_woken_once_per_sleep() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let mut subscription = bus.subscribe(&topic, Position::New).unwrap();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut cx = Context::from_waker(&waker);

    assert!(subscription.poll_recv(&mut cx).is_pending());
    assert!(subscription.poll_recv(&mut cx).is_pending());
    bus.put(&topic, "1").unwrap();
    bus.put(&topic, "2").unwrap();
    assert_eq!(wakes.0.load(SeqCst), 1, "awake already when the second came");

    let mut stream = Pin::new(&mut subscription);
    assert!(stream.as_mut().poll_next(&mut cx).is_ready());
    assert!(stream.as_mut().poll_next(&mut cx).is_ready());
    assert!(stream.as_mut().poll_next(&mut cx).is_pending());
    bus.close().unwrap();
    assert_eq!(wakes.0.load(SeqCst), 2);
    assert_eq!(stream.as_mut().poll_next(&mut cx), Poll::Ready(Some(Err(RecvError::Closed))));
    assert_eq!(stream.poll_next(&mut cx), Poll::Ready(None));
}

#[test]
fn the_bus_limits_its_topics_and_bytes() {
    let options = Options { max_topics: 3, max_bytes: 4_000, ..Options::default() };
    let bus = MessageBus::new(options);
    for topic in ["a", "b", "c"] {
        bus.put(&name(topic), "x").unwrap();
    }
    let full = LimitReached::Topics { limit: 3 };
    assert_eq!(bus.put(&name("d"), "x"), Err(full.into()));
    assert!(bus.get(&name("d")).unwrap().is_none());
    assert_eq!(bus.topics().len(), 3);

    assert!(bus.delete(&name("c")).wait().unwrap());
    bus.put(&name("d"), "x").unwrap();
    let refused = bus.put(&name("d"), vec![0; 5_000]).unwrap_err();
    assert_eq!(refused, LimitReached::Bytes { limit: 4_000 }.into());

    for topic in ["a", "b", "d"] {
        assert!(bus.delete(&name(topic)).wait().unwrap());
    }
    assert_eq!(bus.stats().bytes, 0, "everything set aside has been given back");
}

#[test]
fn a_refused_publish_does_not_reserve_bytes_meanwhile() {
    let topic_settings = TopicSettings { max_bytes: 1_000, ..TopicSettings::default() };
    let bus =
        MessageBus::new(Options { topic: topic_settings, max_topics: 1, ..Options::default() });
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let large = Bytes::from(vec![0; 2_000]);
            while !done.load(SeqCst) {
                bus.put(&name("large"), large.clone()).unwrap_err();
            }
        });
        let accepted = (0..20_000).all(|_| {
            let accepted = bus.put(&name("small"), "x").is_ok();
            bus.delete(&name("small")).wait().unwrap();
            accepted
        });
        done.store(true, SeqCst);
        assert!(accepted);
    });
}

#[test]
fn a_refused_publish_creates_no_topic() {
    let topic_settings = TopicSettings { max_bytes: 1_000, ..TopicSettings::default() };
    let bus =
        MessageBus::new(Options { topic: topic_settings, max_bytes: 10_000, ..Options::default() });
    for n in 0..100 {
        bus.put(&name(&format!("t{n}")), vec![0; 2_000]).unwrap_err();
    }
    assert_eq!((bus.topics().len(), bus.stats().bytes), (0, 0));
    bus.put(&name("t"), "x").unwrap();
}

#[test]
fn dropping_a_waker_that_owns_a_subscription_of_the_topic_does_not_hang() {
    struct Owner(#[expect(dead_code, reason = "it is there to be dropped")] Subscription);
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {}
    }
    let bus = MessageBus::new(Options::default());
    let subscribe = || bus.subscribe(&name("t"), Position::New).unwrap();
    let park = |subscription: &mut Subscription| {
        let waker = Waker::from(Arc::new(Owner(subscribe())));
        assert!(subscription.poll_recv(&mut Context::from_waker(&waker)).is_pending());
    };
    let mut subscription = subscribe();
    park(&mut subscription);
    park(&mut subscription);
    drop(subscription);
    assert_eq!(bus.stats().subscribers, 0);
}

#[test]
fn messages_that_leave_with_their_topic_are_dropped_outside_its_locks() {
    struct Looks(MessageBus, mpsc::Sender<BusStats>);
    impl AsRef<[u8]> for Looks {
        fn as_ref(&self) -> &[u8] {
            b"payload"
        }
    }
    impl Drop for Looks {
        fn drop(&mut self) {
            self.1.send(self.0.stats()).unwrap();
        }
    }
    let bus = MessageBus::new(Options::default());
    let (sender, dropped) = mpsc::channel();
    bus.put(&name("t"), Bytes::from_owner(Looks(bus.clone(), sender))).unwrap();
    thread::spawn(move || bus.delete(&name("t")).wait().unwrap());
    let stats = dropped.recv_timeout(SOON).unwrap();
    assert_eq!((stats.topics, stats.counters.deleted.unpulled), (0, 1));
}

#[test]
fn a_batch_is_published_whole_or_not_at_all() {
    let settings = TopicSettings { max_messages: 5, ..TopicSettings::default() };
    let bus = MessageBus::new(Options { topic: settings, ..Options::default() });
    let topic = name("t");
    let drafts =
        |count| (0..count).map(|n: u64| NewMessage::new(n.to_string())).collect::<Vec<_>>();
    assert_eq!(bus.put_batch(&topic, drafts(3)).unwrap().ids, 0..3);
    assert_eq!(bus.put_batch(&topic, drafts(4)).unwrap().ids, 3..7);
    assert_eq!(bus.put_batch(&topic, drafts(6)), Err(PublishError::TooMany { count: 6, limit: 5 }));
    let limit = BatchLimit { events: 10, bytes: usize::MAX };
    let ids: Vec<u64> =
        bus.get_batch(&topic, limit).unwrap().iter().map(msgbus_core::Message::id).collect();
    assert_eq!(ids, [2, 3, 4, 5, 6]);
}

#[test]
fn expired_messages_are_never_seen_and_purging_frees_them() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    bus.put(&topic, NewMessage::new("short").ttl(Duration::from_millis(500))).unwrap();
    bus.put(&topic, "long").unwrap();
    thread::sleep(Duration::from_millis(510)); // Real expiry needs real time.
    assert_eq!(bus.purge_expired().messages, 1);
    assert_eq!(bus.get(&topic).unwrap().unwrap().payload(), "long");
    let stats = bus.topic(&topic).unwrap();
    assert_eq!((stats.counters.expired.total, stats.counters.expired.unpulled), (1, 1));
    assert_eq!(stats.retained, 1, "pulled messages stay for replay");
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}
