//! The memory of messages, topics, leases and requests, in resident bytes beyond the payloads.

use std::{cell::RefCell, fs, time::Duration};

use msgbus_core::{
    BatchLimit, GroupConfig, GroupName, GroupSettings, MessageBus, NewMessage, Options, TopicName,
    TopicSettings,
};

use super::{
    groups::take,
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
        buses.extend(keep(bench, name, count, given, &|_| (), fill));
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
    for (name, at_once) in [("memory, a lease", 1), ("memory, a lease, taken by 100", 100)] {
        let leases = LEASES / shrunk;
        buses.extend(keep_leases(bench, name, leases, at_once));
    }
    keep_requests(bench, messages / 4);
}

/// Measures requests that responders have, with what their requesters keep.
fn keep_requests(bench: &mut Bench, count: u32) {
    let service: TopicName = name("upper");
    let pending = RefCell::new(Vec::new());
    let bus = keep(bench, "memory, a pending request", count, 0, &|_| (), &|bus, count| {
        for _ in 0..count {
            let serving = bus.serve(&service, BatchLimit::ONE).expect("few services");
            pending.borrow_mut().push(bus.request(&service, payload()));
            for request in serving.wait().expect("the bus is open") {
                let _ = request.into_token();
            }
        }
    });
    drop((pending, bus));
}

/// The number of leases, shared by groups of one topic.
const LEASES: u32 = 1_000_000;
const GROUPS: u32 = 20;

/// Measures leases of messages that a topic has already.
fn keep_leases(bench: &mut Bench, label: &str, leases: u32, at_once: u32) -> Option<MessageBus> {
    let topic: TopicName = name("jobs/eu");
    let groups: Vec<GroupName> =
        (0..GROUPS).map(|n| format!("group-{n}").parse().expect("a good name")).collect();
    let each = leases / GROUPS;
    let prepare = |bus: &MessageBus| {
        publish(bus, each, |draft| draft);
        for group in &groups {
            let most = GroupConfig {
                max_leases: Some(GroupSettings::MAX_LEASES),
                ..GroupConfig::default()
            };
            bus.set_group(&topic, group, &most).wait().expect("few groups");
        }
    };
    keep(bench, label, leases, 0, &prepare, &|bus, _| {
        for _ in (0..each).step_by(at_once as usize) {
            for group in &groups {
                drop(take(bus, &topic, group, at_once as usize));
            }
        }
    })
}

fn publish(bus: &MessageBus, count: u32, attributes: impl Fn(NewMessage) -> NewMessage) {
    let topic: TopicName = name("jobs/eu");
    for _ in 0..count {
        put(bus, &topic, attributes(NewMessage::new(payload())));
    }
}

/// Measures the resident memory that `fill` takes for each of `count` items, beyond their payloads and what
/// `prepare` takes. Returns the filled bus.
fn keep(
    bench: &mut Bench,
    name: &str,
    count: u32,
    given: usize,
    prepare: &dyn Fn(&MessageBus),
    fill: &dyn Fn(&MessageBus, u32),
) -> Option<MessageBus> {
    if !bench.wants(name) {
        return None;
    }
    let topic =
        TopicSettings { max_messages: usize::MAX, max_bytes: u64::MAX, ..TopicSettings::default() };
    let bus = MessageBus::new(Options { topic, max_bytes: u64::MAX, ..Options::default() });
    prepare(&bus);
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
