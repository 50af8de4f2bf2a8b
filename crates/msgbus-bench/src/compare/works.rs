//! The works: what the servers have to do.

use std::{io, time::Duration};

use msgbus_load::{Load, Progress, Report, Target};

use super::{
    axes,
    contender::{Contender, Syncing},
    doors, engines, services,
    variants::{
        FOLLOW_PATTERN, FOLLOW_V1, FOLLOW_V1_10, FOLLOW_V1_100, IDLE_KEEP_ALIVE, IDLE_NDJSON,
        IDLE_SSE, LEASES, PLAIN_PULLS, PUBLISH_V1, REPLAY_COLD, REPLAY_HOT, SYNCED, WITH_KEYS,
        WITH_RATE, WITH_TLS, WITH_UNIX, WRITTEN,
    },
};
use crate::bare::Push;

/// A work, which several servers run.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// A short name, for files and filters.
    pub key: String,
    /// The title in the page.
    pub title: &'static str,
    /// The label on the axis, if several works share a table.
    pub point: Option<&'static str>,
    /// The servers: msgbusd first, its limit second.
    pub contenders: &'static [Contender],
    kind: Kind,
    load: Load,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Publish,
    Pull,
    /// With this many subscribers.
    FanOut(usize),
    /// To this many subscribers of a pattern, for the contender that follows one; to as many of one topic, for the others.
    PatternFanOut(usize),
    /// Taking messages and acknowledging them.
    Work,
    /// From the oldest message on, to this many subscribers.
    Replay(usize),
    Idle(usize),
}

use Contender::{
    Bare, Beanstalk, JetStream, Msgbusd, Nats, Nchan, RedisChannel, RedisFile, RedisList,
    RedisStream, With,
};

/// The number of connections that serve a service.
const RESPONDERS: usize = 1;
/// The topic of works that need only one.
pub(super) const TOPIC: &str = "bench-00000000";

/// msgbusd without options, and with one option each.
const BESIDE_PLAIN: &[Contender] =
    &[Msgbusd, With(WITH_KEYS), With(WITH_RATE), With(WITH_TLS), With(WITH_UNIX)];

impl Work {
    pub(super) fn new(
        key: impl Into<String>,
        title: &'static str,
        contenders: &'static [Contender],
        kind: Kind,
    ) -> Self {
        let load = Load {
            clients: 64,
            topics: vec![TOPIC.to_owned()],
            pattern: None,
            messages: 200_000,
            duration: None,
            size: 128,
            rate: None,
            pipeline: 1,
            batch: 1,
            progress: Progress::default(),
        };
        Self { key: key.into(), title, point: None, contenders, kind, load }
    }

    /// The same work, as a point of an axis.
    pub(super) fn at(mut self, point: &'static str) -> Self {
        self.point = Some(point);
        self
    }

    pub(super) fn with(mut self, set: impl FnOnce(&mut Load)) -> Self {
        set(&mut self.load);
        self
    }

    /// Whether it measures memory.
    pub(super) fn is_about_memory(&self) -> bool {
        matches!(self.kind, Kind::Idle(_)) || ["topics", "engine-topics"].contains(&&*self.key)
    }

    /// Whether it measures latency, at a rate below the maximum.
    pub(super) fn is_about_latency(&self) -> bool {
        self.load.rate.is_some()
    }

    /// The minimum number of runs for meaningful figures: the tail of a latency varies between runs.
    pub(super) fn min_runs(&self) -> usize {
        if self.is_about_latency() { 5 } else { 1 }
    }

    /// The size of a payload, in bytes.
    pub(super) fn size(&self) -> usize {
        self.load.size
    }

    pub(super) async fn run(&self, target: &Target, contender: Contender) -> io::Result<Report> {
        match self.kind {
            Kind::Publish if contender.asks() => {
                msgbus_load::request(target, &self.load, RESPONDERS).await
            }
            Kind::Publish if matches!(contender, Contender::Alone(_)) => {
                let (clients, pipeline) = (1, self.load.clients * self.load.pipeline);
                let load = Load { clients, pipeline, ..self.load.clone() };
                msgbus_load::publish(target, &load).await
            }
            Kind::Publish => msgbus_load::publish(target, &self.load).await,
            Kind::Pull => msgbus_load::pull(target, &self.load).await,
            Kind::FanOut(subscribers) => {
                msgbus_load::fan_out(target, &self.load, subscribers).await
            }
            Kind::PatternFanOut(subscribers) => {
                let mut load = self.load.clone();
                if contender == With(FOLLOW_PATTERN) {
                    load.pattern = Some(PATTERN.to_owned());
                } else {
                    load.topics.truncate(1);
                }
                msgbus_load::fan_out(target, &load, subscribers).await
            }
            Kind::Work => msgbus_load::work(target, &self.load).await,
            Kind::Replay(subscribers) => msgbus_load::replay(target, &self.load, subscribers).await,
            Kind::Idle(subscribers) => msgbus_load::idle(target, &self.load, subscribers).await,
        }
    }
}

/// It matches all of [`topics`].
const PATTERN: &str = "bench/*";

pub(super) fn topics(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("bench/{n}")).collect()
}

const HYPER: Contender = Bare(Push::Nowhere);
const EACH: Contender = Bare(Push::Each);
const BATCHES: Contender = Bare(Push::Batches);
const AT_ONCE: Contender = Bare(Push::AtOnce);

/// All works. Quick ones do just enough to check that they work.
pub(super) fn all(quick: bool) -> Vec<Work> {
    let mut works = beside_others();
    works.push(idle_http());
    works.extend(v1());
    works.extend(services::works());
    works.extend(doors::works());
    works.extend(engines::works());
    works.push(pattern());
    works.extend(leases());
    works.extend(durable());
    works.extend(works.iter().filter_map(Work::in_safety).collect::<Vec<_>>());
    works.extend(axes::works());
    if quick { works.into_iter().map(Work::quick).collect() } else { works }
}

/// Works that are small enough for a server in valgrind.
pub(super) fn counted() -> Vec<Work> {
    vec![
        Work::new("count-put", "PUT", &[Msgbusd], Kind::Publish)
            .with(|load| (load.clients, load.messages) = (8, 1000)),
        Work::new("count-fanout", "delivery to one of 100", &[Msgbusd], Kind::FanOut(100))
            .with(|load| (load.clients, load.messages) = (1, 50)),
    ]
}

/// A rate at which no server is busy.
pub(super) fn latency(load: &mut Load) {
    load.clients = 1;
    load.rate = Some(1000.0);
    load.messages = u64::MAX;
    load.duration = Some(Duration::from_secs(4));
}

/// The works of msgbusd, its limit and other servers.
fn beside_others() -> Vec<Work> {
    vec![
        Work::new(
            "put",
            "Publish: 64 connections, 128 B",
            &[Msgbusd, HYPER, Nchan, RedisList, Nats],
            Kind::Publish,
        )
        .with(|load| load.messages = 300_000),
        Work::new(
            "put-pipelined",
            "Publish: 64 connections, 16 requests under way on each, 128 B",
            &[Msgbusd, HYPER, Nchan, RedisList, Nats],
            Kind::Publish,
        )
        .with(|load| {
            load.pipeline = 16;
            load.messages = 600_000;
        }),
        Work::new("pull", "Pull: 64 connections, 128 B", &[Msgbusd, HYPER, RedisList], Kind::Pull)
            .with(|load| load.topics = topics(4)),
        Work::new(
            "split",
            "Publish in batches: 4 connections, 1,000 lines of 128 B in a body",
            &[Msgbusd, RedisList],
            Kind::Publish,
        )
        .with(|load| {
            load.clients = 4;
            load.batch = 1000;
            load.messages = 4_000_000;
        }),
        Work::new(
            "fanout-100",
            "Fan-out: 1 publisher, 100 subscribers, 128 B",
            &[Msgbusd, EACH, Nchan, RedisChannel, Nats],
            Kind::FanOut(100),
        )
        .with(|load| {
            load.clients = 1;
            load.messages = 15_000;
        }),
        Work::new(
            "fanout-100-busy",
            "Fan-out: 8 publishers, 100 subscribers, 128 B",
            &[Msgbusd, BATCHES, Nchan, RedisChannel, Nats],
            Kind::FanOut(100),
        )
        .with(|load| {
            load.clients = 8;
            load.messages = 30_000;
        }),
        Work::new(
            "fanout-1000",
            "Fan-out: 8 publishers, 1,000 subscribers, 128 B",
            &[Msgbusd, BATCHES, Nchan, RedisChannel, Nats],
            Kind::FanOut(1000),
        )
        .with(|load| {
            load.clients = 8;
            load.messages = 3_000;
        }),
        Work::new(
            "latency-1",
            "Latency: 1,000 messages a second to 1 subscriber",
            &[Msgbusd, AT_ONCE, EACH, Nchan, RedisChannel, Nats],
            Kind::FanOut(1),
        )
        .with(latency),
        Work::new(
            "latency-100",
            "Latency: 1,000 messages a second to 100 subscribers",
            &[Msgbusd, AT_ONCE, EACH, Nchan, RedisChannel, Nats],
            Kind::FanOut(100),
        )
        .with(latency),
        Work::new(
            "idle",
            "Idle: 5,000 subscribers of one topic",
            &[Msgbusd, EACH, Nchan, RedisChannel, Nats],
            Kind::Idle(5000),
        )
        .with(|load| load.duration = Some(Duration::from_secs(1))),
        Work::new(
            "topics",
            "Many topics: one message of 128 B to each of 100,000",
            &[Msgbusd, RedisList],
            Kind::Publish,
        )
        .with(|load| {
            load.topics = topics(100_000);
            load.messages = 100_000;
        }),
    ]
}

/// Work queues: messages are taken, and acknowledged when they are done. All servers keep them in memory.
fn leases() -> [Work; 2] {
    const ONE_BY_ONE: &[Contender] = &[
        With(PLAIN_PULLS),
        With(LEASES),
        RedisStream,
        JetStream(Syncing::Never),
        Beanstalk(Syncing::Never),
    ];
    const BY_HUNDRED: &[Contender] =
        &[With(PLAIN_PULLS), With(LEASES), RedisStream, JetStream(Syncing::Never)];
    [
        Work::new(
            "leases-1",
            "Work queue: take a message and acknowledge it, 1 connection, 128 B",
            ONE_BY_ONE,
            Kind::Work,
        )
        .with(|load| (load.clients, load.messages) = (1, 60_000)),
        Work::new(
            "leases-100",
            "Work queue: take 100 messages and acknowledge them, 4 connections, 128 B",
            BY_HUNDRED,
            Kind::Work,
        )
        .with(|load| (load.clients, load.messages, load.batch) = (4, 1_000_000, 100)),
    ]
}

/// The same on `msgbus.v1` as over HTTP and plain websockets.
fn v1() -> [Work; 5] {
    [
        Work::new(
            "v1-publish",
            "One websocket: 16 publishes of 128 B in a frame, beside 16 lines in a body",
            &[With(PUBLISH_V1), Msgbusd],
            Kind::Publish,
        )
        .with(|load| {
            (load.clients, load.batch, load.pipeline) = (1, 16, 4);
            load.messages = 2_000_000;
        }),
        Work::new(
            "v1-fanout",
            "One websocket: 8 publishers, 100 subscribers, 128 B",
            &[With(FOLLOW_V1), Msgbusd],
            Kind::FanOut(100),
        )
        .with(|load| (load.clients, load.messages) = (8, 30_000)),
        Work::new(
            "v1-idle",
            "One websocket: 5,000 idle subscribers",
            &[With(FOLLOW_V1), Msgbusd],
            Kind::Idle(5000),
        )
        .with(|load| load.duration = Some(Duration::from_secs(1))),
        Work::new(
            "v1-idle-10",
            "One websocket: 5,000 idle connections with 10 subscriptions each",
            &[With(FOLLOW_V1_10)],
            Kind::Idle(5000),
        )
        .with(|load| load.duration = Some(Duration::from_secs(1))),
        Work::new(
            "v1-idle-100",
            "One websocket: 1,000 idle connections with 100 subscriptions each",
            &[With(FOLLOW_V1_100)],
            Kind::Idle(1000),
        )
        .with(|load| load.duration = Some(Duration::from_secs(1))),
    ]
}

/// Subscribers of one pattern beside subscribers of one topic.
fn pattern() -> Work {
    Work::new(
        "pattern-fanout",
        "Fan-out: 8 publishers, 100 subscribers of 1,000 topics by pattern, beside one topic, 128 B",
        &[With(FOLLOW_PATTERN), Msgbusd],
        Kind::PatternFanOut(100),
    )
    .with(|load| {
        load.topics = topics(1000);
        (load.clients, load.messages) = (8, 30_000);
    })
}

/// Publishes that survive something, each with the same promise as the servers beside it.
fn durable() -> [Work; 5] {
    const WRITTEN_LATER: &[Contender] = &[
        With(WRITTEN),
        Msgbusd,
        RedisFile(Syncing::Later),
        JetStream(Syncing::Later),
        Beanstalk(Syncing::Later),
    ];
    const ON_DISK: &[Contender] = &[
        With(SYNCED),
        Bare(Push::Synced),
        RedisFile(Syncing::Always),
        JetStream(Syncing::Always),
        Beanstalk(Syncing::Always),
    ];
    /// Some sync each message by itself.
    const LIMIT: Option<Duration> = Some(Duration::from_secs(15));
    [
        Work::new("durable-1", "Synced: publish, 1 connection, 128 B", ON_DISK, Kind::Publish)
            .with(|load| (load.clients, load.messages) = (1, 3_000)),
        Work::new("durable-64", "Synced: publish, 64 connections, 128 B", ON_DISK, Kind::Publish)
            .with(|load| (load.messages, load.duration) = (100_000, LIMIT)),
        Work::new(
            "durable-interval",
            "Written, synced every second: publish, 64 connections, 128 B",
            WRITTEN_LATER,
            Kind::Publish,
        )
        .with(|load| load.duration = LIMIT),
        Work::new(
            "durable-split",
            "Synced: 4 connections, 1,000 lines of 128 B in a body",
            &[With(SYNCED), Msgbusd],
            Kind::Publish,
        )
        .with(|load| {
            load.clients = 4;
            load.batch = 1000;
            load.messages = 2_000_000;
        }),
        Work::new(
            "durable-replay",
            "Replay to 1 subscriber, 128 B",
            &[With(REPLAY_COLD), With(REPLAY_HOT)],
            Kind::Replay(1),
        )
        .with(|load| load.messages = 500_000),
    ]
}

/// Idle connections that are not websockets.
fn idle_http() -> Work {
    Work::new(
        "idle-http",
        "Idle: 5,000 streams, or connections that are kept alive after a request",
        &[With(IDLE_SSE), With(IDLE_NDJSON), With(IDLE_KEEP_ALIVE), HYPER],
        Kind::Idle(5000),
    )
    .with(|load| load.duration = Some(Duration::from_secs(1)))
}

impl Work {
    /// The same work with the security options, if it shows their cost.
    fn in_safety(&self) -> Option<Self> {
        let (key, title) = match self.key.as_str() {
            "put" => ("safe-put", "What safety costs: publish, 64 connections, 128 B"),
            "pull" => ("safe-pull", "What safety costs: pull, 64 connections, 128 B"),
            "fanout-100-busy" => {
                ("safe-fanout", "What safety costs: 8 publishers, 100 subscribers, 128 B")
            }
            "idle" => ("safe-idle", "What safety costs: 5,000 idle subscribers"),
            _ => return None,
        };
        Some(Self { key: key.to_owned(), title, contenders: BESIDE_PLAIN, ..self.clone() })
    }

    fn quick(mut self) -> Self {
        self.kind = match self.kind {
            Kind::FanOut(subscribers) => Kind::FanOut(subscribers.min(20)),
            Kind::PatternFanOut(subscribers) => Kind::PatternFanOut(subscribers.min(20)),
            Kind::Idle(_) => Kind::Idle(100),
            kind => kind,
        };
        let load = &mut self.load;
        let few = 1000.min((8 << 20) / load.size.max(1)).max(load.batch);
        load.messages = load.messages.min(few as u64);
        load.topics.truncate(500);
        load.duration = load.duration.map(|_| Duration::from_millis(200));
        self
    }
}
