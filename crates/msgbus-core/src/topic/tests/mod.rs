//! The rules by example. Times are invented.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use super::*;
use crate::{
    error::{NoRoom, PublishError},
    model::{Draft, Event, Position, TopicName},
    options::{BatchLimit, Overflow},
};

mod model;

impl Topic {
    fn put(&mut self, draft: Draft, now: Now) -> Result<u64, PublishError> {
        let size = BatchSize { count: 1, charge: draft.charge() };
        self.append([draft], size, now, || Ok(()))
    }
}
fn now() -> Now {
    Now {
        tick: Tick::from_nanoseconds(1 << 50),
        wall: (DateTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).into(),
    }
}

fn later(now: Now, by: Duration) -> Now {
    Now { tick: now.tick.after(by.into()), wall: (DateTime::<Utc>::from(now.wall) + by).into() }
}

fn topic(settings: TopicSettings, max_bytes: u64, now: Now) -> Topic {
    let name: TopicName = "t".parse().unwrap();
    let info = TopicInfo { name, epoch: 1, created: now.wall.into(), ttl: settings.ttl };
    Topic::new(Arc::new(info), settings, Reservation::new(Budget::new(max_bytes)), now)
}
#[test]
fn an_early_death_leaves_ids_and_older_messages_alone() {
    let mut now = now();
    let mut topic = topic(TopicSettings::default(), u64::MAX, now);
    topic.put(Draft::new("stays"), now).unwrap();
    // Enough holes behind a living message that the log is compacted on the way.
    for _ in 0..1000 {
        topic.put(Draft::new("goes").ttl(Duration::from_secs(1)), now).unwrap();
    }
    now = later(now, Duration::from_secs(2));
    assert_eq!(topic.put(Draft::new("last"), now), Ok(1001));

    let stats = topic.stats(now.tick);
    assert_eq!((stats.retained, stats.counters.expired.total), (2, 1000));
    let (key, _) = topic.subscribe(Position::All.into(), now).unwrap();
    let mut seen = Vec::new();
    while let Some(event) = topic.next_event(key, now.tick).unwrap() {
        seen.push(match event {
            Event::Message(message) => message.id(),
            Event::Missed(count) => count * 1_000_000,
        });
    }
    assert_eq!(seen, [0, 1_000_000_000, 1001]);
}

#[test]
fn evicted_messages_leave_the_others_their_early_end() {
    let mut now = now();
    let mut topic =
        topic(TopicSettings { max_messages: 10, ..TopicSettings::default() }, u64::MAX, now);
    topic.put(Draft::new("stays"), now).unwrap();
    for _ in 0..1000 {
        topic.put(Draft::new("goes").ttl(Duration::from_secs(1)), now).unwrap();
    }
    topic.put(Draft::new("stays"), now).unwrap();
    now = later(now, Duration::from_secs(1));
    let stats = topic.stats(now.tick);
    let counters = stats.counters;
    assert_eq!((counters.evicted.total, counters.expired.total, stats.retained), (992, 9, 1));
}

#[test]
fn a_wall_clock_that_steps_back_is_shown_by_the_expiry_only() {
    let start = now();
    let mut topic = topic(TopicSettings::default(), u64::MAX, start);
    topic.put(Draft::new("a"), start).unwrap();
    let stepped = Now { wall: start.wall.before(Duration::from_secs(60).into()), ..start };
    topic.put(Draft::new("b"), stepped).unwrap();
    let limit = BatchLimit { events: 9, bytes: usize::MAX };
    let recent = Position::Ago(Duration::from_secs(30));
    assert_eq!(topic.peek(Some(recent), limit, stepped).messages.len(), 2);
    let taken: Vec<_> = std::iter::from_fn(|| topic.take_next(start.tick)).collect();
    assert!(taken.iter().all(|message| message.created_at() == start.wall));
    let expires = |now: Now| DateTime::from(now.wall) + TopicSettings::default().ttl.unwrap();
    assert_eq!(taken[0].expires(), Some(expires(start)));
    assert_eq!(taken[1].expires(), Some(expires(stepped)), "the truth by the clock as it is");
}

#[test]
fn at_the_bound_of_the_bus_a_topic_gives_up_its_own_or_nothing() {
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
    while large.stats(start.tick).counters.evicted.total == 0 {
        large.put(Draft::new(vec![0; 100]), start).unwrap();
    }
    let refused = small.put(Draft::new(vec![0; 2000]), start);
    assert_eq!(refused, Err(PublishError::NoRoom(NoRoom::Bytes { limit: 4000 })));
    let retained = large.stats(start.tick).retained;
    let refused = large.put(Draft::new(vec![0; 8000]), start);
    assert_eq!(refused, Err(PublishError::NoRoom(NoRoom::Bytes { limit: 4000 })));
    assert_eq!(large.stats(start.tick).retained, retained, "a refused message evicts nothing");
    assert!(budget.used() <= 4000);
}

#[test]
fn a_refused_message_takes_no_pulled_one_with_it() {
    let now = now();
    let settings =
        TopicSettings { max_bytes: 1000, overflow: Overflow::Reject, ..TopicSettings::default() };
    let mut topic = topic(settings, u64::MAX, now);
    for _ in 0..3 {
        topic.put(Draft::new(vec![0; 100]), now).unwrap();
    }
    topic.take_next(now.tick);
    assert_eq!(topic.put(Draft::new(vec![0; 700]), now), Err(PublishError::TopicFull));
    assert_eq!(topic.stats(now.tick).retained, 3);
    topic.put(Draft::new(vec![0; 300]), now).unwrap();
    assert_eq!(topic.stats(now.tick).retained, 3, "the pulled one made room");
}

#[test]
fn a_lifetime_beyond_the_calendar_is_shown_as_for_ever() {
    let now = now();
    let mut topic = topic(TopicSettings { ttl: None, ..TopicSettings::default() }, u64::MAX, now);
    for days in [1_000, 4_000_000, u64::MAX / 86_400] {
        topic.put(Draft::new("").ttl(Duration::from_secs(days * 86_400)), now).unwrap();
    }
    let shown: Vec<bool> =
        std::iter::from_fn(|| topic.take_next(now.tick)).map(|m| m.expires().is_some()).collect();
    assert_eq!(shown, [true, false, false]);
}

#[test]
fn idle_topics_are_known_by_ten_ttls_and_ten_minutes() {
    let start = now();
    let minutes = |count: u64| later(start, Duration::from_secs(60 * count)).tick;
    let with_ttl = |ttl| topic(TopicSettings { ttl, ..TopicSettings::default() }, u64::MAX, start);

    let mut hour = with_ttl(Some(Duration::from_secs(3600)));
    assert!(!hour.is_idle(minutes(599)) && hour.is_idle(minutes(600)));
    assert!(!with_ttl(Some(Duration::from_secs(1))).is_idle(minutes(9)));
    assert!(with_ttl(Some(Duration::from_secs(1))).is_idle(minutes(10)));

    let mut forever = with_ttl(None);
    assert!(forever.is_idle(minutes(10)));
    forever.put(Draft::new(""), start).unwrap();
    assert!(!forever.is_idle(minutes(100_000)), "it still has a message");

    let (key, _) = hour.subscribe(Position::New.into(), start).unwrap();
    assert!(!hour.is_idle(minutes(600)), "somebody listens");
    drop(hour.unsubscribe(key, start.tick));
    assert!(hour.is_idle(minutes(600)));
}

#[test]
fn a_sweep_frees_the_places_of_those_who_have_left() {
    let now = now();
    let mut topic = topic(TopicSettings::default(), u64::MAX, now);
    let (key, _) = topic.subscribe(Position::New.into(), now).unwrap();
    let ticket = topic.wait().unwrap();
    topic.sweep(now.tick);
    drop(topic.unsubscribe(key, now.tick));
    topic.sweep(now.tick);
    assert!(!topic.audience.is_nobody(), "somebody waits");
    drop(topic.leave(ticket));
    topic.sweep(now.tick);
    assert!(topic.audience.is_nobody());
}
