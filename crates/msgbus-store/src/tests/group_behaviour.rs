//! What the store does with groups, step by step. Whatever is recovered is compared with the model, see
//! [`ModelTopic::check`](super::model::ModelTopic::check).

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use msgbus_core::{
    GroupCounters, GroupSettings,
    store::{GroupChange, GroupUpdate, KeptGroup, OpenMessage, Promise, Record, StoreError},
};

use super::{
    groups::{Groups, any_open},
    model::Ending,
    world::World,
};
use crate::{
    disk::{Disk, simulated::SimulatedDisk},
    error::OpenError,
    format::{Frame, GroupKind, LogRecord, Seal, SegmentHeader, frame, record},
    recovery::{self, Mode},
    segments::Segment,
};

fn opened() -> World {
    let mut world = World::new(0);
    world.open(Ending::Kill).expect("an empty disk");
    world
}

fn group(next_id: u64) -> KeptGroup {
    KeptGroup {
        name: "workers".parse().expect("a name"),
        settings: GroupSettings::default(),
        is_explicit: true,
        base: 7,
        next_id,
        open: BTreeMap::new(),
        counters: GroupCounters::default(),
    }
}

fn set(group: KeptGroup) -> Record {
    change(GroupChange::Set(Box::new(group)))
}

fn change(change: GroupChange) -> Record {
    Record::Group { number: 5, change }
}

fn lease(ids: std::ops::Range<u64>) -> Record {
    let open = |id| OpenMessage {
        id,
        nonce: id.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        deliveries: 1,
        is_leased: true,
        until: 1 << 60,
        reason: None,
    };
    let counters = GroupCounters { delivered: ids.end, ..GroupCounters::default() };
    let (next_id, settled) = (ids.end, Vec::new());
    let open = ids.map(open).collect();
    change(GroupChange::Update(Box::new(GroupUpdate { next_id, open, settled, counters })))
}

fn ack(next_id: u64, settled: Vec<u64>) -> Record {
    let counters = GroupCounters { acked: next_id, ..GroupCounters::default() };
    let update = GroupUpdate { next_id, open: Vec::new(), settled, counters };
    change(GroupChange::Update(Box::new(update)))
}

fn note(world: &mut World, epoch: u64, record: Record) {
    world.note(epoch, record).expect("accepted");
    world.work();
}

fn publish(world: &mut World, epoch: u64, count: u64, size: usize) {
    world.publish(epoch, count, size).expect("accepted");
    world.work();
}

fn groups(world: &World, epoch: u64) -> &Groups {
    world.topics[&epoch].last_groups()
}

fn open_ids(world: &World, epoch: u64) -> Vec<u64> {
    groups(world, epoch)[&5].open.keys().copied().collect()
}

/// The sum of a counter of all segments.
fn total(world: &World, counter: fn(&Segment) -> u64) -> u64 {
    world.shared().segments.list().iter().map(|segment| counter(segment)).sum()
}

fn open_places(world: &World) -> u64 {
    total(world, |segment| segment.open.load(Relaxed))
}

/// Lets a topic go through many segments, with nothing in it that is needed for long.
fn go_through_segments(world: &mut World, ring: u64, rounds: u64) {
    for _ in 0..rounds {
        publish(world, ring, 3, 100);
        world.keep(ring, 10);
    }
}

/// A topic with a group that was given this many messages, and has settled none. Returns its epoch.
pub(super) fn group_with_leases(world: &mut World, count: u64) -> u64 {
    let topic = world.create_topic("t", Promise::Synced);
    publish(world, topic, count, 10);
    note(world, topic, set(group(0)));
    note(world, topic, lease(0..count));
    topic
}

#[test]
fn a_group_is_kept_through_every_ending() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    // Before the first message.
    note(&mut world, topic, set(group(0)));
    publish(&mut world, topic, 10, 10);
    note(&mut world, topic, lease(0..6));
    note(&mut world, topic, ack(6, vec![3, 1]));
    for ending in [Ending::Kill, Ending::PowerCut, Ending::Close, Ending::Close] {
        let report = world.restart(ending);
        assert_eq!((report.groups, report.open_messages), (1, 4), "{ending:?}");
        assert_eq!(open_ids(&world, topic), [0, 2, 4, 5]);
        let found = &groups(&world, topic)[&5];
        assert_eq!((found.next_id, found.base, found.is_explicit), (6, 7, true));
        assert_eq!(found.counters.acked, 6);
        assert_eq!(open_places(&world), 4);
    }
    note(&mut world, topic, change(GroupChange::Removed));
    assert_eq!(open_places(&world), 0);
    assert_eq!(world.restart(Ending::PowerCut).groups, 0);
}

#[test]
fn a_group_outlives_its_messages_and_segments() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    let ring = world.create_topic("ring", Promise::Synced);
    note(&mut world, topic, set(group(0)));
    publish(&mut world, topic, 10, 10);
    note(&mut world, topic, lease(0..10));
    note(&mut world, topic, ack(10, (0..9).collect()));
    // The last one is leased and leaves the topic.
    world.keep(topic, 0);
    assert_eq!(open_places(&world), 0);
    for round in 0..4 {
        let first = world.shared().segments.oldest_number();
        go_through_segments(&mut world, ring, 400);
        assert!(world.shared().segments.oldest_number() > first, "segments are freed");
        assert!(world.shared().segments.list().len() < 10);
        world.restart([Ending::PowerCut, Ending::Kill, Ending::Close][round % 3]);
        let found = &groups(&world, topic)[&5];
        assert_eq!((found.next_id, found.counters.acked, found.open.len()), (10, 10, 0));
    }
    // Goes on where it was.
    publish(&mut world, topic, 2, 10);
    note(&mut world, topic, lease(10..12));
    world.restart(Ending::PowerCut);
    assert_eq!(open_ids(&world, topic), [10, 11]);
}

#[test]
fn compaction_keeps_what_is_open() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    let ring = world.create_topic("ring", Promise::Synced);
    publish(&mut world, topic, 300, 0);
    note(&mut world, topic, set(group(0)));
    note(&mut world, topic, lease(0..300));
    // Every third one remains, and of these some are given out again later.
    note(&mut world, topic, ack(300, (0..300).filter(|id| id % 3 > 0).collect()));
    for round in 0..8 {
        go_through_segments(&mut world, ring, 200);
        note(&mut world, topic, lease(297 - 3 * round..300));
        note(&mut world, topic, ack(300, (0..300).filter(|id| id % 3 > 0).collect()));
        assert_eq!(open_places(&world), 100);
        if round % 3 == 2 {
            world.restart(Ending::PowerCut);
        }
    }
    let oldest = world.shared().segments.oldest_number();
    assert!(oldest > Some(20), "{oldest:?}");
    let expected: Vec<u64> = (0..100).map(|id| 3 * id).collect();
    assert_eq!(open_ids(&world, topic), expected);
    world.restart(Ending::Close);
    assert_eq!(open_ids(&world, topic), expected);
}

/// The cost of a change does not depend on how much is open, and the log stays small.
#[test]
fn a_large_group_is_written_once() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    let ring = world.create_topic("ring", Promise::Synced);
    publish(&mut world, topic, 1, 10);
    let mut random = fastrand::Rng::with_seed(1);
    let mut large = group(65_536);
    large.open = (0..65_536).map(|id| (id, any_open(&mut random, id))).collect();
    // Without the model, which keeps each state.
    let append = |world: &mut World, record| {
        let topic = &world.topics[&topic];
        topic.store.append(record, topic.last_state()).expect("accepted");
        world.work();
    };
    append(&mut world, set(large));
    // A record of this size makes two large segments. Compaction copies what is in them, once.
    append(&mut world, ack(65_536, (0..1000).collect()));
    let before = world.shared().stats.written_bytes.load(Relaxed);
    for id in 1000..2000 {
        append(&mut world, ack(65_536, vec![id]));
    }
    let written = world.shared().stats.written_bytes.load(Relaxed) - before;
    assert!(written < 200_000, "{written} bytes for 1,000 acks and what the log says of itself");
    // What is open moves on in the log.
    let oldest = world.shared().segments.oldest_number();
    for id in 2000..60_000 {
        append(&mut world, ack(65_536, vec![id]));
        if id % 100 == 0 {
            go_through_segments(&mut world, ring, 2);
        }
    }
    assert!(world.shared().segments.oldest_number() > oldest);
    assert_eq!(open_places(&world), 5536);
    world.end(Ending::PowerCut);
    let disk: Arc<dyn Disk> = Arc::new(world.disk.clone());
    let report = recovery::recover(&disk, &Mode::default()).expect("good").report;
    assert_eq!((report.groups, report.open_messages), (1, 5536));
}

#[test]
fn a_refused_batch_leaves_groups_as_they_were() {
    let mut world = World::new(0);
    world.options.queue_bytes = 1 << 20;
    world.open(Ending::Kill).expect("an empty disk");
    world.disk.set_capacity(64 << 10);
    let topic = world.create_topic("t", Promise::Synced);
    note(&mut world, topic, set(group(0)));
    publish(&mut world, topic, 4, 10);
    note(&mut world, topic, lease(0..2));
    let mut large = group(4);
    let mut random = fastrand::Rng::with_seed(1);
    large.open = (0..4).map(|id| (id, any_open(&mut random, id))).collect();
    // In one batch, and the last one does not fit.
    world.note(topic, ack(2, vec![0])).expect("accepted");
    world.note(topic, set(large)).expect("accepted");
    world.note(topic, lease(2..4)).expect("accepted");
    world.publish(topic, 1, 100_000).expect("accepted");
    world.work();
    assert_eq!(open_ids(&world, topic), [0, 1]);
    assert_eq!(open_places(&world), 2);
    // A group uses the reserve, as pulls do.
    assert_eq!(world.publish(topic, 1, 500), Err(StoreError::Full));
    note(&mut world, topic, lease(2..3));
    note(&mut world, topic, ack(3, vec![1]));
    assert_eq!(open_ids(&world, topic), [0, 2]);
    world.restart(Ending::PowerCut);
    assert_eq!(open_ids(&world, topic), [0, 2]);
}

#[test]
fn a_number_that_is_used_again_brings_nothing_back() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    let ring = world.create_topic("ring", Promise::Synced);
    publish(&mut world, topic, 20, 10);
    for round in 0..60 {
        let mut named = group(0);
        named.name = format!("g{}", round % 2).parse().expect("a name");
        note(&mut world, topic, set(named));
        note(&mut world, topic, lease(0..20));
        match round % 3 {
            0 => note(&mut world, topic, change(GroupChange::Removed)),
            1 => note(&mut world, topic, ack(20, (0..19).collect())),
            _ => {}
        }
        go_through_segments(&mut world, ring, 40);
        let expected = [0, 1, 20][round % 3];
        assert_eq!(open_places(&world), expected);
        if round % 7 == 6 {
            world.restart(Ending::PowerCut);
            assert_eq!(open_places(&world), expected);
        }
    }
    let places = total(&world, |segment| segment.groups.load(Relaxed));
    assert_eq!(places, 1);
    note(&mut world, topic, Record::Deleted);
    assert_eq!(open_places(&world), 0);
    assert_eq!(total(&world, |segment| segment.groups.load(Relaxed)), 0);
}

/// Records of groups are no reason to keep a segment: the log stays in proportion to what is retained.
#[test]
fn acks_do_not_make_the_log_grow() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    let old = world.create_topic("old", Promise::Synced);
    note(&mut world, topic, set(group(0)));
    for id in 0..4000 {
        // A few messages that stay, in all segments.
        if id % 20 == 0 {
            publish(&mut world, old, 1, 50);
        }
        publish(&mut world, topic, 1, 10);
        note(&mut world, topic, lease(id..id + 1));
        note(&mut world, topic, ack(id + 1, vec![id]));
        world.keep(topic, 5);
    }
    let shared = world.shared();
    let (bytes, live) = (shared.segments.total_bytes(), shared.segments.live_bytes());
    let needed = 200 * (16 + 24 + 50 + 6) + 5 * 64;
    assert!(live < 2 * needed, "{live} for {needed}");
    assert!(bytes <= 2 * live + 5 * world.options.segment_bytes, "{bytes} for {live}");
    world.restart(Ending::PowerCut);
}

#[test]
fn an_update_of_a_group_that_is_not_there_is_damage() {
    let mut world = opened();
    let topic = world.create_topic("t", Promise::Synced);
    publish(&mut world, topic, 3, 10);
    note(&mut world, topic, set(group(0)));
    note(&mut world, topic, lease(0..3));
    world.end(Ending::Close);
    let mut files = world.disk.contents();
    let content = files.get_mut(&1).expect("a file");
    let header = SegmentHeader::decode(content.first_chunk().expect("a header")).expect("good");
    let mut at = SegmentHeader::SIZE;
    let mut expected = None;
    loop {
        let seed = Seal::new(&header).at(at as u64);
        let room = (content.len() - at) as u64;
        let Frame::Record { body, size } = frame(&content[at..], seed, room) else { break };
        match LogRecord::decode(body).expect("a record") {
            LogRecord::Group(group) if group.kind == GroupKind::Set => {
                let mut hole = Vec::new();
                record::encode_hole(&mut hole, seed, size);
                content[at..at + size].copy_from_slice(&hole);
            }
            LogRecord::Group(_) => expected = Some(at as u64),
            _ => {}
        }
        at += size;
    }
    let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::with_contents(&files));
    let error = recovery::recover(&disk, &Mode::default()).expect_err("an update of nothing");
    let OpenError::Damaged { offset, problem, .. } = error else { panic!("{error}") };
    assert_eq!(Some(offset), expected);
    assert_eq!(problem, "a record contradicts those before it");
    let mode = Mode { skips_damage: true, ..Mode::default() };
    let report = recovery::recover(&disk, &mode).expect("skipped").report;
    assert_eq!((report.groups, report.messages, report.skipped.len()), (0, 3, 1));
}

/// The bus does not do this. If it did, the log must not become unreadable.
#[test]
fn a_change_that_cannot_be_read_again_is_not_written() {
    let update = || match lease(0..1) {
        Record::Group { change, .. } => change,
        _ => unreachable!(),
    };
    let mut beyond = group(0);
    beyond.open = (0..65_537).map(|id| (id, any_open(&mut fastrand::Rng::new(), id))).collect();
    for (number, change) in [
        (5, update()),
        (64, GroupChange::Set(Box::new(group(0)))),
        (5, GroupChange::Set(Box::new(beyond))),
    ] {
        let mut world = opened();
        let topic = world.create_topic("t", Promise::Synced);
        publish(&mut world, topic, 3, 10);
        let store = &world.topics[&topic].store;
        let state = world.topics[&topic].last_state();
        store.append(Record::Group { number, change }, state).expect("accepted");
        world.work();
        assert_eq!(world.publish(topic, 1, 10), Err(StoreError::Failed));
        assert_eq!(world.restart(Ending::PowerCut).messages, 3);
    }
}
