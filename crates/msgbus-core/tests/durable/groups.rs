//! Groups of durable topics: what a worker was told is so after a crash.

use std::{sync::Arc, task::Poll, time::Duration};

use msgbus_core::{
    GroupConfig, GroupCounters, GroupName, GroupStats, LeaseOptions, Leased, MessageBus, Op,
    Options, Overflow, PublishError, SettleError, Settlement, TopicSettings, store::StoreError,
};

use super::{open, open_with, poll, put, store::Disk, text};

fn workers() -> GroupName {
    "workers".parse().unwrap()
}

/// Polls an operation, and commits until it is ready.
fn commit<T: Unpin>(mut op: Op<T>, disk: &Disk) -> T {
    loop {
        match poll(&mut op) {
            Poll::Ready(result) => return result,
            Poll::Pending => disk.commit(),
        }
    }
}

fn lease(bus: &MessageBus) -> Op<Result<Vec<Leased>, msgbus_core::LeaseError>> {
    bus.lease(&super::name("t"), &workers(), LeaseOptions::default())
}

fn take(bus: &MessageBus, disk: &Disk) -> Option<Leased> {
    commit(lease(bus), disk).unwrap().pop()
}

fn group(bus: &MessageBus) -> GroupStats {
    bus.groups(&super::name("t")).pop().unwrap()
}

#[test]
fn leases_and_acks_survive_a_crash() {
    let disk = Disk::default();
    let bus = open(&disk);
    for text in ["a", "b", "c"] {
        put(&bus, &disk, text);
    }
    let (a, b) = (take(&bus, &disk).unwrap(), take(&bus, &disk).unwrap());
    commit(bus.settle(&a.token, &Settlement::Ack), &disk).unwrap();
    drop(bus);

    let disk = disk.crash();
    let bus = open(&disk);
    let stats = group(&bus);
    assert_eq!((stats.pending, stats.leased, stats.counters.acked), (1, 1, 1), "{stats:?}");
    let again = bus.settle(&a.token, &Settlement::Ack).wait();
    assert_eq!(again, Err(SettleError::Lost), "acknowledged before");
    commit(bus.settle(&b.token, &Settlement::Ack), &disk).unwrap();
    let c = take(&bus, &disk).unwrap();
    assert_eq!((text(&c.message), c.deliveries), ("c".into(), 1));
    assert!(take(&bus, &disk).is_none());
}

/// Leases 50 messages.
fn take_many(bus: &MessageBus, disk: &Disk) -> Vec<Leased> {
    (0..50).map(|_| take(bus, disk).unwrap()).collect()
}

#[test]
fn leases_cost_no_message_when_the_bus_is_full() {
    for overflow in [Overflow::Reject, Overflow::DropOldest] {
        let disk = Disk::default();
        let settings = TopicSettings { overflow, ..TopicSettings::default() };
        let options = Options { max_bytes: 20_000, ..super::durable(settings) };
        let bus = MessageBus::open(options, Arc::new(disk.clone())).unwrap();
        let mut published = 0;
        let refusal = loop {
            let op = bus.publish(&super::name("t"), "x");
            disk.commit();
            match op.wait() {
                Ok(_) => published += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refusal, PublishError::LimitReached(_)), "{refusal}");
        let leased = take_many(&bus, &disk);
        let evicted = group(&bus).counters.evicted;
        assert_eq!((evicted, super::stats(&bus).retained), (0, published), "{overflow:?}");
        for leased in leased {
            commit(bus.settle(&leased.token, &Settlement::Ack), &disk).unwrap();
        }
    }
}

#[test]
fn a_restart_with_less_memory_or_smaller_topics_costs_no_job() {
    let reject = TopicSettings { overflow: Overflow::Reject, ..TopicSettings::default() };
    let smaller = TopicSettings { max_messages: 10, ..reject };
    for (max_bytes, settings) in [(1000, reject), (1 << 20, smaller)] {
        let disk = Disk::default();
        let bus = open_with(&disk, reject);
        for _ in 0..100 {
            put(&bus, &disk, "text");
        }
        take(&bus, &disk).unwrap();
        drop(bus);

        let disk = disk.crash();
        let options = Options { max_bytes, ..super::durable(settings) };
        let bus = MessageBus::open(options, Arc::new(disk.clone())).unwrap();
        take_many(&bus, &disk);
        let stats = group(&bus);
        assert_eq!((stats.pending, stats.leased, stats.counters.evicted), (49, 51, 0), "{stats:?}");
    }
}

#[test]
fn a_lease_that_was_not_kept_is_not_given() {
    let disk = Disk::default();
    let bus = open(&disk);
    put(&bus, &disk, "a");
    let mut first = lease(&bus);
    assert!(poll(&mut first).is_pending());
    drop((first, bus));

    let disk = disk.crash();
    let bus = open(&disk);
    let mut second = lease(&bus);
    // It reads the message first.
    assert!(poll(&mut second).is_pending() && poll(&mut second).is_pending());
    disk.refuse(StoreError::Full);
    assert!(matches!(second.wait(), Err(msgbus_core::LeaseError::Store(StoreError::Full))));
    let leased = take(&bus, &disk).unwrap();
    assert_eq!((text(&leased.message), leased.deliveries), ("a".into(), 1));
    assert_eq!(group(&bus).counters, GroupCounters { delivered: 1, ..GroupCounters::default() });
}

#[test]
fn a_lease_goes_on_if_its_ack_is_not_kept() {
    let disk = Disk::default();
    let bus = open(&disk);
    put(&bus, &disk, "a");
    let leased = take(&bus, &disk).unwrap();
    let mut ack = bus.settle(&leased.token, &Settlement::Ack);
    assert!(poll(&mut ack).is_pending());
    assert!(take(&bus, &disk.clone()).is_none(), "nobody else gets it meanwhile");
    // The pull above has committed nothing: there was nothing to lease.
    disk.refuse(StoreError::Full);
    assert_eq!(ack.wait(), Err(SettleError::Store(StoreError::Full)));
    assert_eq!((group(&bus).leased, group(&bus).counters.acked), (1, 0));

    disk.refuse_appends(Some(StoreError::Busy));
    let busy = bus.settle(&leased.token, &Settlement::Ack).wait();
    assert_eq!(busy, Err(SettleError::Store(StoreError::Busy)));
    disk.refuse_appends(None);
    commit(bus.settle(&leased.token, &Settlement::Ack), &disk).unwrap();
    drop(bus);

    // After refusals the store is sent the whole group.
    let bus = open(&disk.crash());
    assert_eq!((group(&bus).leased, group(&bus).counters.acked), (0, 1));
}

#[test]
fn settings_moves_and_removals_survive_a_crash() {
    let disk = Disk::default();
    let bus = open(&disk);
    let config = GroupConfig { max_leases: Some(7), ..GroupConfig::default() };
    let topic = super::name("t");
    assert_eq!(commit(bus.set_group(&topic, &workers(), &config), &disk), Ok(true));
    drop(bus);

    let disk = disk.crash();
    let bus = open(&disk);
    assert_eq!(group(&bus).settings.max_leases, 7, "also without a message");
    put(&bus, &disk, "a");
    take(&bus, &disk).unwrap();
    let from = Some(msgbus_core::Position::All);
    let moved = GroupConfig { from, ..GroupConfig::default() };
    assert_eq!(commit(bus.set_group(&topic, &workers(), &moved), &disk), Ok(false));
    drop(bus);

    let disk = disk.crash();
    let bus = open(&disk);
    let stats = group(&bus);
    assert_eq!((stats.pending, stats.leased, stats.settings.max_leases), (1, 0, 7));
    assert_eq!(commit(bus.remove_group(&topic, &workers()), &disk), Ok(true));
    drop(bus);
    assert!(open(&disk.crash()).groups(&topic).is_empty());
}

#[test]
fn leases_of_cold_messages_are_read_from_the_store() {
    let disk = Disk::default();
    let settings = TopicSettings { memory_bytes: 0, ..TopicSettings::default() };
    let bus = open_with(&disk, settings);
    for text in ["a", "b", "c", "d", "e"] {
        put(&bus, &disk, text);
    }
    let leased: Vec<_> = std::iter::from_fn(|| take(&bus, &disk)).collect();
    let texts: Vec<_> = leased.iter().map(|leased| text(&leased.message)).collect();
    assert_eq!(texts, ["a", "b", "c", "d", "e"]);
    for index in [3, 1] {
        let nack = Settlement::Nack { delay: Duration::ZERO, reason: None };
        bus.settle(&leased[index].token, &nack).wait().unwrap();
    }
    assert_eq!(take(&bus, &disk).map(|leased| text(&leased.message)), Some("b".into()));
    assert_eq!(take(&bus, &disk).map(|leased| text(&leased.message)), Some("d".into()));
}

/// What a nack has begun goes on although nobody waits for it.
#[test]
fn a_dead_letter_is_there_when_the_nack_is_answered() {
    let disk = Disk::default();
    let bus = open(&disk);
    let config = GroupConfig { max_deliveries: Some(1), ..GroupConfig::default() };
    commit(bus.set_group(&super::name("t"), &workers(), &config), &disk).unwrap();
    let letters = || bus.topic(&super::name("t/dead-letters")).map_or(0, |stats| stats.retained);
    let nack = Settlement::Nack { delay: Duration::ZERO, reason: None };
    put(&bus, &disk, "a");
    let leased = take(&bus, &disk).unwrap();
    commit(bus.settle(&leased.token, &nack), &disk).unwrap();
    assert_eq!(letters(), 1);
    put(&bus, &disk, "b");
    let leased = take(&bus, &disk).unwrap();
    let mut nacking = bus.settle(&leased.token, &nack);
    assert!(poll(&mut nacking).is_pending(), "the store has not kept the letter");
    drop(nacking);
    disk.commit();
    bus.run_due();
    assert_eq!((letters(), group(&bus).counters.dead_lettered), (2, 2));
}
