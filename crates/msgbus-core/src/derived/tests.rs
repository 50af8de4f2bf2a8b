//! The rules by example, with invented times.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use super::*;
use crate::{
    model::{Event, Message, Now, Position, TopicInfo, WallTime},
    topic::Budget,
};

struct NoPages;

impl Pages for NoPages {
    fn find(&mut self, topic: &Arc<TopicInfo>, id: u64) -> Result<Option<Message>, Stored> {
        Err(Stored { topic: Arc::clone(topic), id })
    }
}

fn at(seconds: u64) -> Now {
    let nanoseconds = seconds * 1_000_000_000;
    Now {
        monotonic: MonotonicTime::from_nanoseconds(nanoseconds),
        wall: WallTime::from_nanoseconds(nanoseconds.cast_signed()),
    }
}

fn log(capacity: usize) -> DerivedLog {
    DerivedLog::new(capacity, Reservation::new(Budget::new(1 << 20)), at(0).monotonic)
}

/// A message that was created at a time, and that expires at another one.
fn message(id: u64, created: u64, expires: u64) -> (Message, MonotonicTime) {
    let info =
        TopicInfo { name: "t".parse().unwrap(), epoch: 1, created: at(0).wall.into(), ttl: None };
    let (created, expires_at) = (at(created).wall, at(expires).wall);
    let message = Message::new(
        Arc::new(info),
        id,
        created,
        expires_at,
        "x".into(),
        crate::model::Headers::default(),
    );
    (message, at(expires).monotonic)
}

fn push(log: &mut DerivedLog, (message, deadline): &(Message, MonotonicTime)) {
    log.push(Reference::new(message, *deadline, false));
}

/// Takes events, as ids of the topic or negative counts.
fn take(log: &mut DerivedLog, key: CursorKey, now: Now) -> (Step, Vec<i64>) {
    let mut taken = Vec::new();
    let mut reader = Reader { filter: None, pages: &mut NoPages, left_out: 0 };
    let step = log.take(key, now.monotonic, &mut reader, &mut |event| {
        taken.push(match event {
            Event::Message { message, .. } => message.id().cast_signed(),
            Event::Missed { count, .. } => -count.cast_signed(),
        });
        ControlFlow::Continue(())
    });
    (step, taken)
}

#[test]
fn what_has_expired_by_its_turn_is_missed() {
    let mut log = log(10);
    let (key, _) = log.subscribe(7, Position::New.into(), None, at(0)).unwrap();
    let messages = [message(0, 1, 10), message(1, 2, 5), message(2, 3, 20)];
    for message in &messages {
        push(&mut log, message);
    }
    assert_eq!(take(&mut log, key, at(5)), (Step::Taken, vec![0, -1, 2]));
    assert_eq!(take(&mut log, key, at(5)), (Step::Wait, vec![]));
    let (late, start) = log.subscribe(7, Position::All.into(), None, at(10)).unwrap();
    assert_eq!((start.missed, start.next_id), (0, DerivedLog::FIRST_ID + 2), "the first is 2");
    assert_eq!(take(&mut log, late, at(10)), (Step::Taken, vec![2]));
    let since = Position::Ago(Duration::from_secs(8));
    let (_, start) = log.subscribe(7, since.into(), None, at(10)).unwrap();
    assert_eq!(start.next_id, DerivedLog::FIRST_ID + 2, "created at 3");
}

#[test]
fn a_long_run_of_gone_messages_is_passed_in_slices() {
    let mut log = log(100);
    let (key, _) = log.subscribe(7, Position::New.into(), None, at(0)).unwrap();
    for id in 0..10 {
        push(&mut log, &message(id, 0, 100));
    }
    let last = message(10, 0, 100);
    push(&mut log, &last);
    assert_eq!(take(&mut log, key, at(1)), (Step::Taken, vec![-4, -4, -2, 10]));
    let stats = log.subscription_stats(key);
    assert_eq!((stats.received, stats.missed, stats.pending), (1, 10, 0));
}

#[test]
fn a_sweep_drops_what_is_gone_unless_a_cursor_has_to_be_told() {
    let mut log = log(100);
    let kept = message(3, 0, 100);
    let (key, _) = log.subscribe(7, Position::New.into(), None, at(0)).unwrap();
    for id in 0..3 {
        push(&mut log, &message(id, 0, 100));
    }
    push(&mut log, &kept);
    log.sweep(at(1).monotonic);
    assert_eq!(log.len(), 4, "the cursor has not been told");
    assert_eq!(take(&mut log, key, at(1)).1, [-3, 3]);
    log.sweep(at(1).monotonic);
    assert_eq!(log.len(), 1);
    assert_eq!(log.unused_since(), None);
    drop(log.unsubscribe(key, at(9).monotonic));
    assert_eq!(log.unused_since(), Some(at(9).monotonic));
}

#[test]
fn a_message_that_may_be_in_a_store_is_asked_for() {
    let mut log = log(100);
    let (key, _) = log.subscribe(7, Position::New.into(), None, at(0)).unwrap();
    let (message, deadline) = message(5, 0, 100);
    log.push(Reference::new(&message, deadline, true));
    let stored = Stored { topic: Arc::clone(message.topic()), id: 5 };
    drop(message);
    assert_eq!(log.next_size(key, at(1).monotonic), Some(usize::MAX));
    assert_eq!(take(&mut log, key, at(1)), (Step::Read(stored), vec![]));
    assert_eq!(take(&mut log, key, at(100)), (Step::Taken, vec![-1]), "it has expired");
}
