//! Publishing to topics that patterns match, and receiving by pattern.

use std::{
    hint::black_box,
    task::{Context, Waker},
};

use msgbus_core::{
    BatchLimit, MessageBus, Options, Position, Subscription, TopicName, TopicSettings,
};

use super::{
    pace::{Bench, clocked},
    queue::{BATCH, name, payloads, put},
};

const LIMIT: BatchLimit = BatchLimit { events: 64, bytes: 1 << 20 };
/// All of them match the topic `a/b/c`.
const PATTERNS: [&str; 4] = ["**", "a/**", "a/b/*", "*/b/c"];

pub(super) fn measure(bench: &mut Bench) {
    for patterns in [0, 1, 4] {
        publish(bench, patterns);
    }
    for topics in [1, 1000] {
        deliver(bench, topics);
    }
}

fn follow(bus: &MessageBus, pattern: &str) -> Subscription {
    let pattern = pattern.parse().expect("a pattern");
    bus.subscribe_pattern(&pattern, Position::New).expect("the bus is open")
}

/// The time of a publish to a topic that patterns match, in the steady state: topic and patterns are full.
fn publish(bench: &mut Bench, patterns: usize) {
    let settings = TopicSettings { max_messages: 4096, ..TopicSettings::default() };
    let bus = MessageBus::new(Options { topic: settings, ..Options::default() });
    let topic = name("a/b/c");
    let _following: Vec<_> = PATTERNS[..patterns].iter().map(|text| follow(&bus, text)).collect();
    bench.time(&format!("put, {patterns} patterns match"), BATCH, || {
        let payloads = payloads(BATCH);
        clocked(|| payloads.into_iter().for_each(|payload| put(&bus, &topic, payload)))
    });
}

/// The time of a delivery to one of 100 subscriptions to a pattern, to be compared with that of one topic.
fn deliver(bench: &mut Bench, topics: u32) {
    const SUBSCRIPTIONS: u32 = 100;
    const MESSAGES: u32 = 64;
    let bus = MessageBus::new(Options::default());
    let topics: Vec<TopicName> = (0..topics).map(|n| name(&format!("orders/{n}"))).collect();
    let mut all: Vec<_> = (0..SUBSCRIPTIONS).map(|_| follow(&bus, "orders/*")).collect();
    let mut cx = Context::from_waker(Waker::noop());
    let mut events = Vec::new();
    let title = format!(
        "a delivery, {MESSAGES} to {SUBSCRIPTIONS} subscribers of {} topics by pattern",
        topics.len()
    );
    let mut next = topics.iter().cycle();
    bench.time(&title, SUBSCRIPTIONS * MESSAGES, || {
        let payloads = payloads(MESSAGES);
        clocked(|| {
            for (payload, topic) in payloads.into_iter().zip(&mut next) {
                put(&bus, topic, payload);
            }
            for subscription in &mut all {
                while subscription.poll_recv_batch(&mut cx, &mut events, LIMIT).is_ready() {
                    black_box(&mut events).clear();
                }
            }
        })
    });
}
