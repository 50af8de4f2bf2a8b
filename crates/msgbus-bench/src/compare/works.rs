//! The works: what the servers have to do.

use std::time::Duration;

use msgbus_load::Load;

use super::{
    axes,
    contender::{Contender, Syncing},
    doors, engines, services,
    variants::{
        FOLLOW_PATTERN, FOLLOW_V1, FOLLOW_V1_10, FOLLOW_V1_100, IDLE_KEEP_ALIVE, IDLE_NDJSON,
        IDLE_SSE, LEASES, PLAIN_PULLS, PUBLISH_V1, REPLAY_COLD, REPLAY_HOT, SYNCED, WITH_KEYS,
        WITH_RATE, WITH_TLS, WITH_UNIX, WRITTEN,
    },
    work::{Kind, Work, topics},
};
use crate::bare::Push;

use Contender::{
    Bare, Beanstalk, JetStream, Msgbusd, Nats, Nchan, RedisChannel, RedisFile, RedisList,
    RedisStream, With,
};

/// msgbusd without options, and with one option each.
const BESIDE_PLAIN: &[Contender] =
    &[Msgbusd, With(WITH_KEYS), With(WITH_RATE), With(WITH_TLS), With(WITH_UNIX)];

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
}
