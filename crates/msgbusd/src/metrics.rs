//! The Prometheus text of `/metrics`: the names of prologic/msgbus with their types corrected, and new names that follow
//! the Prometheus conventions (`.ci/metrics` checks them with promtool). It is written by hand because
//! `prometheus-client` appends `_total` to the name of every counter, also to the old ones.

mod bus;
pub(crate) mod engines;
mod groups;
mod page;
mod services;
mod store;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use msgbus_core::MessageBus;
use msgbus_store::StoreStats;
use parking_lot::Mutex;

use self::page::Page;
use crate::{
    code::Code,
    config::{DoorBind, Protocol},
    logging,
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
        let mut page = Page::default();
        self.server(&mut page);
        for (name, help, value) in gauges {
            page.gauge(name, help, value);
        }
        self.refusals(&mut page);
        let (stats, topics) = bus::walk(bus, max_topics);
        bus::write_totals(&mut page, bus.options(), &stats);
        if let Some(store) = store {
            store::write(&mut page, store);
        }
        bus::write_topics(&mut page, &topics);
        groups::write(&mut page, bus, &topics, max_topics);
        services::write(&mut page, bus, max_topics);
        page.into_text()
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
