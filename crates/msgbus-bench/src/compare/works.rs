//! What the servers are given to do.

use std::{io, time::Duration};

use msgbus_load::{Load, Progress, Report, Target};

use super::{
    servers::Contender,
    variants::{WITH_KEYS, WITH_RATE, WITH_TLS, WITH_UNIX},
};
use crate::bare::Push;

/// A piece of work.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// A short name, for files and filters.
    pub key: &'static str,
    /// What is done, for people.
    pub title: &'static str,
    /// Who does it; msgbusd first, what it is measured against next.
    pub contenders: &'static [Contender],
    kind: Kind,
    load: Load,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Publish,
    Pull,
    /// To so many subscribers.
    FanOut(usize),
    Idle(usize),
}

use Contender::{Bare, Msgbusd, Nats, Nchan, RedisChannel, RedisList, With};

/// The plain one, and it with one thing more.
const BESIDE_PLAIN: &[Contender] =
    &[Msgbusd, With(WITH_KEYS), With(WITH_RATE), With(WITH_TLS), With(WITH_UNIX)];

impl Work {
    fn new(
        key: &'static str,
        title: &'static str,
        contenders: &'static [Contender],
        kind: Kind,
    ) -> Self {
        let load = Load {
            clients: 64,
            topics: vec!["bench-00000000".to_owned()],
            messages: 200_000,
            duration: None,
            size: 128,
            rate: None,
            pipeline: 1,
            batch: 1,
            progress: Progress::default(),
        };
        Self { key, title, contenders, kind, load }
    }

    fn with(mut self, set: impl FnOnce(&mut Load)) -> Self {
        set(&mut self.load);
        self
    }

    /// Whether it measures memory.
    pub(super) fn is_about_memory(&self) -> bool {
        matches!(self.kind, Kind::Idle(_)) || self.key == "topics"
    }

    /// Whether it measures how long things take, at a rate that leaves time.
    pub(super) fn is_about_latency(&self) -> bool {
        self.load.rate.is_some()
    }

    /// How many runs it takes until the figures mean something: the long tail of a latency comes and
    /// goes.
    pub(super) fn least_runs(&self) -> usize {
        if self.is_about_latency() { 5 } else { 1 }
    }

    pub(super) async fn run(&self, target: &Target) -> io::Result<Report> {
        match self.kind {
            Kind::Publish => msgbus_load::publish(target, &self.load).await,
            Kind::Pull => msgbus_load::pull(target, &self.load).await,
            Kind::FanOut(subscribers) => {
                msgbus_load::fan_out(target, &self.load, subscribers).await
            }
            Kind::Idle(subscribers) => msgbus_load::idle(target, &self.load, subscribers).await,
        }
    }
}

fn topics(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("bench/{n}")).collect()
}

const HYPER: Contender = Bare(Push::Nowhere);
const EACH: Contender = Bare(Push::Each);
const BATCHES: Contender = Bare(Push::Batches);
const AT_ONCE: Contender = Bare(Push::AtOnce);

/// All works; quick ones do the least that shows whether they work.
pub(super) fn all(quick: bool) -> Vec<Work> {
    let mut works = beside_others();
    works.extend(works.iter().filter_map(Work::in_safety).collect::<Vec<_>>());
    if quick { works.into_iter().map(Work::quick).collect() } else { works }
}

/// The works of msgbusd beside what limits it and beside others.
fn beside_others() -> Vec<Work> {
    let latency = |load: &mut Load| {
        load.clients = 1;
        load.rate = Some(1000.0);
        load.messages = u64::MAX;
        load.duration = Some(Duration::from_secs(4));
    };
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

impl Work {
    /// The same work, where it shows what safety costs.
    fn in_safety(&self) -> Option<Self> {
        let (key, title) = match self.key {
            "put" => ("safe-put", "What safety costs: publish, 64 connections, 128 B"),
            "pull" => ("safe-pull", "What safety costs: pull, 64 connections, 128 B"),
            "fanout-100-busy" => {
                ("safe-fanout", "What safety costs: 8 publishers, 100 subscribers, 128 B")
            }
            "idle" => ("safe-idle", "What safety costs: 5,000 idle subscribers"),
            _ => return None,
        };
        Some(Self { key, title, contenders: BESIDE_PLAIN, ..self.clone() })
    }

    fn quick(mut self) -> Self {
        self.kind = match self.kind {
            Kind::FanOut(subscribers) => Kind::FanOut(subscribers.min(20)),
            Kind::Idle(_) => Kind::Idle(100),
            kind => kind,
        };
        let load = &mut self.load;
        load.messages = load.messages.min(1000.max(load.batch as u64));
        load.topics.truncate(500);
        load.duration = load.duration.map(|_| Duration::from_millis(200));
        self
    }
}
