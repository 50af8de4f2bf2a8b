//! The series of the bus, and those of its topics.

use std::cmp::Reverse;

use msgbus_core::{BusStats, MessageBus, Options, TopicStats};

use super::Page;

/// Writes the totals of the bus.
pub(super) fn write_totals(page: &mut Page, options: &Options, stats: &BusStats) {
    let counters = &stats.counters;
    page.counter("msgbus_bus_messages", "Messages published.", counters.published);
    page.counter("msgbus_bus_fetched", "Messages pulled.", counters.pulled);
    page.counter(
        "msgbus_bus_delivered",
        "Messages delivered to subscribers, counted once for each subscriber.",
        counters.delivered,
    );
    page.counter(
        "msgbus_bus_dropped",
        "Messages removed before a subscriber received them, counted once for each subscriber.",
        counters.missed,
    );
    for (cause, help, removed) in [
        ("expired", "that expired", counters.expired),
        ("evicted", "evicted because a limit was reached", counters.evicted),
        ("deleted", "deleted with their topic", counters.deleted),
    ] {
        let name = format!("msgbus_bus_{cause}_total");
        page.counter(&name, &format!("Messages {help}."), removed.total);
        let name = format!("msgbus_bus_{cause}_unpulled_total");
        let help = format!("Messages {help} before anyone pulled them.");
        page.counter(&name, &help, removed.unpulled);
    }
    page.gauge("msgbus_bus_retained", "Messages retained.", stats.retained);
    page.gauge("msgbus_bus_topics", "Topics.", stats.topics);
    page.gauge(
        "msgbus_bus_topics_limit",
        "Maximum number of topics (--max-topics).",
        options.max_topics,
    );
    page.gauge("msgbus_bus_subscribers", "Open subscriptions.", stats.subscribers);
    pattern_totals(page, stats);
    page.gauge("msgbus_bus_bytes", "Bytes reserved for topics and messages.", stats.bytes);
    page.gauge(
        "msgbus_bus_bytes_limit",
        "Maximum number of bytes (--max-total-bytes).",
        options.max_bytes,
    );
}

fn pattern_totals(page: &mut Page, stats: &BusStats) {
    let help = "Patterns that are followed, or were in the last minutes.";
    page.gauge("msgbus_bus_patterns", help, stats.patterns);
    let help = "References of patterns to messages.";
    page.gauge("msgbus_bus_pattern_references", help, stats.references);
}

/// A metric with one series for each topic: name, help, type and value.
type Family = (&'static str, &'static str, &'static str, fn(&TopicStats) -> u64);

const FAMILIES: [Family; 11] = [
    ("msgbus_queue_len", "Messages waiting to be pulled.", "gauge", |t| t.unpulled),
    ("msgbus_queue_size", "Maximum number of messages retained.", "gauge", |t| {
        t.settings.max_messages as u64
    }),
    ("msgbus_topic_messages_total", "Messages published.", "counter", |t| t.counters.published),
    ("msgbus_topic_pulled_total", "Messages pulled.", "counter", |t| t.counters.pulled),
    ("msgbus_topic_delivered_total", "Messages delivered to subscribers.", "counter", |t| {
        t.counters.delivered
    }),
    (
        "msgbus_topic_dropped_total",
        "Messages removed before a subscriber received them.",
        "counter",
        |t| t.counters.missed,
    ),
    (
        "msgbus_topic_expired_unpulled_total",
        "Messages that expired before anyone pulled them.",
        "counter",
        |t| t.counters.expired.unpulled,
    ),
    (
        "msgbus_topic_evicted_unpulled_total",
        "Messages evicted before anyone pulled them.",
        "counter",
        |t| t.counters.evicted.unpulled,
    ),
    ("msgbus_topic_retained", "Messages retained.", "gauge", |t| t.retained),
    ("msgbus_topic_bytes", "Bytes retained.", "gauge", |t| t.bytes),
    ("msgbus_topic_subscribers", "Open subscriptions.", "gauge", |t| t.subscribers as u64),
];

pub(super) fn write_topics(page: &mut Page, topics: &[TopicStats]) {
    if topics.is_empty() {
        return;
    }
    for (name, help, kind, value) in FAMILIES {
        page.head(name, help, kind);
        for topic in topics {
            page.sample(name, &[("topic", topic.topic.name.as_str())], value(topic));
        }
    }
}

/// The counters of the bus, and those of the topics with the most published messages, sorted by name. The walk keeps no
/// others in memory.
pub(super) fn walk(bus: &MessageBus, max_topics: usize) -> (BusStats, Vec<TopicStats>) {
    let mut walk = bus.walk_stats();
    let mut busiest = Vec::new();
    while let Some(mut slice) = walk.next_slice() {
        busiest.append(&mut slice);
        keep_busiest(&mut busiest, max_topics);
    }
    busiest.sort_unstable_by(|a, b| a.topic.name.cmp(&b.topic.name));
    (walk.totals(), busiest)
}

fn keep_busiest(topics: &mut Vec<TopicStats>, count: usize) {
    if topics.len() > count {
        topics.select_nth_unstable_by_key(count, |topic| Reverse(topic.counters.published));
        topics.truncate(count);
    }
}
