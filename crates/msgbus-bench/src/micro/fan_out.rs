//! One topic that many follow.

use std::{
    hint::black_box,
    task::{Context, Waker},
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
}

/// Publishes some messages to subscribers that sleep, and lets each receive them and sleep again.
fn deliver(bench: &mut Bench, subscribers: u32, messages: u32) {
    let bus = MessageBus::new(Options::default());
    let topic = name("orders/eu");
    let subscribe = |_| bus.subscribe(&topic, Position::New).expect("the bus is open");
    let mut all: Vec<Subscription> = (0..subscribers).map(subscribe).collect();
    let mut cx = Context::from_waker(Waker::noop());
    let mut events = Vec::new();
    let name = format!("a delivery, {messages} to {subscribers} subscribers");
    // The reading of the clock around a batch is not to matter.
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
