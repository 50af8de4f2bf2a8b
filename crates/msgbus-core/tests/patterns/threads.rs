//! Threads that publish to topics that come and go, and threads that follow a pattern.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::Duration,
};

use msgbus_core::{Event, MessageBus, Options, Position, Subscription};

use super::{name, position};

const PUBLISHERS: u64 = 3;
const PUBLISHED: u64 = 20_000;

/// Follows until all is received, with breaks. Returns how many messages it has missed.
fn follow_all(bus: &MessageBus, mut subscription: Subscription, end: &AtomicBool) -> (u64, u64) {
    let (mut latest, mut received, mut missed) = (HashMap::new(), 0, 0);
    let mut rng = fastrand::Rng::new();
    loop {
        let event = subscription.recv_timeout(Duration::from_millis(20)).unwrap();
        let Some(event) = event else {
            if end.load(SeqCst) && subscription.stats().pending == 0 {
                return (received, missed);
            }
            continue;
        };
        match &event {
            Event::Message { message, .. } => {
                let number: u64 = str::from_utf8(message.payload()).unwrap().parse().unwrap();
                let key = (message.topic().name.clone(), number % PUBLISHERS);
                let before = latest.insert(key, number);
                assert!(before.is_none_or(|before| before < number), "{before:?} {number}");
                received += 1;
            }
            Event::Missed { count, .. } => missed += count,
        }
        if rng.u32(0..2000) == 0 {
            let position = position(&subscription, &event);
            drop(subscription);
            subscription = super::follow(bus, "t/**", position);
            assert!(!subscription.start().restarted);
        }
    }
}

#[test]
fn nothing_is_lost_while_topics_come_and_go() {
    let mut options = Options::default();
    options.topic.max_messages = 1000;
    let bus = MessageBus::new(options);
    let end = AtomicBool::new(false);
    let totals = thread::scope(|scope| {
        let followers: Vec<_> = (0..2)
            .map(|_| {
                let subscription = super::follow(&bus, "t/**", Position::New);
                scope.spawn(|| follow_all(&bus, subscription, &end))
            })
            .collect();
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let bus = &bus;
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(publisher);
                    for count in 0..PUBLISHED {
                        let topic = name(&format!("t/{}", rng.u8(0..10)));
                        bus.put(&topic, (count * PUBLISHERS + publisher).to_string()).unwrap();
                        if rng.u16(0..1000) == 0 {
                            bus.delete(&topic).wait().unwrap();
                        }
                    }
                })
            })
            .collect();
        for publisher in publishers {
            publisher.join().unwrap();
        }
        end.store(true, SeqCst);
        followers.into_iter().map(|follower| follower.join().unwrap()).collect::<Vec<_>>()
    });
    for (received, missed) in totals {
        assert_eq!(received + missed, PUBLISHERS * PUBLISHED);
        assert!(received > 0);
    }
}

/// A pattern that is followed while topics are created misses none of them.
#[test]
fn a_topic_that_is_created_meanwhile_feeds_the_pattern() {
    for round in 0..200 {
        let bus = MessageBus::new(Options::default());
        thread::scope(|scope| {
            let creator = scope.spawn(|| {
                for number in 0..20 {
                    bus.put(&name(&format!("t/{number}")), "1").unwrap();
                }
            });
            let mut all = super::follow(&bus, "t/*", Position::All);
            creator.join().unwrap();
            let received = super::receive(&mut all);
            assert_eq!(received.len(), 20, "round {round}: {received:?}");
        });
    }
}
