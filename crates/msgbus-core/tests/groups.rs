//! Groups as programs use them.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::{
    sync::Arc,
    task::{Context, Poll, Wake},
    thread,
    time::Duration,
};

use chrono::Utc;
use msgbus_core::{
    BatchLimit, Event, GroupConfig, GroupName, LeaseOptions, MessageBus, NewMessage, Options,
    Overflow, PublishError, SettledBatch, Settlement, TopicName, TopicRule, TopicSettings,
};

fn topic(name: &str) -> TopicName {
    name.parse().unwrap()
}

fn workers() -> GroupName {
    "workers".parse().unwrap()
}

fn bus() -> MessageBus {
    MessageBus::new(Options::default())
}

#[test]
fn a_delivery_that_is_dropped_goes_to_the_next_worker() {
    let bus = bus();
    let jobs = topic("jobs");
    bus.put(&jobs, "a").unwrap();
    let group = bus.group(&jobs, &workers());
    let delivery = group.try_take().wait().unwrap().unwrap();
    assert!(group.try_take().wait().unwrap().is_none());
    drop(delivery);
    let again = group.try_take().wait().unwrap().unwrap();
    assert_eq!(again.deliveries, 2);
    again.ack().wait().unwrap();
    assert!(group.try_take().wait().unwrap().is_none());
}

#[test]
fn a_worker_that_waits_gets_what_is_published_given_back_or_over() {
    let bus = bus();
    let jobs = topic("jobs");
    let group = bus.group(&jobs, &workers());
    let wait = Duration::from_secs(30);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| group.take_timeout(wait).unwrap().unwrap());
        while bus.topic(&jobs).is_none_or(|topic| topic.waiters == 0) {
            thread::yield_now();
        }
        bus.put(&jobs, "published").unwrap();
        waiting.join().unwrap().ack().wait().unwrap();
    });

    bus.put(&jobs, "given back").unwrap();
    let first = group.try_take().wait().unwrap().unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| group.take_timeout(wait).unwrap().unwrap());
        drop(first);
        assert_eq!(waiting.join().unwrap().message().payload(), "given back");
    });

    // The last delivery was given back when it was dropped.
    let short = LeaseOptions { lease: Duration::from_millis(20), ..LeaseOptions::default() };
    let token = group.clone().with(short).try_take().wait().unwrap().unwrap().into_token();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| group.take_timeout(wait).unwrap().unwrap());
        while !waiting.is_finished() {
            let next = bus.run_due().next.unwrap_or_default();
            thread::sleep(next.min(Duration::from_millis(20)));
        }
        waiting.join().unwrap().ack().wait().unwrap();
    });
    bus.settle(&token, &Settlement::Ack).wait().unwrap_err();
}

/// Counts wakes.
struct Woken(std::sync::atomic::AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

#[test]
fn the_timer_is_told_when_something_is_due_earlier() {
    let bus = bus();
    let jobs = topic("jobs");
    assert_eq!(bus.run_due().next, None, "without groups there is nothing to do");
    bus.put(&jobs, "a").unwrap();
    bus.put(&jobs, "b").unwrap();
    let woken = Arc::new(Woken(0.into()));
    let waker = Arc::clone(&woken).into();
    let mut cx = Context::from_waker(&waker);
    let mut earlier = Box::pin(bus.due_earlier());
    assert!(earlier.as_mut().poll(&mut cx).is_pending());

    let lease = |seconds| {
        let lease = Duration::from_secs(seconds);
        let options = LeaseOptions { lease, ..LeaseOptions::default() };
        bus.lease(&jobs, &workers(), options).wait().unwrap().pop().unwrap().token
    };
    let first = lease(60);
    assert_eq!(woken.0.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(earlier.as_mut().poll(&mut cx).is_ready());
    let next = bus.run_due().next.unwrap();
    assert!(next > Duration::from_secs(50) && next <= Duration::from_secs(60), "{next:?}");

    let mut earlier = Box::pin(bus.due_earlier());
    assert!(earlier.as_mut().poll(&mut cx).is_pending());
    let second = lease(10);
    assert!(earlier.as_mut().poll(&mut cx).is_ready());
    for token in [first, second] {
        bus.settle(&token, &Settlement::Ack).wait().unwrap();
    }
    let later = bus.run_due().next;
    assert!(later.is_some(), "it comes once for what is over by then");
}

#[test]
fn what_fails_too_often_becomes_a_dead_letter() {
    let bus = bus();
    let (jobs, dead) = (topic("jobs"), topic("jobs/dead-letters"));
    let config = GroupConfig { max_deliveries: Some(2), ..GroupConfig::default() };
    assert_eq!(bus.set_group(&jobs, &workers(), &config).wait(), Ok(true));
    let message = NewMessage::new("bad").header("Kind", "test").unwrap();
    bus.put(&jobs, message).unwrap();
    let group = bus.group(&jobs, &workers());
    for reason in ["first", "second\nline"] {
        let delivery = group.try_take().wait().unwrap().unwrap();
        delivery.nack(Duration::ZERO, Some(reason)).wait().unwrap();
    }
    assert!(group.try_take().wait().unwrap().is_none());

    // It is there without the timer.
    let letter = bus.group(&dead, &workers()).try_take().wait().unwrap().unwrap();
    assert_eq!(letter.message().payload(), "bad");
    let headers: Vec<_> = letter.message().headers().iter().collect();
    let expected = [
        ("Kind", "test"),
        ("dead-letter-topic", "jobs"),
        ("dead-letter-id", "0"),
        ("dead-letter-group", "workers"),
        ("dead-letter-deliveries", "2"),
        ("dead-letter-reason", "second line"),
    ];
    assert_eq!(headers, expected);
    assert_eq!(letter.message().expires(), None, "dead letters are kept");
    let counters = bus.groups(&jobs)[0].counters;
    assert_eq!((counters.dead_lettered, counters.nacked), (1, 2));

    // A dead letter never becomes another one.
    let config = GroupConfig { max_deliveries: Some(1), ..GroupConfig::default() };
    bus.set_group(&dead, &workers(), &config).wait().unwrap();
    letter.nack(Duration::ZERO, None).wait().unwrap();
    bus.run_due();
    assert_eq!(bus.topics(), [jobs, dead.clone()]);
    assert_eq!(bus.groups(&dead)[0].waiting, 1);
}

#[test]
fn a_dead_letter_that_finds_no_room_stays_and_is_said() {
    let rule = TopicRule { max_messages: Some(1), ..TopicRule::new("**".parse().unwrap()) };
    let bus = MessageBus::new(Options { rules: vec![rule], ..Options::default() });
    let (jobs, dead) = (topic("jobs"), topic("jobs/dead-letters"));
    bus.put(&dead, "older").unwrap();
    let config = GroupConfig { max_deliveries: Some(1), ..GroupConfig::default() };
    bus.set_group(&jobs, &workers(), &config).wait().unwrap();
    bus.put(&jobs, "bad").unwrap();
    drop(bus.group(&jobs, &workers()).try_take().wait().unwrap().unwrap());
    let due = bus.run_due();
    assert_eq!((due.refused[0].id, due.refused[0].topic.as_str()), (0, "jobs"));
    assert!(due.refused[0].error.to_string().contains("full"), "{due:?}");
    assert!(due.next.is_some_and(|next| next <= Duration::from_secs(5)), "{due:?}");
    let stats = &bus.groups(&jobs)[0];
    assert_eq!((stats.waiting, stats.counters.dead_letters_refused), (1, 1));
}

#[test]
fn a_full_topic_that_rejects_keeps_what_a_group_has_not_acknowledged() {
    let settings =
        TopicSettings { max_messages: 2, overflow: Overflow::Reject, ..TopicSettings::default() };
    let bus = MessageBus::new(Options { topic: settings, ..Options::default() });
    let jobs = topic("jobs");
    bus.put(&jobs, "a").unwrap();
    bus.put(&jobs, "b").unwrap();
    let group = bus.group(&jobs, &workers());
    let (a, b) = (group.try_take().wait().unwrap(), group.try_take().wait().unwrap());
    b.unwrap().ack().wait().unwrap();
    assert_eq!(bus.put(&jobs, "c"), Err(PublishError::TopicFull), "a is not done");
    a.unwrap().ack().wait().unwrap();
    bus.put(&jobs, "c").unwrap();
    assert_eq!(bus.get(&jobs).unwrap().unwrap().id(), 1, "plain pulls do not care");
}

#[test]
fn a_deleted_topic_ends_its_groups() {
    let bus = bus();
    let jobs = topic("jobs");
    bus.put(&jobs, "a").unwrap();
    let group = bus.group(&jobs, &workers());
    let token = group.try_take().wait().unwrap().unwrap().into_token();
    let woken = Arc::new(Woken(0.into()));
    let waker = Arc::clone(&woken).into();
    let mut cx = Context::from_waker(&waker);
    let mut waiting = Box::pin(bus.lease_wait(&jobs, &workers(), LeaseOptions::default()).unwrap());
    assert!(waiting.as_mut().poll(&mut cx).is_pending());
    bus.delete(&jobs).wait().unwrap();
    assert!(matches!(waiting.as_mut().poll(&mut cx), Poll::Ready(Err(_))));
    bus.put(&jobs, "new").unwrap();
    bus.settle(&token, &Settlement::Ack).wait().unwrap_err();
    assert!(bus.groups(&jobs).is_empty());
}

#[test]
fn many_leases_are_settled_at_once() {
    let bus = bus();
    let (jobs, others) = (topic("jobs"), topic("others"));
    for _ in 0..10 {
        bus.put(&jobs, "a").unwrap();
        bus.put(&others, "a").unwrap();
    }
    let options = LeaseOptions {
        limit: msgbus_core::BatchLimit { events: 10, bytes: usize::MAX },
        ..LeaseOptions::default()
    };
    let mut tokens = Vec::new();
    for topic in [&jobs, &others] {
        let leased = bus.lease(topic, &workers(), options.clone()).wait().unwrap();
        tokens.extend(leased.into_iter().map(|leased| leased.token));
    }
    assert_eq!(tokens.len(), 20);
    bus.settle(&tokens[3], &Settlement::Ack).wait().unwrap();
    bus.settle(&tokens[14], &Settlement::Ack).wait().unwrap();
    let ack_all = || bus.settle_all(&tokens, &Settlement::Ack).wait().unwrap();
    assert_eq!(ack_all(), SettledBatch { lost: vec![3, 14], expires: None });
    assert_eq!(ack_all(), SettledBatch { lost: (0..20).collect(), expires: None });
    let peek = bus.peek_group(&jobs, &workers(), options.limit).wait().unwrap().unwrap();
    assert!(peek.events.is_empty());
    bus.put(&jobs, "b").unwrap();
    let peek = bus.peek_group(&jobs, &workers(), options.limit).wait().unwrap().unwrap();
    assert!(matches!(&peek.events[..], [Event::Message { message, .. }] if message.id() == 10));
}

#[test]
fn an_extend_says_when_the_lease_ends() {
    let bus = bus();
    let jobs = topic("jobs");
    bus.put(&jobs, "for long").unwrap();
    bus.put(&jobs, NewMessage::new("for a minute").ttl(Duration::from_secs(60))).unwrap();
    let limit = BatchLimit { events: 2, bytes: usize::MAX };
    let options = LeaseOptions { limit, ..LeaseOptions::default() };
    let leased = bus.lease(&jobs, &workers(), options).wait().unwrap();
    let tokens: Vec<_> = leased.iter().map(|leased| leased.token.clone()).collect();
    let message_expires = leased[1].message.expires();
    assert!(message_expires.is_some());

    let lease = Duration::from_secs(600);
    let extend = Settlement::Extend { lease };
    let before = Utc::now();
    let long = bus.settle(&tokens[0], &extend).wait().unwrap().unwrap();
    assert!((before + lease..=Utc::now() + lease).contains(&long), "{long}");
    assert_eq!(
        bus.settle(&tokens[1], &extend).wait(),
        Ok(message_expires),
        "not after its message"
    );
    let both = bus.settle_all(&tokens, &extend).wait().unwrap();
    assert_eq!(both, SettledBatch { lost: vec![], expires: message_expires }, "the first of both");

    let nack = Settlement::Nack { delay: Duration::ZERO, reason: None };
    assert_eq!(bus.settle(&tokens[0], &nack).wait(), Ok(None));
    let delivery = bus.group(&jobs, &workers()).try_take().wait().unwrap().unwrap();
    assert!(delivery.extend(lease).wait().unwrap() >= long);
}
