use std::{sync::Arc, time::Duration};

use super::*;
use crate::model::{Headers, Now, TopicInfo};

/// Appends `count` messages with a TTL in seconds.
fn push(log: &mut Log, count: u64, seconds: u64, early: bool) {
    let Now { monotonic, wall } = start();
    let ttl = Duration::from_secs(seconds).into();
    let info = TopicInfo { name: "t".parse().unwrap(), epoch: 1, created: wall.into(), ttl: None };
    let info = Arc::new(info);
    for _ in 0..count {
        let info = Arc::clone(&info);
        let message =
            Message::new(info, log.next_id(), wall, wall.after(ttl), "".into(), Headers::default());
        log.push(message, monotonic.after(ttl), early);
    }
}

fn start() -> Now {
    Now { monotonic: MonotonicTime::from_nanoseconds(0), wall: WallTime::from_nanoseconds(0) }
}

fn expire(log: &mut Log, seconds: u64) -> usize {
    let now = start().monotonic.after(Duration::from_secs(seconds).into());
    std::iter::from_fn(|| log.pop_expired(now)).count()
}

#[test]
fn holes_are_removed_with_the_messages_before_them() {
    let mut log = Log::default();
    push(&mut log, 1000, 100, false);
    push(&mut log, 1000, 1, true);
    assert_eq!(expire(&mut log, 1), 1000);
    while log.len() > 1 {
        log.pop();
    }
    assert!(log.slots.len() < 100, "{} slots for one message", log.slots.len());
}

#[test]
fn early_expiries_are_removed_with_their_messages() {
    let mut log = Log::default();
    push(&mut log, 1000, 50, true);
    push(&mut log, 1, 100, false);
    push(&mut log, 999, 1, true);
    while log.first_id() < 1000 {
        log.pop();
    }
    assert_eq!(expire(&mut log, 1), 999);
    assert!(
        log.early_expiries.len() < 100,
        "{} deadlines for one message",
        log.early_expiries.len()
    );
    log.pop();
    log.shrink();
    let capacities = (log.slots.capacity(), log.early_expiries.capacity());
    assert!(capacities.0 < 100 && capacities.1 < 200, "{capacities:?}");
}
