//! Topics in engines, beside the same work done by clients of the engine itself, and beside topics in memory.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::{
    Findings,
    contender::Contender::{self, Alone, Msgbusd, Native, With},
    figures::{growth, median, rate},
    goals::Goal,
    peers,
    variants::{ON_NATS, ON_REDIS},
    work::{Kind, TOPIC, Work, topics},
    works::latency,
};
use crate::{
    engines::EngineKind::{Nats, Redis},
    running::Running,
};

/// The work after which the consumers of the engine are counted.
pub(super) const FOLLOWERS_KEY: &str = "engine-followers";
/// The fan-out that has a goal.
const FAN_OUT_KEY: &str = "engine-fanout";
const PUBLISH: &str = "Engines: publish, 64 connections, 128 B, beside clients of the engine";
const LATENCY: &str =
    "Engines: 1,000 messages a second to 1 subscriber, beside clients of the engine";
const ON_BOTH: &[Contender] = &[With(ON_NATS), With(ON_REDIS)];

pub(super) fn works() -> Vec<Work> {
    let idle = |load: &mut msgbus_load::Load| load.duration = Some(Duration::from_secs(1));
    vec![
        Work::new(
            "engine-put-nats",
            PUBLISH,
            &[With(ON_NATS), Native(Nats), Alone(Nats)],
            Kind::Publish,
        )
        .at("NATS"),
        Work::new(
            "engine-put-redis",
            PUBLISH,
            &[With(ON_REDIS), Native(Redis), Alone(Redis)],
            Kind::Publish,
        )
        .at("Redis"),
        Work::new("engine-latency-nats", LATENCY, &[With(ON_NATS), Native(Nats)], Kind::FanOut(1))
            .at("NATS")
            .with(latency),
        Work::new(
            "engine-latency-redis",
            LATENCY,
            &[With(ON_REDIS), Native(Redis)],
            Kind::FanOut(1),
        )
        .at("Redis")
        .with(latency),
        fan_out(FAN_OUT_KEY, "8 publishers", 8),
        fan_out("engine-fanout-64", "64 publishers", 64),
        Work::new(
            FOLLOWERS_KEY,
            "Engines: 10,000 idle subscribers of one topic",
            ON_BOTH,
            Kind::Idle(10_000),
        )
        .with(idle),
        Work::new(
            "engine-windows",
            "Engines: an idle subscriber of each of 2,000 topics",
            ON_BOTH,
            Kind::Idle(2000),
        )
        .with(|load| {
            load.topics = topics(2000);
            idle(load);
        }),
        Work::new(
            "engine-topics",
            "Engines: one message of 128 B to each of 10,000 topics that nobody follows",
            ON_BOTH,
            Kind::Publish,
        )
        .with(|load| (load.topics, load.messages) = (topics(10_000), 10_000)),
    ]
}

/// Messages from several publishers to 100 subscribers.
fn fan_out(key: &str, point: &'static str, publishers: usize) -> Work {
    Work::new(
        key,
        "Engines: 100 subscribers, 128 B, beside a topic in memory",
        &[With(ON_NATS), With(ON_REDIS), Msgbusd],
        Kind::FanOut(100),
    )
    .at(point)
    .with(|load| (load.clients, load.messages) = (publishers, 30_000))
}

/// How many consumers the engine has for the followers of the topic, just after they have left: their window is still
/// there.
pub(super) fn consumers(contender: Contender, server: &Running) -> anyhow::Result<u64> {
    let address = server.engine_address().context("there is no engine")?;
    match contender.engine().context("there is no engine")? {
        Nats => {
            let response = peers::ask(address, "$JS.API.CONSUMER.LIST.msgbus", "{\"offset\":0}")?;
            let list: Value = serde_json::from_slice(&response)?;
            list["total"].as_u64().context("no list of consumers")
        }
        Redis => {
            let client = redis::Client::open(Redis.url(address))?;
            let channel = format!("{{msgbus:{TOPIC}}}:news");
            let (_, count): (String, u64) = redis::cmd("PUBSUB")
                .arg("SHARDNUMSUB")
                .arg(channel)
                .query(&mut client.get_connection()?)?;
            Ok(count)
        }
    }
}

/// The goals on engines.
pub(super) fn goals(f: &Findings) -> Vec<Goal> {
    let ratio = |key, variant, other| {
        let own = f.reports(key, Some(With(variant))).iter();
        let other = f.reports(key, Some(other)).iter();
        median(own.zip(other).map(|(own, other)| rate(own) / rate(other)))
    };
    let memory = |key, variant| median(f.reports(key, Some(With(variant))).iter().map(growth));
    let mut goals = Vec::new();
    for (variant, kind, names) in [
        (ON_NATS, Nats, ["engine-put-nats", "on NATS: "]),
        (ON_REDIS, Redis, ["engine-put-redis", "on Redis: "]),
    ] {
        let [put, on] = names;
        let text = |text: &str| format!("{on}{text}");
        let one_topic = memory(FOLLOWERS_KEY, variant);
        let consumers = f.consumers.iter().filter(|(of, _)| *of == With(variant));
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let consumers = consumers.map(|(_, count)| *count as f64).fold(f64::NAN, f64::max);
        goals.extend([
            Goal::at_least(
                put,
                &text("rate over 64 native connections"),
                0.6,
                ratio(put, variant, Native(kind)),
            ),
            Goal::at_least(
                FAN_OUT_KEY,
                &text("rate over a topic in memory"),
                0.9,
                ratio(FAN_OUT_KEY, variant, Msgbusd),
            ),
            Goal::at_most(FOLLOWERS_KEY, &text("consumers of the engine"), 1.0, consumers),
            Goal::at_most(
                "engine-topics",
                &text("bytes of memory each topic that nobody follows"),
                4000.0,
                memory("engine-topics", variant),
            ),
            Goal::at_most(
                "engine-windows",
                &text("bytes of memory each idle topic, beyond its websocket"),
                4000.0,
                memory("engine-windows", variant) - one_topic,
            ),
        ]);
    }
    goals
}
