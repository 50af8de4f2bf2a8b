//! Patterns over durable topics: what is committed is seen, and what is not in memory is read.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use msgbus_core::{
    Message, MessageBus, Options, Position, Subscription, TopicRule, TopicSettings,
    store::StoreError,
};

use crate::{cold::receive, durable, name, open_with, poll, store::Disk};

fn follow(bus: &MessageBus, from: Position) -> Subscription {
    bus.subscribe_pattern(&"t/*".parse().unwrap(), from).unwrap()
}

/// Settings of topics of which two messages are in memory.
fn narrow() -> TopicSettings {
    TopicSettings { memory_bytes: 2 * (Message::OVERHEAD + 8), ..TopicSettings::default() }
}

fn put(bus: &MessageBus, disk: &Disk, topic: &str, text: &str) {
    let op = bus.publish(&name(topic), text.to_owned());
    disk.commit();
    op.wait().unwrap();
}

#[test]
fn a_message_is_seen_when_it_is_kept() {
    let disk = Disk::default();
    let bus = open_with(&disk, TopicSettings::default());
    let mut subscription = follow(&bus, Position::New);
    let mut one = bus.publish(&name("t/a"), "a");
    let mut other = bus.publish(&name("t/b"), "b");
    assert!(poll(&mut one).is_pending() && poll(&mut other).is_pending());
    assert_eq!(subscription.try_recv(), Ok(None));
    disk.commit();
    let mut received = receive(&mut subscription);
    received.sort();
    assert_eq!(received, ["a", "b"]);
    let refused = bus.publish(&name("t/a"), "refused");
    disk.refuse(StoreError::Full);
    assert_eq!(refused.wait().err(), Some(StoreError::Full.into()));
    put(&bus, &disk, "t/a", "kept");
    assert_eq!(receive(&mut subscription), ["kept"]);
}

#[test]
fn what_is_only_in_the_store_is_read_in_its_place() {
    let disk = Disk::default();
    let bus = open_with(&disk, narrow());
    let texts: Vec<_> = (0..40).map(|number| format!("m{number}")).collect();
    for (number, text) in texts.iter().enumerate() {
        put(&bus, &disk, &format!("t/{}", number % 3), text);
    }
    let disk = disk.crash();
    let bus = open_with(&disk, narrow());
    let mut replay = follow(&bus, Position::All);
    assert_eq!(replay.start().missed, 0);
    put(&bus, &disk, "t/1", "live");
    assert_eq!(replay.next_size(), Some(usize::MAX), "it is not known before it is read");
    let expected = [&texts[..], &["live".to_owned()]].concat();
    assert_eq!(receive(&mut replay), expected);
    assert_eq!(replay.stats().received, 41);
    assert!(disk.reads() >= 3, "a page of each topic at a time");
    assert!(disk.reads() <= 15, "{} reads for 40 messages", disk.reads());
}

#[test]
fn what_left_the_store_is_missed_and_a_failing_disk_ends() {
    let disk = Disk::default();
    let five = TopicRule { max_messages: Some(5), ..TopicRule::new("**".parse().unwrap()) };
    let options = Options { rules: vec![five], ..durable(narrow()) };
    let open = |disk: &Disk| MessageBus::open(options.clone(), Arc::new(disk.clone())).unwrap();
    let bus = open(&disk);
    for number in 0..5 {
        put(&bus, &disk, "t/a", &format!("a{number}"));
        put(&bus, &disk, "t/b", &format!("b{number}"));
    }
    let disk = disk.crash();
    let bus = open(&disk);
    let mut replay = follow(&bus, Position::All);
    let mut failing = follow(&bus, Position::All);
    // Evicts a0 and a1, and deletes the other topic.
    put(&bus, &disk, "t/a", "a5");
    put(&bus, &disk, "t/a", "a6");
    let mut deleted = bus.delete(&name("t/b"));
    assert!(poll(&mut deleted).is_pending());
    disk.commit();
    // Each topic is asked when its first turn comes, so there are two counts at the beginning.
    assert_eq!(
        receive(&mut replay),
        ["missed 1", "missed 3", "a2", "missed 1", "a3", "missed 1", "a4", "missed 1", "a5", "a6"]
    );
    disk.fail_reads(Some(StoreError::Failed));
    let mut cx = Context::from_waker(Waker::noop());
    let mut ended = None;
    for _ in 0..100 {
        if let Poll::Ready(event) = Pin::new(&mut failing).poll_recv(&mut cx) {
            ended = event.err();
        }
    }
    assert_eq!(ended, Some(StoreError::Failed.into()));
}
