//! Durable topics: what is appended is seen when the store has kept it, and is there after a crash.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod cold;
mod groups;
mod patterns;
mod store;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use msgbus_core::{
    BatchLimit, DeleteError, Event, LeaseOptions, LimitReached, Message, MessageBus, NewMessage,
    Op, Options, Overflow, Position, PublishError, RecvError, TopicName, TopicSettings, TopicStats,
    store::{Durability, Promise, StoreError},
};

use self::store::Disk;

const ALL: BatchLimit = BatchLimit { events: usize::MAX, bytes: usize::MAX };

fn name(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn durable(settings: TopicSettings) -> Options {
    let topic = TopicSettings { promise: Promise::Synced, ..settings };
    Options { topic, ..Options::default() }
}

fn open(disk: &Disk) -> MessageBus {
    open_with(disk, TopicSettings::default())
}

fn open_with(disk: &Disk, settings: TopicSettings) -> MessageBus {
    MessageBus::open(durable(settings), Arc::new(disk.clone())).unwrap()
}

fn poll<T: Unpin>(op: &mut Op<T>) -> Poll<T> {
    Pin::new(op).poll(&mut Context::from_waker(Waker::noop()))
}

/// Publishes, and commits.
fn put(bus: &MessageBus, disk: &Disk, text: &'static str) -> u64 {
    let mut op = bus.publish(&name("t"), text);
    assert_eq!(poll(&mut op), Poll::Pending);
    disk.commit();
    op.wait().unwrap().id
}

fn pull(bus: &MessageBus, disk: &Disk) -> Option<String> {
    let mut op = bus.pull(&name("t"), BatchLimit::ONE);
    let pulled = loop {
        match poll(&mut op) {
            Poll::Ready(pulled) => break pulled,
            // It reads, or waits for the commit.
            Poll::Pending => disk.commit(),
        }
    };
    pulled.unwrap().pop().map(|message| text(&message))
}

/// All payloads, read in as many peeks as it takes.
fn payloads(bus: &MessageBus) -> Vec<String> {
    let mut payloads = Vec::new();
    let mut from = Position::All;
    loop {
        let peek = bus.peek(&name("t"), Some(from), ALL).wait().unwrap().unwrap();
        for event in &peek.events {
            payloads.push(match event {
                Event::Message { message, .. } => text(message),
                Event::Missed { count, .. } => format!("missed {count}"),
            });
        }
        let Some(last) = peek.messages().last() else { return payloads };
        from = Position::After { epoch: peek.epoch, id: last.id() };
    }
}

fn text(message: &Message) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

fn stats(bus: &MessageBus) -> TopicStats {
    let stats = bus.topic(&name("t")).unwrap();
    let counters = stats.counters;
    let (expired, evicted, deleted) = (counters.expired, counters.evicted, counters.deleted);
    assert_eq!(
        counters.published,
        stats.retained + expired.total + evicted.total + deleted.total,
        "{stats:?}"
    );
    assert_eq!(
        counters.published,
        counters.pulled + stats.unpulled + expired.unpulled + evicted.unpulled + deleted.unpulled,
        "{stats:?}"
    );
    stats
}

#[test]
fn a_message_is_seen_when_it_is_committed_and_not_before() {
    let disk = Disk::default();
    let bus = open(&disk);
    let mut subscription = bus.subscribe(&name("t"), Position::All).unwrap();
    let mut published = bus.publish(&name("t"), "one");
    let mut second = bus.publish_batch(&name("t"), vec!["two".into(), "three".into()]);
    assert_eq!((poll(&mut published), poll(&mut second).is_pending()), (Poll::Pending, true));
    assert_eq!(subscription.try_recv(), Ok(None));
    assert_eq!(bus.get(&name("t")), Ok(None));
    assert_eq!((stats(&bus).next_id, stats(&bus).counters.published), (0, 0));

    disk.commit();
    let published = published.wait().unwrap();
    assert_eq!((published.id, published.durability), (0, Durability::Synced));
    assert_eq!(second.wait().unwrap().ids, 1..3);
    let ids: Vec<_> = std::iter::from_fn(|| subscription.try_recv().unwrap()).collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(stats(&bus).next_id, 3);
}

#[test]
fn a_commit_wakes_those_who_wait() {
    let disk = Disk::default();
    let bus = open(&disk);
    let (mut subscription, pulling) = (
        bus.subscribe(&name("t"), Position::New).unwrap(),
        bus.pull_wait(&name("t"), ALL).unwrap(),
    );
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| bus.put(&name("t"), "hi"));
        let subscriber = scope.spawn(move || subscription.recv_blocking());
        let puller = scope.spawn(move || pulling.wait_timeout(Duration::from_secs(20)));
        while !(publisher.is_finished() && subscriber.is_finished() && puller.is_finished()) {
            disk.commit();
            std::thread::yield_now();
        }
        assert_eq!(publisher.join().unwrap().unwrap().id, 0);
        assert!(matches!(subscriber.join().unwrap(), Ok(Event::Message { .. })));
        assert_eq!(puller.join().unwrap().unwrap().unwrap().len(), 1);
    });
}

/// What was taken when the time is over would be lost.
#[test]
fn a_pull_whose_time_ends_before_the_store_has_kept_it_returns_its_messages() {
    let disk = Disk::default();
    let bus = open(&disk);
    put(&bus, &disk, "hi");
    let pulling = bus.pull_wait(&name("t"), ALL).unwrap();
    let leasing =
        bus.lease_wait(&name("t"), &"g".parse().unwrap(), LeaseOptions::default()).unwrap();
    std::thread::scope(|scope| {
        let puller = scope.spawn(move || pulling.wait_timeout(Duration::from_millis(50)));
        let worker = scope.spawn(move || leasing.wait_timeout(Duration::from_millis(50)));
        std::thread::sleep(Duration::from_millis(300));
        while !(puller.is_finished() && worker.is_finished()) {
            disk.commit();
            std::thread::yield_now();
        }
        assert_eq!(puller.join().unwrap().unwrap().expect("it is lost").len(), 1);
        assert_eq!(worker.join().unwrap().unwrap().expect("nobody gets it").len(), 1);
    });
}

#[test]
fn everything_continues_after_a_crash() {
    let disk = Disk::default();
    let bus = open(&disk);
    let epoch = bus.publish(&name("t"), "zero");
    disk.commit();
    let epoch = epoch.wait().unwrap().epoch;
    put(&bus, &disk, "one");
    put(&bus, &disk, "two");
    assert_eq!(pull(&bus, &disk).as_deref(), Some("zero"));
    let lost = bus.publish(&name("t"), "lost");
    let lost_pull = bus.pull(&name("t"), ALL);
    let before = stats(&bus);
    drop((lost, lost_pull, bus));

    let disk = disk.crash();
    let bus = open(&disk);
    let after = stats(&bus);
    assert_eq!(after.topic.epoch, epoch);
    assert_eq!(after.topic.created, before.topic.created);
    assert_eq!((after.next_id, after.counters.pulled, after.unpulled), (3, 1, 2));
    let mut subscription = bus.subscribe(&name("t"), Position::After { epoch, id: 1 }).unwrap();
    assert!(!subscription.start().restarted);
    let Ok(Event::Message { message, .. }) = subscription.recv_blocking() else { panic!() };
    assert_eq!(message.payload(), "two");
    assert_eq!(pull(&bus, &disk).as_deref(), Some("one"));
    assert_eq!(put(&bus, &disk, "three"), 3);
    assert_eq!(payloads(&bus), ["zero", "one", "two", "three"]);
    assert_eq!(stats(&bus).counters.published, 4);
}

#[test]
fn what_the_store_refuses_leaves_no_trace() {
    let disk = Disk::default();
    let settings = TopicSettings { max_messages: 2, ..TopicSettings::default() };
    let bus = open_with(&disk, settings);
    put(&bus, &disk, "a");
    put(&bus, &disk, "b");
    let (refused, pulled) = (bus.publish(&name("t"), "c"), bus.pull(&name("t"), ALL));
    let also = bus.publish(&name("t"), "d");
    disk.refuse(StoreError::Full);
    assert_eq!(refused.wait(), Err(PublishError::Store(StoreError::Full)));
    assert_eq!(also.wait(), Err(PublishError::Store(StoreError::Full)));
    assert_eq!(pulled.wait(), Err(StoreError::Full));
    assert_eq!(payloads(&bus), ["a", "b"], "nothing was evicted for it");
    assert_eq!((stats(&bus).next_id, stats(&bus).unpulled), (2, 2));

    assert_eq!(put(&bus, &disk, "e"), 2);
    assert_eq!(payloads(&bus), ["b", "e"]);
    assert_eq!(pull(&bus, &disk).as_deref(), Some("b"));
    disk.refuse_appends(Some(StoreError::Busy));
    assert_eq!(bus.put(&name("t"), "f"), Err(PublishError::Store(StoreError::Busy)));
    assert_eq!(bus.get(&name("t")), Err(StoreError::Busy));
    assert_eq!(bus.delete(&name("t")).wait(), Err(DeleteError::Refused(StoreError::Busy)));
    disk.refuse_appends(None);
    assert_eq!(pull(&bus, &disk).as_deref(), Some("e"));
    stats(&bus);
}

#[test]
fn a_first_publish_that_is_refused_does_not_count_as_a_topic() {
    let disk = Disk::default();
    let options = Options { max_topics: 1, ..durable(TopicSettings::default()) };
    let bus = MessageBus::open(options, Arc::new(disk.clone())).unwrap();
    disk.refuse_appends(Some(StoreError::Full));
    for _ in 0..3 {
        assert_eq!(bus.put(&name("a"), "x"), Err(PublishError::Store(StoreError::Full)));
    }
    disk.refuse_appends(None);
    let refused = bus.publish(&name("a"), "x");
    disk.refuse(StoreError::Full);
    assert_eq!(refused.wait(), Err(PublishError::Store(StoreError::Full)));
    assert!(bus.topics().is_empty());
    assert_eq!(put(&bus, &disk, "x"), 0);
    let refused = bus.put(&name("b"), "x");
    assert_eq!(refused, Err(PublishError::LimitReached(LimitReached::Topics { limit: 1 })));
}

#[test]
fn limits_hold_for_what_is_committed() {
    let disk = Disk::default();
    let settings = TopicSettings { max_messages: 3, ..TopicSettings::default() };
    let bus = open_with(&disk, settings);
    let ops: Vec<_> = (0..10).map(|_| bus.publish(&name("t"), "x")).collect();
    disk.commit();
    let ids: Vec<_> = ops.into_iter().map(|op| op.wait().unwrap().id).collect();
    assert_eq!(ids, (0..10).collect::<Vec<_>>());
    let stats = stats(&bus);
    assert_eq!((stats.retained, stats.counters.evicted.total), (3, 7));
}

#[test]
fn a_full_topic_that_refuses_counts_what_is_not_committed_yet() {
    let disk = Disk::default();
    let settings =
        TopicSettings { max_messages: 2, overflow: Overflow::Reject, ..TopicSettings::default() };
    let bus = open_with(&disk, settings);
    let ops = [bus.publish(&name("t"), "a"), bus.publish(&name("t"), "b")];
    assert_eq!(bus.put(&name("t"), "c"), Err(PublishError::TopicFull));
    disk.commit();
    assert!(ops.into_iter().all(|op| op.wait().is_ok()));
    assert_eq!(pull(&bus, &disk).as_deref(), Some("a"));
    assert_eq!(put(&bus, &disk, "d"), 2);
    assert_eq!(payloads(&bus), ["b", "d"]);
}

#[test]
fn a_deleted_topic_stays_deleted() {
    let disk = Disk::default();
    let bus = open(&disk);
    put(&bus, &disk, "a");
    let epoch = stats(&bus).topic.epoch;
    let pending = bus.publish(&name("t"), "b");
    let deleted = bus.delete(&name("t"));
    assert!(bus.topic(&name("t")).is_none());
    disk.commit();
    assert_eq!(deleted.wait(), Ok(true));
    assert_eq!(pending.wait().unwrap().id, 1, "as if it had been deleted afterwards");
    let counters = bus.stats().counters;
    assert_eq!((counters.published, counters.deleted.total), (2, 2));
    assert_eq!((disk.topics(), bus.delete(&name("t")).wait()), (0, Ok(false)));

    let bus = open(&disk.clone().crash());
    assert!(bus.topics().is_empty());
    assert_eq!(put(&bus, &disk, "c"), 0);
    assert!(stats(&bus).topic.epoch > epoch);
}

#[test]
fn a_close_keeps_everything_before_subscriptions_end() {
    let disk = Disk::default();
    let bus = open(&disk);
    let mut subscription = bus.subscribe(&name("t"), Position::All).unwrap();
    let last = bus.publish(&name("t"), "last");
    bus.close().unwrap();
    assert_eq!(last.wait().unwrap().id, 0);
    assert!(matches!(subscription.try_recv(), Ok(Some(Event::Message { .. }))));
    assert_eq!(subscription.try_recv(), Err(RecvError::Closed));
    assert_eq!(bus.get(&name("t")), Err(StoreError::Closed));
    assert_eq!(payloads(&open(&disk.crash())), ["last"]);
}

#[test]
fn topics_that_promise_nothing_are_not_kept() {
    let disk = Disk::default();
    let options = durable(TopicSettings { promise: Promise::Memory, ..TopicSettings::default() });
    let options =
        Options { topic: TopicSettings { promise: Promise::Memory, ..options.topic }, ..options };
    let bus = MessageBus::open(options, Arc::new(disk.clone())).unwrap();
    let published = bus.put(&name("t"), "x").unwrap();
    assert_eq!((published.durability, disk.topics()), (Durability::Memory, 0));
}

#[test]
fn a_message_expires_by_the_clock_of_the_wall_across_a_restart() {
    let disk = Disk::default();
    let bus = open(&disk);
    for (text, ttl) in [("gone", 1), ("stays", 1000)] {
        let message = NewMessage::new(text).ttl(Duration::from_secs(ttl));
        let op = bus.publish(&name("t"), message);
        disk.commit();
        op.wait().unwrap();
    }
    put(&bus, &disk, "whole ttl");
    // As if the restart had taken ten seconds.
    disk.change(|_, messages| {
        for message in messages.values_mut() {
            message.expires = message.expires.map(|expires| expires - Duration::from_secs(10));
        }
    });
    let bus = open(&disk.crash());
    assert_eq!(payloads(&bus), ["stays", "whole ttl"]);
    assert_eq!(stats(&bus).counters.expired.total, 1);
}

#[test]
fn a_clock_that_was_set_back_does_not_lengthen_a_ttl() {
    let disk = Disk::default();
    let settings = TopicSettings { ttl: Some(Duration::ZERO), ..TopicSettings::default() };
    let bus = open(&disk);
    put(&bus, &disk, "from the future");
    disk.change(|_, messages| {
        for message in messages.values_mut() {
            message.expires = message.expires.map(|expires| expires + Duration::from_secs(1 << 20));
        }
    });
    assert!(payloads(&open_with(&disk.crash(), settings)).is_empty());
}

#[test]
fn counters_balance_when_the_store_knows_less_than_all() {
    let disk = Disk::default();
    let bus = open(&disk);
    for text in ["a", "b", "c", "d", "e"] {
        put(&bus, &disk, text);
    }
    pull(&bus, &disk);
    pull(&bus, &disk);
    // The counters are from the beginning, and the first three messages have left since.
    disk.change(|state, messages| {
        state.counters = msgbus_core::Counters { pulled: 2, ..Default::default() };
        state.first_id = 3;
        messages.retain(|id, _| *id >= 3);
    });
    let bus = open(&disk.crash());
    let stats = stats(&bus);
    let counters = stats.counters;
    assert_eq!((counters.published, counters.pulled, stats.unpulled), (5, 2, 2));
    assert_eq!((counters.expired.total, counters.expired.unpulled), (3, 1));
}

#[test]
fn ids_that_were_left_out_are_not_missed() {
    let disk = Disk::default();
    let bus = open(&disk);
    put(&bus, &disk, "a");
    put(&bus, &disk, "b");
    disk.skip_ids(1000);
    let disk = disk.crash();
    let bus = open(&disk);
    assert_eq!(put(&bus, &disk, "c"), 1002);
    disk.skip_ids(5);
    let disk = disk.crash();
    let bus = open(&disk);
    assert_eq!(put(&bus, &disk, "d"), 1008);
    assert_eq!(payloads(&bus), ["a", "b", "c", "d"]);
    let epoch = stats(&bus).topic.epoch;
    for (after, left) in [(0, 3), (1, 2), (500, 2), (1002, 1), (1008, 0)] {
        let position = Position::After { epoch, id: after };
        let subscription = bus.subscribe(&name("t"), position).unwrap();
        assert_eq!((subscription.start().missed, subscription.stats().pending), (0, left));
    }
    disk.change(|state, messages| {
        state.first_id = 1002;
        messages.retain(|id, _| *id >= 1002);
    });
    let bus = open(&disk.crash());
    let subscription = bus.subscribe(&name("t"), Position::After { epoch, id: 0 }).unwrap();
    assert_eq!((subscription.start().missed, subscription.stats().pending), (1, 2));
    assert_eq!(stats(&bus).counters.published, 4);
}

#[test]
fn limits_of_now_hold_for_what_was_kept() {
    let disk = Disk::default();
    let bus = open(&disk);
    for text in ["a", "b", "c"] {
        put(&bus, &disk, text);
    }
    let settings = TopicSettings { max_messages: 1, ..TopicSettings::default() };
    let bus = open_with(&disk.clone().crash(), settings);
    assert_eq!(payloads(&bus), ["c"]);
    bus.purge_expired();
    assert_eq!(disk.messages(), 1, "the store need not keep the others");
}

#[test]
fn a_refused_deletion_is_kept_later() {
    let disk = Disk::default();
    let bus = open(&disk);
    put(&bus, &disk, "old");
    let (pending, deleted) = (bus.publish(&name("t"), "pending"), bus.delete(&name("t")));
    disk.refuse(StoreError::Full);
    assert!(pending.wait().is_err());
    assert_eq!(deleted.wait(), Err(DeleteError::NotKept(StoreError::Full)));
    assert!(bus.topics().is_empty());
    assert_eq!(put(&bus, &disk, "new"), 0);
    disk.refuse_appends(Some(StoreError::Full));
    bus.purge_expired();
    disk.refuse_appends(None);
    for _ in 0..3 {
        bus.purge_expired();
        disk.commit();
    }
    assert_eq!(disk.topics(), 1);
    assert_eq!(payloads(&open(&disk.crash())), ["new"]);
}

#[test]
fn counters_balance_when_expired_messages_come_back() {
    let disk = Disk::default();
    let bus = open(&disk);
    put(&bus, &disk, "a");
    let op = bus.publish(&name("t"), NewMessage::new("b").ttl(Duration::from_nanos(1)));
    disk.commit();
    op.wait().unwrap();
    assert_eq!(stats(&bus).counters.expired.total, 1);
    put(&bus, &disk, "c");
    let bus = open(&disk.crash());
    let stats = stats(&bus);
    assert_eq!((stats.retained, stats.counters.expired.total, stats.unpulled), (2, 1, 2));
}

#[test]
fn counters_balance_when_a_refused_pull_took_what_has_left() {
    let disk = Disk::default();
    let bus = open(&disk);
    let op = bus.publish(&name("t"), NewMessage::new("a").ttl(Duration::from_millis(30)));
    disk.commit();
    op.wait().unwrap();
    put(&bus, &disk, "b");
    let pulled = bus.pull(&name("t"), ALL);
    std::thread::sleep(Duration::from_millis(40));
    assert_eq!(bus.topic(&name("t")).unwrap().retained, 1);
    disk.refuse(StoreError::Failed);
    assert_eq!(pulled.wait(), Err(StoreError::Failed));
    assert_eq!((stats(&bus).unpulled, stats(&bus).counters.pulled), (1, 0));
}
