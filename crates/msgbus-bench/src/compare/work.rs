//! A work: what servers have to do, and how it is run.

use std::{io, time::Duration};

use msgbus_load::{Load, Progress, Report, Target};

use super::{
    contender::Contender::{self, With},
    variants::FOLLOW_PATTERN,
};

/// The topic of works that need only one.
pub(super) const TOPIC: &str = "bench-00000000";

/// The number of connections that serve a service.
const RESPONDERS: usize = 1;
/// The pattern of the works that follow one. It matches all of [`topics`].
const PATTERN: &str = "bench/*";

pub(super) fn topics(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("bench/{n}")).collect()
}

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
    pub(super) kind: Kind,
    pub(super) load: Load,
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

    /// The same work, with just enough to do to check that it works.
    pub(super) fn quick(mut self) -> Self {
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
