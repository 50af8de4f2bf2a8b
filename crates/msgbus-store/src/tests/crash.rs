//! Crashes at every operation of the disk, and failures of every operation.

use std::{io::ErrorKind, time::Duration};

use msgbus_core::store::Promise;

use super::{group_behaviour, model::Ending, world::World};
use crate::disk::simulated::Plan;

const STEPS: usize = 60;

/// Runs a history up to a planned end. Returns how many operations of the disk there were.
fn history(world: &mut World) -> u64 {
    for _ in 0..STEPS {
        world.step();
        if world.disk.has_ended() {
            break;
        }
    }
    world.disk.operations()
}

/// A store that was opened for the first time.
fn opened(seed: u64) -> World {
    let mut world = World::new(seed);
    world.open(Ending::Kill).expect("an empty disk");
    world
}

fn ending(number: u64) -> Ending {
    if number.is_multiple_of(3) { Ending::Kill } else { Ending::PowerCut }
}

/// After each crash, everything that was promised is there; nothing is there that was not appended; no id is given
/// again. The history then goes on, and another crash comes.
#[test]
fn a_crash_at_any_operation_takes_nothing_that_was_promised() {
    let mut points = 0;
    for seed in 0.. {
        let operations = history(&mut opened(seed));
        for at in 1..=operations {
            let mut world = opened(seed);
            world.disk.plan(Plan::EndAt(at));
            history(&mut world);
            crash_and_go_on(&mut world, at);
            points += 2;
        }
        if points >= 20_000 {
            break;
        }
    }
}

fn crash_and_go_on(world: &mut World, at: u64) {
    world.end(ending(at));
    // A crash while the store is opened.
    world.disk.plan(Plan::EndAt(1 + at % 7));
    let mut end = ending(at);
    if let Err(error) = world.open(end) {
        assert!(world.disk.has_ended(), "{error}");
        world.end(ending(at + 1));
        // What a kill would have left may be gone now.
        if ending(at + 1) == Ending::PowerCut {
            end = Ending::PowerCut;
        }
        world.disk.plan(Plan::Work);
        world.open(end).expect("a crash leaves no damage");
    }
    world.disk.plan(Plan::EndAt(at));
    history(world);
    world.restart(ending(at / 3));
    world.restart(Ending::Close);
}

/// The same, while compaction moves open messages of a group through the log.
#[test]
fn a_crash_while_open_messages_are_copied_takes_none_of_them() {
    let mut operations = u64::MAX;
    let (mut at, mut copied) = (1, false);
    while at <= operations {
        let mut world = opened(at);
        let topic = group_behaviour::group_with_leases(&mut world, 40);
        let ring = world.create_topic("ring", Promise::Synced);
        world.disk.plan(Plan::EndAt(at));
        for round in 0..60 {
            if world.publish(ring, 3, 100).is_err() {
                break;
            }
            world.work();
            world.keep(ring, 10);
            if round % 8 == 0 {
                world.change_group(topic);
            }
        }
        if !world.disk.has_ended() {
            operations = world.disk.operations();
        }
        copied |= world.shared().segments.oldest_number() > Some(2);
        crash_and_go_on(&mut world, at);
        at += 1;
    }
    assert!(copied, "the first segments are freed");
}

/// A failed operation is a failed store, unless it says that the disk is full. It loses nothing that was promised.
#[test]
fn a_failure_of_any_operation_takes_nothing_that_was_promised() {
    for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
        for seed in 0..40 {
            let operations = history(&mut opened(seed));
            for at in 1..=operations {
                let mut world = opened(seed);
                world.disk.plan(Plan::FailAt(at, kind));
                history(&mut world);
                world.restart(ending(at));
                history(&mut world);
                world.restart(ending(at / 3));
                world.restart(Ending::Close);
            }
        }
    }
}

/// While the disk is full, nothing is half-written. It goes on when there is room.
#[test]
fn a_full_disk_refuses_and_goes_on() {
    for seed in 0..300 {
        let mut world = opened(seed);
        world.disk.set_capacity(world.random.u64(16 << 10..64 << 10));
        for round in 0..4 {
            history(&mut world);
            if round == 1 {
                world.disk.set_capacity(u64::MAX);
                world.now += Duration::from_secs(2);
                world.work();
                let writer = world.writer.as_ref().expect("a writer");
                assert!(!writer.is_full(), "there is room");
            }
            world.restart(ending(seed + round));
        }
    }
}
