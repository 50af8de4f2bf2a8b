//! The series of services.

use std::cmp::Reverse;

use msgbus_core::{MessageBus, ReplyTimes, ServiceStats};

use super::Page;

/// A metric with one series for each service: the end of its name, help, type and value.
type Family = (&'static str, &'static str, &'static str, fn(&ServiceStats) -> u64);

const FAMILIES: [Family; 13] = [
    ("responders", "Responders that wait for requests.", "gauge", |s| s.responders as u64),
    ("queued", "Requests that wait for a responder.", "gauge", |s| s.queued as u64),
    ("in_hand", "Requests that responders have.", "gauge", |s| s.in_hand as u64),
    ("away", "Requests that other servers have, or are asked for.", "gauge", |s| s.away as u64),
    ("visiting", "Requests of other servers that are here.", "gauge", |s| s.visiting as u64),
    ("taken_total", "Requests of other servers that have come here.", "counter", |s| s.taken),
    ("asked_total", "Requests.", "counter", |s| s.counters.asked),
    ("replied_total", "Requests that got a reply.", "counter", |s| s.counters.replied),
    ("failed_total", "Requests whose responder failed or left.", "counter", |s| s.counters.failed),
    ("timed_out_total", "Requests without a reply in time.", "counter", |s| s.counters.timed_out),
    ("refused_total", "Requests that no responder was given.", "counter", |s| s.counters.refused),
    ("given_up_total", "Requests whose requester left.", "counter", |s| s.counters.given_up),
    ("not_wanted_total", "Replies that nobody waited for.", "counter", |s| s.counters.not_wanted),
];

/// Writes the series of at most `max` services: those with the most requests.
pub(super) fn write(page: &mut Page, bus: &MessageBus, max: usize) {
    let mut services = bus.services();
    if services.len() > max {
        services.sort_unstable_by_key(|service| Reverse(service.counters.asked));
        services.truncate(max);
        services.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    }
    if services.is_empty() {
        return;
    }
    for (end, help, kind, value) in FAMILIES {
        let name = format!("msgbus_service_{end}");
        page.head(&name, help, kind);
        for service in &services {
            page.sample(&name, &[("service", service.name.as_str())], value(service));
        }
    }
    reply_times(page, &services);
}

fn reply_times(page: &mut Page, services: &[ServiceStats]) {
    let name = "msgbus_service_reply_seconds";
    page.head(name, "How long requests waited for their replies.", "histogram");
    let bucket = format!("{name}_bucket");
    for service in services {
        let (label, times) = (("service", service.name.as_str()), &service.counters.reply_times);
        let mut count = 0;
        for (bound, times) in ReplyTimes::BOUNDS.iter().zip(times.counts) {
            count += times;
            #[expect(clippy::cast_precision_loss, reason = "the bounds are small")]
            let bound = (*bound as f64 / 1e6).to_string();
            page.sample(&bucket, &[label, ("le", &bound)], count);
        }
        let count: u64 = times.counts.iter().sum();
        page.sample(&bucket, &[label, ("le", "+Inf")], count);
        page.sample(&format!("{name}_sum"), &[label], times.sum.as_secs_f64());
        page.sample(&format!("{name}_count"), &[label], count);
    }
}
