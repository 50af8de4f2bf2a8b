//! What the store does, step by step.

use std::{io::ErrorKind, sync::atomic::Ordering::Relaxed, time::Duration};

use msgbus_core::{
    BatchLimit,
    store::{Promise, Record, StoreError},
};

use super::{
    model::Ending,
    world::{World, read},
};
use crate::disk::simulated::Plan;

const WRITTEN: Promise = Promise::Written { sync_every: Duration::from_secs(1) };
const ALL: BatchLimit = BatchLimit { events: usize::MAX, bytes: usize::MAX };

fn opened() -> World {
    opened_with(8 << 10)
}

fn opened_with(segment_bytes: u64) -> World {
    let mut world = World::new(0);
    world.options.segment_bytes = segment_bytes;
    world.open(Ending::Kill).expect("an empty disk");
    world
}

fn committed(world: &World, epoch: u64) -> u64 {
    world.topics[&epoch].committed.state.next_id
}

fn ids(world: &World, epoch: u64) -> Vec<u64> {
    let messages = read(&*world.topics[&epoch].store, world.shared(), 0, ALL);
    messages.iter().map(|message| message.id).collect()
}

#[test]
fn one_sync_serves_all_who_wait() {
    let mut world = opened_with(1 << 20);
    let topics: Vec<_> =
        (0..50).map(|n| world.create_topic(&format!("t{n}"), Promise::Synced)).collect();
    for topic in &topics {
        world.publish(*topic, 1, 10).expect("accepted");
        assert_eq!(committed(&world, *topic), 0);
    }
    let before = world.shared().stats.syncs().0;
    world.work();
    assert_eq!(world.shared().stats.syncs().0, before + 1);
    assert!(topics.iter().all(|topic| committed(&world, *topic) == 1));
}

#[test]
fn a_written_topic_is_synced_at_its_interval() {
    let mut world = opened_with(1 << 20);
    let topic = world.create_topic("t", WRITTEN);
    for _ in 0..100 {
        world.publish(topic, 2, 10).expect("accepted");
        world.work();
        world.now += Duration::from_millis(1);
    }
    assert_eq!((committed(&world, topic), world.shared().stats.syncs().0), (200, 0));
    world.now += Duration::from_secs(1);
    world.work();
    assert_eq!(world.shared().stats.syncs().0, 1);
    assert_eq!(world.topics[&topic].durable.state.next_id, 200);
}

#[test]
fn ids_that_may_have_been_seen_are_left_out_after_a_power_cut_only() {
    let mut world = opened();
    let topic = world.create_topic("t", WRITTEN);
    world.publish(topic, 3, 10).expect("accepted");
    world.work();
    world.restart(Ending::Kill);
    assert_eq!(committed(&world, topic), 3);
    world.restart(Ending::PowerCut);
    assert_eq!(committed(&world, topic), 1003);
    world.publish(topic, 2, 10).expect("accepted");
    world.work();
    world.restart(Ending::Kill);
    world.restart(Ending::Close);
    assert_eq!(committed(&world, topic), 1005);
    assert_eq!(ids(&world, topic), [0, 1, 2, 1003, 1004]);
}

#[test]
fn a_promise_may_change_between_runs() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    world.publish(topic, 3, 10).expect("accepted");
    world.work();
    world.topics.get_mut(&topic).expect("a topic").promise = WRITTEN;
    world.restart(Ending::Close);
    world.publish(topic, 3, 10).expect("accepted");
    // The ids are reserved first.
    world.work();
    world.publish(topic, 3, 10).expect("accepted");
    world.work();
    assert_eq!(committed(&world, topic), 9);
    world.restart(Ending::PowerCut);
    assert_eq!(committed(&world, topic), 1006);
}

#[test]
fn what_is_not_needed_is_freed_and_the_rest_is_kept() {
    let mut world = opened();
    let old = world.create_topic("old", Promise::Synced);
    let ring = world.create_topic("ring", Promise::Synced);
    world.publish(old, 20, 100).expect("accepted");
    for round in 0..3000 {
        world.publish(ring, 3, 100).expect("accepted");
        world.work();
        world.keep(ring, 10);
        if round % 500 == 0 {
            world.restart(Ending::PowerCut);
        }
    }
    let shared = world.shared();
    assert!(shared.stats.copied.load(Relaxed) > 0);
    let (bytes, live) = (shared.segments.total_bytes(), shared.segments.live_bytes());
    assert!(bytes <= 2 * live + 5 * world.options.segment_bytes, "{bytes} for {live}");
    assert_eq!(ids(&world, old), (0..20).collect::<Vec<_>>());
    world.restart(Ending::Close);
    assert_eq!(ids(&world, old), (0..20).collect::<Vec<_>>());
}

#[test]
fn deleted_topics_take_no_room() {
    let mut world = opened();
    for round in 0..1000 {
        let topic = world.create_topic(&format!("t{round}"), Promise::Synced);
        world.publish(topic, 2, 100).expect("accepted");
        world.note(topic, Record::Deleted).expect("accepted");
        world.work();
    }
    assert!(world.shared().segments.list().len() <= 6);
    assert!(world.writer.as_ref().expect("a writer").topics.is_empty());
    assert_eq!(world.restart(Ending::PowerCut).topics, 0);
}

#[test]
fn a_full_disk_accepts_pulls_and_deletions_and_goes_on_when_there_is_room() {
    let mut world = opened();
    world.disk.set_capacity(64 << 10);
    let (topic, other) =
        (world.create_topic("t", Promise::Synced), world.create_topic("o", Promise::Synced));
    world.publish(other, 1, 10).expect("accepted");
    while world.publish(topic, 1, 500).is_ok() {
        world.work();
    }
    let kept = committed(&world, topic);
    assert!(kept > 50, "{kept}");
    assert_eq!(world.publish(topic, 1, 500), Err(StoreError::Full));
    for _ in 0..20 {
        world.note(topic, Record::Pulled).expect("accepted");
        world.work();
    }
    assert_eq!(world.topics[&topic].committed.state.pull_next, 20);
    world.note(other, Record::Deleted).expect("accepted");
    world.work();
    assert!(!world.topics.contains_key(&other));
    world.keep(topic, 10);
    for _ in 0..3 {
        world.now += Duration::from_secs(1);
        world.work();
    }
    world.publish(topic, 5, 500).expect("room");
    world.work();
    assert_eq!(committed(&world, topic), kept + 5);
    world.restart(Ending::PowerCut);
    assert_eq!(committed(&world, topic), kept + 5);
}

#[test]
fn a_store_has_a_maximum_size() {
    let mut world = World::new(0);
    world.options.max_bytes = Some(48 << 10);
    world.open(Ending::Kill).expect("an empty disk");
    let topic = world.create_topic("t", Promise::Synced);
    while world.publish(topic, 1, 500).is_ok() {
        world.work();
    }
    let bytes = world.shared().segments.total_bytes();
    assert!(bytes <= 48 << 10 && bytes > 32 << 10, "{bytes}");
}

#[test]
fn a_backlog_is_bounded() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    let mut accepted = 0;
    while world.publish(topic, 1, 1000).is_ok() {
        accepted += 1;
    }
    assert!((10..20).contains(&accepted), "{accepted} of 1 kB in 16 KiB");
    assert_eq!(world.publish(topic, 1, 1000), Err(StoreError::Busy));
    world.note(topic, Record::Pulled).expect("a small record is accepted");
    world.work();
    assert_eq!(committed(&world, topic), accepted);
    world.publish(topic, 1, 100_000).expect("one record may be larger");
    world.work();
    world.restart(Ending::PowerCut);
    assert_eq!(committed(&world, topic), accepted + 1);
}

#[test]
fn a_failed_disk_refuses_everything_and_still_reads() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    world.publish(topic, 3, 10).expect("accepted");
    world.work();
    world.disk.plan(Plan::FailAt(2, ErrorKind::Other));
    world.publish(topic, 3, 10).expect("accepted");
    world.work();
    for _ in 0..3 {
        assert_eq!(world.publish(topic, 1, 10), Err(StoreError::Failed));
        world.now += Duration::from_secs(10);
        world.work();
    }
    assert_eq!(committed(&world, topic), 3);
    assert_eq!(ids(&world, topic), [0, 1, 2]);
    assert!(world.shared().stats.failure.lock().is_some());
    let writer = world.writer.as_mut().expect("a writer");
    assert_eq!(writer.finish(world.now), Err(StoreError::Failed));
}

#[test]
fn the_log_says_how_far_it_was_synced_after_a_while() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    world.publish(topic, 3, 10).expect("accepted");
    world.work();
    assert!(world.writer.as_ref().expect("a writer").tail.is_unmarked());
    world.now += Duration::from_secs(2);
    world.work();
    assert!(!world.writer.as_ref().expect("a writer").tail.is_unmarked());
    let written = world.shared().stats.written_bytes.load(Relaxed);
    world.now += Duration::from_secs(20);
    world.work();
    assert_eq!(world.shared().stats.written_bytes.load(Relaxed), written, "once");
}
