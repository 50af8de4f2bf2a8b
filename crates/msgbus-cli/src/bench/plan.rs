//! Parses the options of `msgbus bench` into a load.

use std::{ffi::OsString, str::FromStr, time::Duration};

use msgbus_client::{Client, TopicName};
use msgbus_load::{Load, Progress};
use serde::Serialize;

use crate::{
    failure::Failure,
    reader::{Options, count, duration},
};

/// The kind of benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Work {
    Pub,
    Sub,
    Pull,
    Fanout,
    Idle,
    Latency,
    Request,
}

impl Work {
    const ALL: [Self; 7] =
        [Self::Pub, Self::Sub, Self::Pull, Self::Fanout, Self::Idle, Self::Latency, Self::Request];

    fn name(self) -> &'static str {
        match self {
            Self::Pub => "pub",
            Self::Sub => "sub",
            Self::Pull => "pull",
            Self::Fanout => "fanout",
            Self::Idle => "idle",
            Self::Latency => "latency",
            Self::Request => "request",
        }
    }
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let work = Self::ALL.into_iter().find(|work| work.name() == text);
        work.ok_or_else(|| format!("no benchmark {text:?}; choose one of {names}"))
    }
}

/// The output format of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Table,
    Json,
    Csv,
}

#[derive(Debug)]
pub(crate) struct Bench {
    pub(super) work: Work,
    pub(super) client: Client,
    /// `None` creates topics, which are deleted at the end.
    pub(super) topic: Option<TopicName>,
    pub(super) topics: usize,
    pub(super) clients: usize,
    /// Or responders.
    pub(super) subscribers: usize,
    pub(super) messages: Option<u64>,
    pub(super) size: usize,
    pub(super) rate: Option<f64>,
    pub(super) duration: Option<Duration>,
    pub(super) pipeline: usize,
    pub(super) batch: usize,
    /// Publish or pull over `msgbus.v1`.
    pub(super) v1: bool,
    pub(super) raw: bool,
    pub(super) pid: Option<u32>,
    pub(super) show: Show,
    pub(super) progress: bool,
}

/// An upper bound against typos: each connection needs a file descriptor and a task.
const MAX_CONNECTIONS: u64 = 60_000;
const MAX_TOPICS: u64 = 1_000_000;
/// The largest request, in bytes.
const MAX_REQUEST: usize = 1 << 30;
/// In messages per second. A lower rate would overflow the computation of due times.
const MIN_RATE: f64 = 0.001;
/// The default number of operations in a frame of `msgbus.v1`.
const V1_BATCH: usize = 16;
/// The default limit of a topic, in messages.
const DEFAULT_TOPIC_LIMIT: u64 = 65_536;

impl Bench {
    pub(crate) fn parse(options: &mut Options, work: Option<OsString>) -> Result<Self, Failure> {
        let none = "choose a benchmark: pub, sub, pull, fanout, idle, latency or request";
        let work = work.ok_or_else(|| Failure::usage(none))?;
        let work: Work = work.to_string_lossy().parse().map_err(Failure::usage)?;
        let topics = options.value("--topics", number(MAX_TOPICS))?.unwrap_or(1);
        let (clients, subscribers, messages, rate, time) = match work {
            Work::Pub => (16, 0, Some(100_000), None, None),
            Work::Sub => (0, 1, None, None, None),
            Work::Pull => (16, 0, Some(50_000), None, None),
            Work::Fanout => (1, 100, Some(10_000), None, None),
            Work::Idle => (0, 1000, None, None, Some(Duration::from_secs(1))),
            Work::Latency => (1, 1, None, Some(1000.0), Some(Duration::from_secs(5))),
            Work::Request => (16, 4, Some(10_000), None, None),
        };
        let others = if work == Work::Request { "--responders" } else { "--subs" };
        let asked = options.value("--msgs", count)?;
        let duration = options.value("--duration", duration)?;
        // With --duration and without --msgs, only the time ends the run.
        let messages = asked.or(messages.filter(|_| duration.is_none() || work == Work::Pull));
        let v1 = options.switch("--v1");
        let batch = if v1 && work == Work::Pub { V1_BATCH } else { 1 };
        let bench = Self {
            work,
            v1,
            topic: options.value("--topic", |name| {
                TopicName::new(name.trim_matches('/')).map_err(|error| error.to_string())
            })?,
            topics,
            clients: connections(options, "--clients", work, clients)?,
            subscribers: connections(options, others, work, subscribers)?,
            messages,
            size: options.value("--size", size)?.unwrap_or(128),
            rate: options.value("--rate", rate_of)?.or(rate),
            duration: duration.or(time.filter(|_| asked.is_none())),
            pipeline: options.value("--pipeline", number(10_000))?.unwrap_or(1),
            batch: options.value("--batch", number(100_000))?.unwrap_or(batch),
            raw: options.switch("--raw"),
            pid: options.value("--pid", |text| text.parse().map_err(|_| not_a_number(text)))?,
            show: match (options.switch("--json"), options.switch("--csv")) {
                (false, false) => Show::Table,
                (true, false) => Show::Json,
                (false, true) => Show::Csv,
                (true, true) => return Err(Failure::usage("give one of --json and --csv")),
            },
            progress: !options.switch("--no-progress"),
            client: options.client()?.0,
        };
        bench.check()?;
        Ok(bench)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.work == Work::Sub && self.topic.is_none() {
            return Err(Failure::usage(
                "bench sub needs --topic: the one that msgbus bench pub --topic publishes to",
            ));
        }
        let topics = self.topics as u64;
        if self.work == Work::Pull
            && self.messages.is_some_and(|all| all / topics > DEFAULT_TOPIC_LIMIT)
        {
            return Err(Failure::usage(format!(
                "a topic holds {DEFAULT_TOPIC_LIMIT} messages; use more --topics"
            )));
        }
        if self.work == Work::Pull && self.messages.is_some_and(|all| all < topics) {
            return Err(Failure::usage("--topics must not be more than --msgs"));
        }
        if self.size.saturating_mul(self.batch) > MAX_REQUEST {
            return Err(Failure::usage("--size times --batch must not be more than 1 GiB"));
        }
        if self.v1 && !matches!(self.work, Work::Pub | Work::Pull) {
            return Err(Failure::usage("--v1 is for bench pub and bench pull"));
        }
        if self.work == Work::Request && (self.topics > 1 || self.batch > 1) {
            return Err(Failure::usage(
                "bench request asks one service, with one payload at a time",
            ));
        }
        if self.work == Work::Pull && self.batch > 1 {
            return Err(Failure::usage("--batch is for publishing; bench pull does not accept it"));
        }
        Ok(())
    }

    pub(super) fn load(&self, topics: &[TopicName], progress: &Progress) -> Load {
        Load {
            pattern: None,
            clients: self.clients,
            topics: topics.iter().map(ToString::to_string).collect(),
            messages: self.messages.unwrap_or(u64::MAX),
            duration: self.duration,
            size: self.size,
            rate: self.rate,
            pipeline: self.pipeline,
            batch: self.batch,
            progress: progress.clone(),
        }
    }

    pub(super) fn topic_names(&self) -> Result<Vec<TopicName>, Failure> {
        let base = match &self.topic {
            Some(topic) => topic.to_string(),
            None => format!("bench-{:08x}", fastrand::u32(..)),
        };
        let name = |text: String| {
            TopicName::new(&text).map_err(|error| Failure::usage(format!("--topic: {error}")))
        };
        match self.topics {
            1 => Ok(vec![name(base)?]),
            many => (0..many).map(|n| name(format!("{base}/{n}"))).collect(),
        }
    }
}

/// The number of connections of a kind. Fails if the option is given to a benchmark without such
/// connections.
fn connections(
    options: &mut Options,
    name: &'static str,
    work: Work,
    default: usize,
) -> Result<usize, Failure> {
    match options.value(name, number(MAX_CONNECTIONS))? {
        Some(_) if default == 0 => {
            Err(Failure::usage(format!("{name} is not an option of bench {}", work.name())))
        }
        asked => Ok(asked.unwrap_or(default)),
    }
}

fn number(most: u64) -> impl Fn(&str) -> Result<usize, String> {
    move |text| match count(text)? {
        number if number <= most => usize::try_from(number).map_err(|_| not_a_number(text)),
        _ => Err(format!("must be a number from 1 to {most}")),
    }
}

fn size(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|size| *size <= MAX_REQUEST).ok_or_else(|| not_a_number(text))
}

fn rate_of(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok();
    rate.filter(|rate| rate.is_finite() && *rate >= MIN_RATE).ok_or_else(|| not_a_number(text))
}

fn not_a_number(text: &str) -> String {
    format!("not a valid number: {text:?}")
}
