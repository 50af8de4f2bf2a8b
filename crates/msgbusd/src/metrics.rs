//! The Prometheus text of `/metrics`: the names of prologic/msgbus with their types corrected, and new names that follow
//! the Prometheus conventions (`.ci/metrics` checks them with promtool). It is written by hand because
//! `prometheus-client` appends `_total` to the name of every counter, also to the old ones.

pub(crate) mod engines;
mod groups;
mod services;

use std::{
    cmp::Reverse,
    fmt::{Display, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use msgbus_core::{BusStats, MessageBus, Options, TopicStats};
use msgbus_store::StoreStats;
use parking_lot::Mutex;

use crate::{
    config::{DoorBind, Protocol},
    logging,
    service::code::Code,
    worker::Counter,
};

/// The deadline that a connection exceeded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Deadline {
    Header,
    Idle,
    Write,
    Silence,
}

impl Deadline {
    const ALL: [(Self, &str); 4] = [
        (Self::Header, "header"),
        (Self::Idle, "idle"),
        (Self::Write, "write"),
        (Self::Silence, "silence"),
    ];
}

/// The counters of the daemon. The bus has its own.
#[derive(Debug)]
pub(crate) struct Metrics {
    started: Instant,
    /// A counter for each worker.
    requests: Mutex<Vec<Arc<Counter>>>,
    /// As `requests`, of operations on `msgbus.v1` websockets.
    operations: Mutex<Vec<Arc<Counter>>>,
    doors: Vec<DoorCounters>,
    connections: AtomicU64,
    refused_connections: AtomicU64,
    client_errors: AtomicU64,
    /// Refusals by code.
    refused: [AtomicU64; Code::ALL.len()],
    timeouts: [AtomicU64; Deadline::ALL.len()],
    /// Round trips of pings, in nanoseconds.
    latency: Mutex<Latency>,
}

/// The counters of a protocol other than HTTP.
#[derive(Debug)]
struct DoorCounters {
    protocol: Protocol,
    connections: AtomicU64,
    /// A counter for each worker.
    messages: Mutex<Vec<Arc<Counter>>>,
}

#[derive(Debug)]
struct Latency {
    histogram: Histogram<u64>,
    sum: Duration,
}

impl Metrics {
    pub(crate) fn new(doors: &[DoorBind]) -> Self {
        let is_served = |protocol: &Protocol| doors.iter().any(|door| door.protocol == *protocol);
        let doors = Protocol::ALL.into_iter().filter(is_served).map(|protocol| DoorCounters {
            protocol,
            connections: AtomicU64::new(0),
            messages: Mutex::default(),
        });
        let histogram = Histogram::new(2).unwrap_or_else(|_| unreachable!("2 digits are allowed"));
        Self {
            started: Instant::now(),
            requests: Mutex::default(),
            operations: Mutex::default(),
            doors: doors.collect(),
            connections: AtomicU64::new(0),
            refused_connections: AtomicU64::new(0),
            client_errors: AtomicU64::new(0),
            refused: [const { AtomicU64::new(0) }; Code::ALL.len()],
            timeouts: [const { AtomicU64::new(0) }; Deadline::ALL.len()],
            latency: Mutex::new(Latency { histogram, sum: Duration::ZERO }),
        }
    }

    /// Adds counters of requests and of operations for one worker.
    pub(crate) fn counters_of_a_worker(&self) -> (Arc<Counter>, Arc<Counter>) {
        let add = |counters: &Mutex<Vec<Arc<Counter>>>| {
            let counter = Arc::default();
            counters.lock().push(Arc::clone(&counter));
            counter
        };
        (add(&self.requests), add(&self.operations))
    }

    /// Adds a counter of messages of each door for one worker.
    pub(crate) fn door_counters_of_a_worker(&self) -> Vec<(Protocol, Arc<Counter>)> {
        let add = |door: &DoorCounters| {
            let counter: Arc<Counter> = Arc::default();
            door.messages.lock().push(Arc::clone(&counter));
            (door.protocol, counter)
        };
        self.doors.iter().map(add).collect()
    }

    /// Counts a connection of a door, in addition to [`connection`](Self::connection).
    pub(crate) fn door_connection(&self, protocol: Protocol) {
        if let Some(door) = self.doors.iter().find(|door| door.protocol == protocol) {
            door.connections.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn connection(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// Counts a refused connection; `code` names the limit.
    pub(crate) fn refused_connection(&self, code: Code) {
        self.refused_connections.fetch_add(1, Relaxed);
        self.refusal(code);
    }

    pub(crate) fn refusal(&self, code: Code) {
        self.refused[code as usize].fetch_add(1, Relaxed);
    }

    fn refused(&self, code: Code) -> u64 {
        self.refused[code as usize].load(Relaxed)
    }

    pub(crate) fn timeout(&self, deadline: Deadline) {
        self.timeouts[deadline as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn client_error(&self) {
        self.client_errors.fetch_add(1, Relaxed);
    }

    pub(crate) fn latency(&self, round_trip: Duration) {
        let mut latency = self.latency.lock();
        let nanoseconds = u64::try_from(round_trip.as_nanos()).unwrap_or(u64::MAX);
        // It fails only if the histogram cannot grow; losing a sample is acceptable.
        let _ = latency.histogram.record(nanoseconds);
        latency.sum += round_trip;
    }

    /// The page, with series for at most `max_topics` topics: those with the most published messages.
    pub(crate) fn render(
        &self,
        bus: &MessageBus,
        store: Option<&StoreStats>,
        gauges: &[(&str, &str, usize)],
        max_topics: usize,
    ) -> String {
        let mut page = Page(String::with_capacity(8 << 10));
        self.server(&mut page);
        for (name, help, value) in gauges {
            page.gauge(name, help, value);
        }
        self.refusals(&mut page);
        let (stats, topics) = walk(bus, max_topics);
        bus_totals(&mut page, bus.options(), &stats);
        if let Some(store) = store {
            store_totals(&mut page, store);
        }
        per_topic(&mut page, &topics);
        groups::write(&mut page, bus, &topics, max_topics);
        services::write(&mut page, bus, max_topics);
        page.0
    }

    fn refusals(&self, page: &mut Page) {
        let name = "msgbus_server_refused_total";
        page.head(name, "Requests and connections refused, by error code.", "counter");
        for code in Code::ALL {
            page.sample(name, &[("code", code.word())], self.refused(code));
        }
        let name = "msgbus_server_timeouts_total";
        page.head(
            name,
            "Connections closed and requests refused because the client was too slow.",
            "counter",
        );
        for (deadline, which) in Deadline::ALL {
            let count = self.timeouts[deadline as usize].load(Relaxed);
            page.sample(name, &[("which", which)], count);
        }
        // These got a 408.
        page.sample(name, &[("which", "body")], self.refused(Code::BodyTimeout));
    }

    fn server(&self, page: &mut Page) {
        let uptime = self.started.elapsed();
        page.counter(
            "msgbus_server_uptime",
            "Nanoseconds since the server started.",
            uptime.as_nanos(),
        );
        let sum = |counters: &Mutex<Vec<Arc<Counter>>>| {
            counters.lock().iter().map(|counter| counter.get()).sum()
        };
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        for (name, help, counter) in [
            ("msgbus_server_requests", "HTTP requests received.", sum(&self.requests)),
            (
                "msgbus_server_operations_total",
                "Operations received on msgbus.v1 websockets.",
                sum(&self.operations),
            ),
            ("msgbus_server_connections_total", "Connections accepted.", load(&self.connections)),
            (
                "msgbus_server_connections_refused_total",
                "Connections refused by the total or per-address limit.",
                load(&self.refused_connections),
            ),
            (
                "msgbus_client_errors",
                "Websocket connections that failed.",
                load(&self.client_errors),
            ),
        ] {
            page.counter(name, help, counter);
        }
        self.doors(page);
        page.counter(
            "msgbus_server_log_lines_dropped_total",
            "Lines of the log that could not be written.",
            logging::dropped(),
        );
        self.ping_latency(page);
    }

    /// Nothing while there are no doors but HTTP.
    fn doors(&self, page: &mut Page) {
        let mut write = |name, help, count: fn(&DoorCounters) -> u64| {
            if !self.doors.is_empty() {
                page.head(name, help, "counter");
            }
            for door in &self.doors {
                page.sample(name, &[("door", door.protocol.name())], count(door));
            }
        };
        write(
            "msgbus_door_connections_total",
            "Connections accepted by doors other than HTTP.",
            |door| door.connections.load(Relaxed),
        );
        write(
            "msgbus_door_messages_total",
            "Messages received by doors other than HTTP.",
            |door| door.messages.lock().iter().map(|counter| counter.get()).sum(),
        );
    }

    fn ping_latency(&self, page: &mut Page) {
        let latency = self.latency.lock();
        let name = "msgbus_client_latency_seconds";
        page.head(name, "Round-trip times of websocket pings.", "summary");
        for quantile in [0.5, 0.9, 0.95, 0.99] {
            let value = match latency.histogram.len() {
                0 => f64::NAN,
                _ => Duration::from_nanos(latency.histogram.value_at_quantile(quantile))
                    .as_secs_f64(),
            };
            page.sample(name, &[("quantile", &quantile.to_string())], value);
        }
        page.sample(&format!("{name}_sum"), &[], latency.sum.as_secs_f64());
        page.sample(&format!("{name}_count"), &[], latency.histogram.len());
    }
}

fn bus_totals(page: &mut Page, options: &Options, stats: &BusStats) {
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

/// The store of `--data`.
fn store_totals(page: &mut Page, store: &StoreStats) {
    for (name, help, value) in [
        ("msgbus_store_bytes", "Size of all files.", store.bytes),
        ("msgbus_store_live_bytes", "Bytes of the files that are needed.", store.live_bytes),
        ("msgbus_store_segments", "Files.", store.segments as u64),
        ("msgbus_store_queued_bytes", "Bytes waiting to be written.", store.queued_bytes as u64),
        ("msgbus_store_full", "Whether there is no room for messages.", store.is_full.into()),
        ("msgbus_store_failed", "Whether the disk has failed.", store.failure.is_some().into()),
        (
            "msgbus_store_unreadable",
            "Whether a file that cannot be read keeps all later ones from being freed.",
            store.unreadable.is_some().into(),
        ),
        (
            "msgbus_store_skipped_parts",
            "Damaged parts of files that --repair skipped at the start.",
            store.recovery.skipped.len() as u64,
        ),
        (
            "msgbus_store_skipped_bytes",
            "Bytes that --repair skipped at the start.",
            store.recovery.skipped.iter().map(|damage| damage.bytes).sum(),
        ),
    ] {
        page.gauge(name, help, value);
    }
    for (name, help, value) in [
        ("msgbus_store_written_bytes_total", "Bytes written.", store.written_bytes),
        ("msgbus_store_syncs_total", "Syncs.", store.syncs),
        ("msgbus_store_copied_total", "Messages copied to free files.", store.copied),
    ] {
        page.counter(name, help, value);
    }
    let seconds = store.sync_time.as_secs_f64();
    page.counter("msgbus_store_sync_seconds_total", "Time of all syncs.", seconds);
    let longest = store.longest_sync.as_secs_f64();
    page.gauge("msgbus_store_longest_sync_seconds", "Time of the longest sync.", longest);
    let recovery = store.recovery.time.as_secs_f64();
    page.gauge(
        "msgbus_store_recovery_seconds",
        "Time of reading the files at the start.",
        recovery,
    );
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

fn per_topic(page: &mut Page, topics: &[TopicStats]) {
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
fn walk(bus: &MessageBus, max_topics: usize) -> (BusStats, Vec<TopicStats>) {
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

/// A page in the text format, version 0.0.4. Writing to a String cannot fail.
struct Page(String);

impl Page {
    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, help, "counter");
        self.sample(name, &[], value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, help, "gauge");
        self.sample(name, &[], value);
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (key, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{key}=\"{text}\"");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{after} {value}");
    }
}
