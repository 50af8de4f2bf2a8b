//! The memory of messages and topics, in resident bytes beyond the payloads.

use std::{fs, time::Duration};

use msgbus_core::{MessageBus, NewMessage, Options, TopicName, TopicSettings};

use super::{
    pace::Bench,
    queue::{PAYLOAD, name, payload, put},
};

const MEDIA_TYPE: &str = "application/json";

pub(super) fn measure(bench: &mut Bench) {
    let shrunk = if bench.is_quick() { 10 } else { 1 };
    let messages = 1_000_000 / shrunk;
    let few_messages = 250_000 / shrunk;
    let topics = 100_000 / shrunk;

    // Nothing is dropped before the end, because later measurements would reuse freed memory.
    let mut buses = Vec::new();
    let mut keep = |name, count, given, fill: &dyn Fn(&MessageBus, u32)| {
        buses.extend(keep(bench, name, count, given, fill));
    };
    keep("memory, a topic with a message", topics, PAYLOAD, &|bus, count| {
        for n in 0..count {
            put(bus, &name(&format!("topic/{n:06}")), payload());
        }
    });
    keep("memory, a message", messages, PAYLOAD, &|bus, count| {
        publish(bus, count, |draft| draft);
    });
    keep("memory, a message with its own ttl", few_messages, PAYLOAD, &|bus, count| {
        publish(bus, count, |draft| draft.ttl(Duration::from_secs(600)));
    });
    let attributes = "memory, a message with its own ttl and content type";
    keep(attributes, few_messages, PAYLOAD + MEDIA_TYPE.len(), &|bus, count| {
        publish(bus, count, |draft| {
            draft
                .ttl(Duration::from_secs(600))
                .header("content-type", MEDIA_TYPE)
                .expect("a header")
        });
    });
}

fn publish(bus: &MessageBus, count: u32, attributes: impl Fn(NewMessage) -> NewMessage) {
    let topic: TopicName = name("orders/eu");
    for _ in 0..count {
        put(bus, &topic, attributes(NewMessage::new(payload())));
    }
}

/// Measures the resident memory that `fill` takes for each of `count` items, beyond their payloads.
/// Returns the filled bus.
fn keep(
    bench: &mut Bench,
    name: &str,
    count: u32,
    given: usize,
    fill: &dyn Fn(&MessageBus, u32),
) -> Option<MessageBus> {
    if !bench.wants(name) {
        return None;
    }
    let topic =
        TopicSettings { max_messages: usize::MAX, max_bytes: u64::MAX, ..TopicSettings::default() };
    let bus = MessageBus::new(Options { topic, max_bytes: u64::MAX, ..Options::default() });
    let before = resident()?;
    fill(&bus, count);
    let after = resident()?;
    let each = (after - before) / f64::from(count) - f64::from(u32::try_from(given).unwrap_or(0));
    bench.push(name, "B", each, each);
    Some(bus)
}

/// The resident memory of this process in bytes; `None` if the system does not report it.
fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}
