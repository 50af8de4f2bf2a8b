//! `msgbus bench`: measuring a server. The work is done by `msgbus_load`; here it is chosen, and its
//! results are shown.

mod show;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    net::SocketAddr,
    rc::Rc,
    str::FromStr,
    time::Duration,
};

use msgbus_client::{Client, TopicName};
use msgbus_load::{Http, Load, Progress, Server, Target};
use serde::Serialize;
use tokio::{net::lookup_host, runtime, select, task::LocalSet, time::timeout};

use crate::{
    args::{Options, count, duration},
    failure::{Exit, Failure},
    output::{note, print},
    signals::Stop,
};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Work {
    Pub,
    Sub,
    Pull,
    Fanout,
    Idle,
    Latency,
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pub" => Ok(Self::Pub),
            "sub" => Ok(Self::Sub),
            "pull" => Ok(Self::Pull),
            "fanout" => Ok(Self::Fanout),
            "idle" => Ok(Self::Idle),
            "latency" => Ok(Self::Latency),
            _ => Err(format!("bench knows pub, sub, pull, fanout, idle and latency, not {text:?}")),
        }
    }
}

/// How the result is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    Table,
    Json,
    Csv,
}

#[derive(Debug)]
pub(crate) struct Bench {
    work: Work,
    client: Client,
    /// `None` for topics of its own, which are deleted at the end.
    topic: Option<TopicName>,
    topics: usize,
    clients: usize,
    subscribers: usize,
    messages: Option<u64>,
    size: usize,
    rate: Option<f64>,
    duration: Option<Duration>,
    pipeline: usize,
    batch: usize,
    raw: bool,
    pid: Option<u32>,
    show: Show,
    progress: bool,
}

/// More would be a mistake: each is a file and a task.
const MOST_CONNECTIONS: u64 = 60_000;
const MOST_TOPICS: u64 = 1_000_000;
/// The most in a request, in bytes.
const LARGEST: usize = 1 << 30;
/// Messages in a second. A smaller one would take longer than clocks reach.
const LEAST_RATE: f64 = 0.001;
/// How long the server may take to delete a topic at the end.
const DELETE_PATIENCE: Duration = Duration::from_secs(5);
/// What a topic holds where it is not configured otherwise.
const TOPIC_HOLDS: u64 = 65_536;

impl Bench {
    pub(crate) fn parse(options: &mut Options, work: Option<OsString>) -> Result<Self, Failure> {
        let work = work.ok_or_else(|| Failure::usage("measure what: see msgbus bench --help"))?;
        let work: Work = work.to_string_lossy().parse().map_err(Failure::usage)?;
        let topics = options.value("--topics", number(MOST_TOPICS))?.unwrap_or(1);
        let (clients, subscribers, messages, rate, time) = match work {
            Work::Pub => (16, 0, Some(100_000), None, None),
            Work::Sub => (0, 1, None, None, None),
            Work::Pull => (16, 0, Some(50_000), None, None),
            Work::Fanout => (1, 100, Some(10_000), None, None),
            Work::Idle => (0, 1000, None, None, Some(Duration::from_secs(1))),
            Work::Latency => (1, 1, None, Some(1000.0), Some(Duration::from_secs(5))),
        };
        let asked = options.value("--msgs", count)?;
        let duration = options.value("--duration", duration)?;
        // A time alone is meant to be the only end.
        let messages = asked.or(messages.filter(|_| duration.is_none() || work == Work::Pull));
        let bench = Self {
            work,
            topic: options.value("--topic", |name| {
                TopicName::new(name.trim_matches('/')).map_err(|error| error.to_string())
            })?,
            topics,
            clients: options.value("--clients", number(MOST_CONNECTIONS))?.unwrap_or(clients),
            subscribers: options.value("--subs", number(MOST_CONNECTIONS))?.unwrap_or(subscribers),
            messages,
            size: options.value("--size", size)?.unwrap_or(128),
            rate: options.value("--rate", rate_of)?.or(rate),
            duration: duration.or(time.filter(|_| asked.is_none())),
            pipeline: options.value("--pipeline", number(10_000))?.unwrap_or(1),
            batch: options.value("--batch", number(100_000))?.unwrap_or(1),
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
        if self.work == Work::Pull && self.messages.is_some_and(|all| all / topics > TOPIC_HOLDS) {
            return Err(Failure::usage(format!(
                "a topic holds {TOPIC_HOLDS} messages: spread them with --topics"
            )));
        }
        if self.work == Work::Pull && self.messages.is_some_and(|all| all < topics) {
            return Err(Failure::usage("--topics is more than --msgs: some would have nothing"));
        }
        if self.size.saturating_mul(self.batch) > LARGEST {
            return Err(Failure::usage("--size times --batch is more than 1 GiB in a request"));
        }
        if self.work == Work::Pull && self.batch > 1 {
            return Err(Failure::usage("--batch publishes; bench pull has no use for it"));
        }
        Ok(())
    }

    fn load(&self, topics: &[TopicName], progress: &Progress) -> Load {
        Load {
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

    fn topic_names(&self) -> Result<Vec<TopicName>, Failure> {
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

fn number(most: u64) -> impl Fn(&str) -> Result<usize, String> {
    move |text| match count(text)? {
        number if number <= most => usize::try_from(number).map_err(|_| not_a_number(text)),
        _ => Err(format!("{most} at most")),
    }
}

fn size(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|size| *size <= LARGEST).ok_or_else(|| not_a_number(text))
}

fn rate_of(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok();
    rate.filter(|rate| rate.is_finite() && *rate >= LEAST_RATE).ok_or_else(|| not_a_number(text))
}

fn not_a_number(text: &str) -> String {
    format!("not a number that fits: {text:?}")
}

pub(crate) fn run(bench: Bench) -> Result<Exit, Failure> {
    // One thread: what it does not use is the server's.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("cannot start: {error}")))?;
    // Each connection is a file. Where that is not allowed, opening one will say so.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    LocalSet::new().block_on(&runtime, measure(bench))
}

async fn measure(bench: Bench) -> Result<Exit, Failure> {
    let mut stop = Stop::listen().map_err(|error| Failure::Other(error.to_string()))?;
    let mut ended = stop.clone();
    // Says clearly where there is no server, or another one.
    bench.client.topics("-").await?;
    let target = target(&bench).await?;
    let topics = bench.topic_names()?;
    let progress = Progress::default();
    let load = bench.load(&topics, &progress);
    let shown = bench.progress && io::stderr().is_terminal() && bench.work != Work::Idle;
    let work = async {
        match bench.work {
            Work::Pub => msgbus_load::publish(&target, &load).await,
            Work::Pull => msgbus_load::pull(&target, &load).await,
            Work::Fanout | Work::Latency => {
                msgbus_load::fan_out(&target, &load, bench.subscribers).await
            }
            Work::Idle => msgbus_load::idle(&target, &load, bench.subscribers).await,
            Work::Sub => {
                msgbus_load::follow(&target, &load, bench.subscribers, stop.requested()).await
            }
        }
    };
    let report = select! {
        report = work => Some(report),
        () = show::watch(&bench, &progress), if shown => None,
        () = ended.requested(), if bench.work != Work::Sub => None,
    };
    if shown {
        show::clear_line();
    }
    if bench.topic.is_none()
        && let Err(error) = remove(&bench.client, &topics).await
    {
        note(&format!("topics of its own may be left at the server: {error}"));
    }
    let Some(report) = report else { return Err(Failure::Other("ended by a signal".to_owned())) };
    let report = report.map_err(|error| Failure::Other(format!("bench: {error}")))?;
    print(&match bench.show {
        Show::Table => show::table(&bench, &report),
        Show::Json => show::json(&bench, &report),
        Show::Csv => show::csv(&bench, &report),
    })?;
    let accounts = report.accounts;
    if accounts.refused > 0 {
        note(&format!("the server refused {} requests", accounts.refused));
    }
    let is_whole = accounts.lost + accounts.repeated + accounts.reordered == 0;
    Ok(if is_whole { Exit::Done } else { Exit::Missed })
}

async fn target(bench: &Bench) -> Result<Target, Failure> {
    let server = bench.client.server();
    let (host, port) = server.address();
    let unknown = |error: Option<io::Error>| {
        let why = error.map_or(String::new(), |error| format!(": {error}"));
        Failure::Other(format!("cannot find {host}{why}"))
    };
    let mut addresses = lookup_host((host, port)).await.map_err(|error| unknown(Some(error)))?;
    let address: SocketAddr = reachable(&mut addresses).await.ok_or_else(|| unknown(None))?;
    let server_process = bench.pid.map(|pid| Server::new([pid]));
    if let (Some(process), Some(pid)) = (&server_process, bench.pid) {
        process
            .processor_time()
            .map_err(|error| Failure::usage(format!("--pid: cannot look at {pid}: {error}")))?;
    }
    let prefix = server.prefix().to_owned();
    let http = Http { host: format!("{host}:{port}"), prefix, raw: bench.raw };
    Ok(Target { address, protocol: Rc::new(http), server: server_process })
}

/// Of the addresses of a name, the first that answers: localhost has two, and one may be nobody's.
async fn reachable(addresses: &mut impl Iterator<Item = SocketAddr>) -> Option<SocketAddr> {
    for address in addresses {
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            return Some(address);
        }
    }
    None
}

async fn remove(client: &Client, topics: &[TopicName]) -> Result<(), Failure> {
    for topic in topics {
        let deleted = timeout(DELETE_PATIENCE, client.delete(topic)).await;
        deleted.map_err(|_| Failure::Other("no answer".to_owned()))??;
    }
    Ok(())
}
