//! One topic with many subscribers.

use std::{
    hint::black_box,
    pin::pin,
    task::{Context, Waker},
    time::Duration,
};

use msgbus_core::{BatchLimit, MessageBus, Options, Position, Subscription};

use super::{
    pace::{Bench, clocked},
    queue::{BATCH, name, payloads, put},
};

const LIMIT: BatchLimit = BatchLimit { events: 64, bytes: 1 << 20 };

pub(super) fn measure(bench: &mut Bench) {
    for subscribers in [1, 100, 10_000] {
        for messages in [1, 64] {
            deliver(bench, subscribers, messages);
        }
    }
    for subscribers in [1, 100, 10_000] {
        publish(bench, subscribers);
    }
}

/// The time of a publish to sleeping subscribers, most of which a driver wakes later.
fn publish(bench: &mut Bench, subscribers: u32) {
    let bus = MessageBus::new(Options::default());
    let topic = name("orders/eu");
    let subscribe = |_| bus.subscribe(&topic, Position::New).expect("the bus is open");
    let mut all: Vec<Subscription> = (0..subscribers).map(subscribe).collect();
    let mut cx = Context::from_waker(Waker::noop());
    let mut driver = pin!(bus.drive_wakes());
    let mut events = Vec::new();
    let rounds = 1000_u32.div_ceil(subscribers);
    bench.time(&format!("a publish to {subscribers} sleeping subscribers"), rounds, || {
        let mut taken = Duration::ZERO;
        for payload in payloads(rounds) {
            for subscription in &mut all {
                while subscription.poll_recv_batch(&mut cx, &mut events, LIMIT).is_ready() {
                    events.clear();
                }
            }
            taken += clocked(|| put(&bus, &topic, payload));
            // The driver wakes a slice of them at each poll.
            for _ in 0..=subscribers / 64 {
                let _ = driver.as_mut().poll(&mut cx);
            }
        }
        taken
    });
}

/// The time of deliveries to sleeping subscribers, which receive all messages and sleep again.
fn deliver(bench: &mut Bench, subscribers: u32, messages: u32) {
    let bus = MessageBus::new(Options::default());
    let topic = name("orders/eu");
    let subscribe = |_| bus.subscribe(&topic, Position::New).expect("the bus is open");
    let mut all: Vec<Subscription> = (0..subscribers).map(subscribe).collect();
    let mut cx = Context::from_waker(Waker::noop());
    let mut events = Vec::new();
    let name = format!("a delivery, {messages} to {subscribers} subscribers");
    // Large enough that reading the clock around a batch does not matter.
    let rounds = BATCH.div_ceil(subscribers * messages);
    bench.time(&name, subscribers * messages * rounds, || {
        let mut payloads = payloads(messages * rounds).into_iter();
        clocked(|| {
            for _ in 0..rounds {
                for payload in payloads.by_ref().take(messages as usize) {
                    put(&bus, &topic, payload);
                }
                for subscription in &mut all {
                    while subscription.poll_recv_batch(&mut cx, &mut events, LIMIT).is_ready() {
                        black_box(&mut events).clear();
                    }
                }
            }
        })
    });
}
