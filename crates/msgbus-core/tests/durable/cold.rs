//! Messages that are only in the store, because the memory of their topic or of the bus is full.

use std::{sync::Arc, time::Duration};

use msgbus_core::{
    Event, Message, MessageBus, NewMessage, Options, Position, RecvError, Subscription,
    TopicSettings, store::StoreError,
};

use crate::{ALL, durable, name, open, open_with, payloads, put, stats, store::Disk, text};

/// Settings of a topic of which two messages are in memory.
fn narrow() -> TopicSettings {
    TopicSettings { memory_bytes: 2 * (Message::OVERHEAD + 8), ..TopicSettings::default() }
}

/// Receives until nothing is left. Takes no time: a page of the disk is there when it is polled for the second time.
pub(crate) fn receive(subscription: &mut Subscription) -> Vec<String> {
    let mut received = Vec::new();
    while let Ok(Some(event)) = subscription.recv_timeout(Duration::ZERO) {
        received.push(match event {
            Event::Message { message, .. } => text(&message),
            Event::Missed { count, .. } => format!("missed {count}"),
        });
    }
    received
}

#[test]
fn what_is_not_in_memory_is_read_and_joins_what_is() {
    let disk = Disk::default();
    let bus = open_with(&disk, narrow());
    let mut live = bus.subscribe(&name("t"), Position::All).unwrap();
    let expected: Vec<_> = (0..20).map(|number| format!("m{number}")).collect();
    for (number, text) in expected.iter().enumerate() {
        let op = bus.publish(&name("t"), text.clone());
        disk.commit();
        assert_eq!(op.wait().unwrap().id, number as u64);
        assert!(matches!(live.try_recv(), Ok(Some(Event::Message { .. }))));
    }
    assert_eq!(disk.reads(), 0, "who keeps pace needs no disk");
    assert!(bus.stats().bytes < 20 * Message::OVERHEAD, "{:?}", bus.stats());
    assert_eq!(stats(&bus).bytes, 20 * Message::OVERHEAD + 50);

    let mut replay = bus.subscribe(&name("t"), Position::All).unwrap();
    assert_eq!(replay.stats().pending, 20);
    assert_eq!(receive(&mut replay), expected);
    assert_eq!(disk.reads(), 6, "18 of them, three at a time");
    put(&bus, &disk, "live again");
    assert_eq!(receive(&mut replay), ["live again"]);
    assert_eq!(payloads(&bus).len(), 21);
    assert_eq!(bus.next_size(&name("t"), None), Some(2));

    let op = bus.pull_wait(&name("t"), ALL).unwrap();
    let pulled = std::thread::scope(|scope| {
        let puller = scope.spawn(move || op.wait_timeout(Duration::from_secs(20)));
        while !puller.is_finished() {
            disk.commit();
            std::thread::yield_now();
        }
        puller.join().unwrap().unwrap().unwrap()
    });
    assert_eq!(pulled.iter().map(text).collect::<Vec<_>>(), expected[..3]);
    stats(&bus);
}

#[test]
fn a_topic_may_be_larger_than_the_memory_of_the_bus() {
    let disk = Disk::default();
    let options = Options { max_bytes: 20_000, ..durable(TopicSettings::default()) };
    let bus = MessageBus::open(options.clone(), Arc::new(disk.clone())).unwrap();
    for _ in 0..100 {
        let op = bus.publish(&name("t"), vec![b'x'; 1000]);
        disk.commit();
        op.wait().unwrap();
    }
    assert_eq!((stats(&bus).retained, stats(&bus).counters.evicted.total), (100, 0));
    assert!(bus.stats().bytes <= 20_000);
    let disk = disk.crash();
    let bus = MessageBus::open(options, Arc::new(disk.clone())).unwrap();
    assert_eq!(payloads(&bus).len(), 100);
    assert!(bus.stats().bytes <= 20_000);
}

#[test]
fn messages_that_leave_while_they_are_read_are_missed() {
    let disk = Disk::default();
    let settings = TopicSettings { max_messages: 10, ..narrow() };
    let bus = open_with(&disk, settings);
    for _ in 0..10 {
        put(&bus, &disk, "old");
    }
    let mut replay = bus.subscribe(&name("t"), Position::All).unwrap();
    assert_eq!(replay.try_recv(), Ok(None), "it is being read");
    for _ in 0..8 {
        put(&bus, &disk, "new");
    }
    bus.purge_expired();
    assert_eq!(disk.messages(), 10);
    let received = receive(&mut replay);
    assert_eq!(received[..3], ["missed 8", "old", "old"]);
    assert_eq!(received.len(), 11);
    let stats = replay.stats();
    assert_eq!((stats.received, stats.missed, stats.pending), (10, 8, 0));
}

#[test]
fn a_disk_that_cannot_be_read_ends_the_reader_and_not_the_topic() {
    let disk = Disk::default();
    let bus = open_with(&disk, narrow());
    for _ in 0..10 {
        put(&bus, &disk, "text");
    }
    let mut replay = bus.subscribe(&name("t"), Position::All).unwrap();
    let mut live = bus.subscribe(&name("t"), Position::New).unwrap();
    disk.fail_reads(Some(StoreError::Failed));
    assert_eq!(replay.recv_blocking(), Err(RecvError::Store(StoreError::Failed)));
    assert_eq!(bus.get(&name("t")), Err(StoreError::Failed));
    assert!(bus.peek(&name("t"), None, ALL).wait().is_err());
    put(&bus, &disk, "live");
    assert!(matches!(live.try_recv(), Ok(Some(Event::Message { .. }))));
    // The disk has lost a message that the topic still has.
    disk.fail_reads(None);
    disk.change(|_, messages| drop(messages.remove(&0)));
    assert_eq!(bus.get(&name("t")), Err(StoreError::Failed));
    assert_eq!(stats(&bus).counters.pulled, 0);
}

#[test]
fn cold_messages_expire_and_are_found_by_time() {
    let disk = Disk::default();
    let bus = open_with(&disk, narrow());
    for (text, ttl) in [("a", 1000), ("b", 1), ("c", 1000), ("d", 1), ("e", 1000), ("f", 1000)] {
        let op = bus.publish(&name("t"), NewMessage::new(text).ttl(Duration::from_secs(ttl)));
        disk.commit();
        op.wait().unwrap();
    }
    disk.change(|_, messages| {
        for message in messages.values_mut() {
            message.created -= Duration::from_secs(10 - message.id);
            message.expires = message.expires.map(|expires| expires - Duration::from_secs(2));
        }
    });
    let bus = open_with(&disk.crash(), narrow());
    let mut left = payloads(&bus);
    left.retain(|text| !text.starts_with("missed"));
    assert_eq!(left, ["a", "c", "e", "f"]);
    let from = Position::Ago(Duration::from_millis(6500));
    let mut subscription = bus.subscribe(&name("t"), from).unwrap();
    assert_eq!(receive(&mut subscription), ["e", "f"]);
    assert_eq!(stats(&bus).counters.expired.total, 2);
}

#[test]
fn a_restart_loses_nothing_for_lack_of_memory() {
    let disk = Disk::default();
    let bus = open(&disk);
    for _ in 0..100 {
        put(&bus, &disk, "text");
    }
    let options = Options { max_bytes: 1000, ..durable(TopicSettings::default()) };
    let bus = MessageBus::open(options, Arc::new(disk.clone().crash())).unwrap();
    assert_eq!((stats(&bus).retained, stats(&bus).counters.evicted.total), (100, 0));
}

#[test]
fn topics_give_memory_back_when_the_bus_has_little_left() {
    let disk = Disk::default();
    let options = Options { max_bytes: 20_000, ..durable(TopicSettings::default()) };
    let bus = MessageBus::open(options, Arc::new(disk.clone())).unwrap();
    while bus.stats().bytes < 16_000 {
        put(&bus, &disk, "text");
    }
    bus.purge_expired();
    assert!(bus.stats().bytes < 8_000, "{:?}", bus.stats());
}
