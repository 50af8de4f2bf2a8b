//! The rules by example, with invented times.

use std::{sync::Arc, task::Waker, time::Duration};

use chrono::{DateTime, Utc};

use super::*;
use crate::{
    error::{LimitReached, PublishError, RecvError},
    model::{Event, NewMessage, Position, TopicName},
    options::{BatchLimit, Overflow},
};

mod groups;
mod model;

impl Topic {
    fn put(&mut self, message: NewMessage, now: Now) -> Result<u64, PublishError> {
        let size = BatchSize { count: 1, bytes: message.accounted_size() };
        self.append([message], size, now, |_| Ok(None)).map(|appended| appended.first_id)
    }
}

/// The end of a topic in memory, in which no message has to be read.
fn over(error: TakeError) -> RecvError {
    match error {
        TakeError::Over(end) => end,
        TakeError::Unread(unread) => unreachable!("{unread:?}"),
    }
}

fn now() -> Now {
    Now {
        monotonic: MonotonicTime::from_nanoseconds(1 << 50),
        wall: (DateTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).into(),
    }
}

fn later(now: Now, by: Duration) -> Now {
    Now {
        monotonic: now.monotonic.after(by.into()),
        wall: (DateTime::<Utc>::from(now.wall) + by).into(),
    }
}

fn topic(settings: TopicSettings, max_bytes: u64, now: Now) -> Topic {
    let name: TopicName = "t".parse().unwrap();
    let info = TopicInfo { name, epoch: 1, created: now.wall.into(), ttl: settings.ttl };
    Topic::new(Arc::new(info), settings, Reservation::new(Budget::new(max_bytes)), now)
}

#[test]
fn an_early_expiry_leaves_ids_and_older_messages_alone() {
    let mut now = now();
    let mut topic = topic(TopicSettings::default(), u64::MAX, now);
    topic.put(NewMessage::new("stays"), now).unwrap();
    // Enough holes after a retained message that the log is compacted.
    for _ in 0..1000 {
        topic.put(NewMessage::new("goes").ttl(Duration::from_secs(1)), now).unwrap();
    }
    now = later(now, Duration::from_secs(2));
    assert_eq!(topic.put(NewMessage::new("last"), now), Ok(1001));

    let stats = topic.stats(now.monotonic);
    assert_eq!((stats.retained, stats.counters.expired.total), (2, 1000));
    let (key, _) = topic.subscribe(Position::All.into(), now).unwrap();
    let mut seen = Vec::new();
    while let Some(event) =
        topic.next_event(key, now.monotonic, &mut Page::default()).map_err(over).unwrap()
    {
        seen.push(match event {
            Event::Message { message, .. } => message.id(),
            Event::Missed { count, .. } => count * 1_000_000,
        });
    }
    assert_eq!(seen, [0, 1_000_000_000, 1001]);
}

#[test]
fn evictions_leave_the_early_expiry_of_other_messages() {
    let mut now = now();
    let mut topic =
        topic(TopicSettings { max_messages: 10, ..TopicSettings::default() }, u64::MAX, now);
    topic.put(NewMessage::new("stays"), now).unwrap();
    for _ in 0..1000 {
        topic.put(NewMessage::new("goes").ttl(Duration::from_secs(1)), now).unwrap();
    }
    topic.put(NewMessage::new("stays"), now).unwrap();
    now = later(now, Duration::from_secs(1));
    let stats = topic.stats(now.monotonic);
    let counters = stats.counters;
    assert_eq!((counters.evicted.total, counters.expired.total, stats.retained), (992, 9, 1));
}

#[test]
fn a_wall_clock_that_steps_back_is_shown_by_the_expiry_only() {
    let start = now();
    let mut topic = topic(TopicSettings::default(), u64::MAX, start);
    topic.put(NewMessage::new("a"), start).unwrap();
    let stepped = Now { wall: start.wall.before(Duration::from_secs(60).into()), ..start };
    topic.put(NewMessage::new("b"), stepped).unwrap();
    let limit = BatchLimit { events: 9, bytes: usize::MAX };
    let recent = Position::Ago(Duration::from_secs(30));
    assert_eq!(
        topic.peek(Some(recent), limit, stepped, &mut Page::default()).unwrap().events.len(),
        2
    );
    let taken: Vec<_> = std::iter::from_fn(|| topic.take_next(start.monotonic)).collect();
    assert!(taken.iter().all(|message| message.created_at() == start.wall));
    let expires = |now: Now| DateTime::from(now.wall) + TopicSettings::default().ttl.unwrap();
    assert_eq!(taken[0].expires(), Some(expires(start)));
    assert_eq!(taken[1].expires(), Some(expires(stepped)), "by the clock as it is now");
}

#[test]
fn at_the_limit_of_the_bus_a_topic_evicts_its_own_messages_or_nothing() {
    let start = now();
    let settings = TopicSettings { max_bytes: 1 << 20, ..TopicSettings::default() };
    let budget = Budget::new(4000);
    let make = |name: &str| {
        let info = TopicInfo {
            name: name.parse().unwrap(),
            epoch: 1,
            created: start.wall.into(),
            ttl: settings.ttl,
        };
        Topic::new(Arc::new(info), settings, Reservation::new(Arc::clone(&budget)), start)
    };
    let mut large = make("large");
    let mut small = make("small");
    while large.stats(start.monotonic).counters.evicted.total == 0 {
        large.put(NewMessage::new(vec![0; 100]), start).unwrap();
    }
    let refused = small.put(NewMessage::new(vec![0; 2000]), start);
    assert_eq!(refused, Err(PublishError::LimitReached(LimitReached::Bytes { limit: 4000 })));
    let retained = large.stats(start.monotonic).retained;
    let refused = large.put(NewMessage::new(vec![0; 8000]), start);
    assert_eq!(refused, Err(PublishError::LimitReached(LimitReached::Bytes { limit: 4000 })));
    assert_eq!(large.stats(start.monotonic).retained, retained, "a refused message evicts nothing");
    assert!(budget.used() <= 4000);
}

#[test]
fn a_refused_message_evicts_no_pulled_one() {
    let now = now();
    let settings =
        TopicSettings { max_bytes: 1000, overflow: Overflow::Reject, ..TopicSettings::default() };
    let mut topic = topic(settings, u64::MAX, now);
    for _ in 0..3 {
        topic.put(NewMessage::new(vec![0; 100]), now).unwrap();
    }
    topic.take_next(now.monotonic);
    assert_eq!(topic.put(NewMessage::new(vec![0; 700]), now), Err(PublishError::TopicFull));
    assert_eq!(topic.stats(now.monotonic).retained, 3);
    topic.put(NewMessage::new(vec![0; 300]), now).unwrap();
    assert_eq!(topic.stats(now.monotonic).retained, 3, "the pulled one was evicted");
}

#[test]
fn a_ttl_beyond_the_calendar_is_shown_as_infinite() {
    let now = now();
    let mut topic = topic(TopicSettings { ttl: None, ..TopicSettings::default() }, u64::MAX, now);
    for days in [1_000, 4_000_000, u64::MAX / 86_400] {
        topic.put(NewMessage::new("").ttl(Duration::from_secs(days * 86_400)), now).unwrap();
    }
    let shown: Vec<bool> = std::iter::from_fn(|| topic.take_next(now.monotonic))
        .map(|m| m.expires().is_some())
        .collect();
    assert_eq!(shown, [true, false, false]);
}

#[test]
fn topics_are_idle_after_ten_ttls_and_at_least_ten_minutes() {
    let start = now();
    let minutes = |count: u64| later(start, Duration::from_secs(60 * count)).monotonic;
    let with_ttl = |ttl| topic(TopicSettings { ttl, ..TopicSettings::default() }, u64::MAX, start);

    let mut hour = with_ttl(Some(Duration::from_secs(3600)));
    assert!(!hour.is_idle(minutes(599)) && hour.is_idle(minutes(600)));
    assert!(!with_ttl(Some(Duration::from_secs(1))).is_idle(minutes(9)));
    assert!(with_ttl(Some(Duration::from_secs(1))).is_idle(minutes(10)));

    let mut forever = with_ttl(None);
    assert!(forever.is_idle(minutes(10)));
    forever.put(NewMessage::new(""), start).unwrap();
    assert!(!forever.is_idle(minutes(100_000)), "it still has a message");

    let (key, _) = hour.subscribe(Position::New.into(), start).unwrap();
    assert!(!hour.is_idle(minutes(600)), "it has a subscriber");
    drop(hour.unsubscribe(key, start.monotonic));
    assert!(hour.is_idle(minutes(600)));
}

#[test]
fn a_sweep_frees_the_tables_after_the_last_consumer_has_left() {
    let now = now();
    let mut topic = topic(TopicSettings::default(), u64::MAX, now);
    let (key, _) = topic.subscribe(Position::New.into(), now).unwrap();
    let waiter = topic.wait(None).unwrap();
    topic.sweep(now.monotonic);
    drop(topic.unsubscribe(key, now.monotonic));
    topic.sweep(now.monotonic);
    assert!(!topic.consumers.is_unallocated(), "it has a waiting pull");
    drop(topic.cancel_wait(None, waiter));
    topic.sweep(now.monotonic);
    assert!(topic.consumers.is_unallocated());
}

#[test]
fn a_topic_is_busy_while_most_of_many_subscribers_are_to_receive() {
    let now = now();
    for (max_messages, subscribers, asleep, is_busy) in
        [(1000, 31, 0, false), (1000, 32, 15, true), (1000, 32, 16, false), (999, 32, 15, false)]
    {
        let settings = TopicSettings { max_messages, ..TopicSettings::default() };
        let mut topic = topic(settings, u64::MAX, now);
        let subscribe = |_| topic.subscribe(Position::New.into(), now).unwrap().0;
        let keys: Vec<_> = (0..subscribers).map(subscribe).collect();
        let sleep = |topic: &mut Topic, count: usize| {
            for key in &keys[..count] {
                drop(topic.park(*key, Waker::noop()));
            }
        };
        sleep(&mut topic, subscribers);
        assert!(!topic.is_busy());
        drop(topic.take_wakers(Vec::new));
        sleep(&mut topic, asleep);
        assert_eq!(topic.is_busy(), is_busy, "{max_messages}: {asleep} of {subscribers}");
    }
}
