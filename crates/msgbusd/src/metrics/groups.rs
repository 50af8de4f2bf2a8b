//! The series of groups.

use std::cmp::Reverse;

use chrono::{DateTime, Utc};
use msgbus_core::{GroupStats, MessageBus, TopicName, TopicStats};

use super::Page;

/// A metric with one series for each group: the end of its name, help, type and value.
type Family = (&'static str, &'static str, &'static str, fn(&GroupStats) -> u64);

const FAMILIES: [Family; 12] = [
    ("pending", "Messages that the group has not been given.", "gauge", |g| g.pending),
    ("leased", "Messages that are leased.", "gauge", |g| g.leased),
    ("waiting", "Messages that will be delivered again.", "gauge", |g| g.waiting),
    ("delivered_total", "Leases given.", "counter", |g| g.counters.delivered),
    ("acked_total", "Messages acknowledged.", "counter", |g| g.counters.acked),
    ("nacked_total", "Leases that workers have given back.", "counter", |g| g.counters.nacked),
    ("lease_expired_total", "Leases whose time ended.", "counter", |g| g.counters.lease_expired),
    ("redelivered_total", "Leases given for messages delivered before.", "counter", |g| {
        g.counters.redelivered
    }),
    ("dead_lettered_total", "Messages that became dead letters.", "counter", |g| {
        g.counters.dead_lettered
    }),
    ("dead_letters_refused_total", "Dead letters that their topic refused.", "counter", |g| {
        g.counters.dead_letters_refused
    }),
    ("expired_total", "Messages that expired before they were acknowledged.", "counter", |g| {
        g.counters.expired
    }),
    ("evicted_total", "Messages evicted before they were acknowledged.", "counter", |g| {
        g.counters.evicted
    }),
];

/// Writes the series of the groups of these topics, at most `max_groups`: those with the most deliveries.
pub(super) fn write(page: &mut Page, bus: &MessageBus, topics: &[TopicStats], max_groups: usize) {
    let groups = busiest(bus, topics, max_groups);
    if groups.is_empty() {
        return;
    }
    for (end, help, kind, value) in FAMILIES {
        let name = format!("msgbus_group_{end}");
        page.head(&name, help, kind);
        for (topic, group) in &groups {
            page.sample(&name, &labels(topic, group), value(group));
        }
    }
    let name = "msgbus_group_oldest_unacked_seconds";
    page.head(name, "Age of the oldest message that is not acknowledged; 0 if all are.", "gauge");
    let now = Utc::now();
    for (topic, group) in &groups {
        page.sample(name, &labels(topic, group), age(group, now));
    }
}

fn labels<'a>(topic: &'a TopicName, group: &'a GroupStats) -> [(&'static str, &'a str); 2] {
    [("topic", topic.as_str()), ("group", group.name.as_str())]
}

/// In seconds.
fn age(group: &GroupStats, now: DateTime<Utc>) -> f64 {
    let age = group.oldest_unacked.and_then(|oldest| (now - oldest).to_std().ok());
    age.unwrap_or_default().as_secs_f64()
}

/// Sorted by topic and name. Besides the result, the groups of one topic are in memory at a time.
fn busiest<'a>(
    bus: &MessageBus,
    topics: &'a [TopicStats],
    count: usize,
) -> Vec<(&'a TopicName, GroupStats)> {
    let mut groups: Vec<(&TopicName, GroupStats)> = Vec::new();
    for stats in topics {
        let topic = &stats.topic.name;
        groups.extend(bus.groups(topic).into_iter().map(|group| (topic, group)));
        if groups.len() > count {
            groups
                .select_nth_unstable_by_key(count, |(_, group)| Reverse(group.counters.delivered));
            groups.truncate(count);
        }
    }
    groups.sort_unstable_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    groups
}
