//! Clients that hop between three servers at each cut, while the engine and the servers are killed and started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use fastrand::Rng;
use futures_util::StreamExt as _;
use msgbus_core::json;
use msgbus_engine_testkit::server::{Kind, Server, free_port};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::{Error, Message, client::IntoClientRequest as _};

use super::{on_each, settings::file};
use crate::{
    binary::{Running, msgbusd},
    support::{Reply, soon},
};

/// How often followers are cut off at least, in all: 20, or what the environment says.
fn cuts() -> usize {
    std::env::var("MSGBUS_ENGINE_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// How often the engine is killed, and how often a server.
fn kills() -> usize {
    (cuts() / 10).max(2)
}

/// How long a test may take. What it waits for in the end may never come, and pings do.
fn limit() -> Duration {
    Duration::from_secs(120 + cuts() as u64)
}

/// A connection is cut after at most so many messages.
const MOST: usize = 11;

/// The last message.
const END: &str = "end";

/// A msgbusd in a process of its own.
struct Node {
    address: SocketAddr,
    process: Option<Running>,
}

impl Node {
    fn new() -> Self {
        Self { address: ([127, 0, 0, 1], free_port()).into(), process: None }
    }

    fn run(&mut self, config: &Path) {
        let bind = self.address.to_string();
        let arguments = ["--bind", &bind, "--config", config.to_str().unwrap()];
        self.process = Some(Running::start(&mut msgbusd(&arguments)));
    }
}

/// The servers, as their clients know them.
struct Nodes {
    addresses: [SocketAddr; 3],
    /// Whether nothing is killed any more.
    is_calm: AtomicBool,
    /// How often the engine was killed.
    engine_kills: AtomicUsize,
}

impl Nodes {
    /// Sends a request to one of them. `None` if it is away, or is killed before it has answered.
    async fn send(&self, node: usize, head: &str, body: &str) -> Option<Reply> {
        let request = async {
            let mut stream = TcpStream::connect(self.addresses[node]).await.ok()?;
            let length = body.len();
            let head = format!(
                "{head}\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(format!("{head}{body}").as_bytes()).await.ok()?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.ok()?;
            let is_whole = answer.windows(4).any(|bytes| bytes == b"\r\n\r\n");
            is_whole.then(|| Reply::parse(&answer))
        };
        soon(request).await
    }

    /// Repeats a request at any of them while it has no answer, or one that tells to try again.
    async fn insist(&self, random: &mut Rng, head: &str, body: &str) -> Reply {
        let accepted = async {
            loop {
                match self.send(random.usize(0..3), head, body).await {
                    Some(reply) if !matches!(reply.status, 503 | 504) => return reply,
                    _ => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        soon(accepted).await
    }

    /// Publishes a message that is there once. Returns its id and its epoch.
    async fn publish(&self, random: &mut Rng, topic: &str, text: &str) -> (u64, u64) {
        let head = format!("PUT /{topic} HTTP/1.1\r\nIdempotency-Key: {text}");
        let reply = self.insist(random, &head, text).await;
        assert_eq!(reply.status, 202, "{reply:?}");
        (reply.number("Msgbus-Id"), reply.number("Msgbus-Epoch"))
    }
}

/// Publishes until nothing is killed any more. Returns the ids.
async fn publish(nodes: &Nodes, name: usize, mut random: Rng) -> Vec<u64> {
    let mut ids = Vec::new();
    while ids.len() < 2 * cuts() || !nodes.is_calm.load(SeqCst) {
        ids.push(nodes.publish(&mut random, "hop", &format!("{name}-{}", ids.len())).await.0);
        sleep(Duration::from_millis(random.u64(0..10))).await;
    }
    ids
}

/// What a follower has received, in order, and how often it was cut off.
type Followed = (Vec<u64>, usize);

/// Follows from one server to the next up to the last message.
async fn follow(nodes: &Nodes, epoch: u64, mut random: Rng) -> Followed {
    let (mut ids, mut cuts) = (Vec::<u64>::new(), 0);
    loop {
        let since = ids.last().map_or("all".to_owned(), |last| format!("{epoch}-{last}"));
        let address = nodes.addresses[random.usize(0..3)];
        let target = format!("ws://{address}/hop?gaps&since={since}");
        let connected = async {
            let stream = TcpStream::connect(address).await?;
            tokio_tungstenite::client_async(target.into_client_request()?, stream).await
        };
        let mut socket = match soon(connected).await {
            Ok((socket, _)) => socket,
            Err(error) => {
                if let Error::Http(response) = error {
                    assert!(matches!(response.status().as_u16(), 503 | 504), "{response:?}");
                }
                sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let mut left = random.usize(1..=MOST);
        while left > 0 {
            match soon(socket.next()).await {
                Some(Ok(Message::Text(text))) if is_about_the_engine(&text) => {}
                Some(Ok(Message::Text(text))) => {
                    // Nothing is gone, so nothing may be announced as missed.
                    let message = json::read_message(text.as_bytes());
                    let message = message.unwrap_or_else(|_| panic!("{text:?} after {ids:?}"));
                    ids.push(message.id());
                    if *message.payload() == END {
                        return (ids, cuts);
                    }
                    left -= 1;
                }
                Some(Ok(Message::Ping(_))) => {}
                Some(Ok(frame)) => panic!("{frame:?}"),
                // The server was killed.
                Some(Err(_)) | None => break,
            }
        }
        cuts += 1;
    }
}

/// Whether a text says that the engine is away, or back.
fn is_about_the_engine(text: &str) -> bool {
    matches!(text.trim_end(), r#"{"event":"stalled"}"# | r#"{"event":"resumed"}"#)
}

/// Kills the engine and a server again and again, and starts them again.
async fn disturb(
    nodes: &Nodes,
    mut engine: Server,
    mut processes: [Node; 3],
    config: &Path,
    mut random: Rng,
) -> (Server, [Node; 3]) {
    for kill in 0..2 * kills() {
        sleep(Duration::from_millis(random.u64(50..300))).await;
        let pause = Duration::from_millis(random.u64(0..150));
        if kill % 2 == 0 {
            nodes.engine_kills.fetch_add(1, SeqCst);
            engine.kill();
            sleep(pause).await;
            engine = spawn_blocking(move || {
                engine.run();
                engine
            })
            .await
            .unwrap();
        } else {
            let node = random.usize(0..3);
            drop(processes[node].process.take());
            sleep(pause).await;
            let config = config.to_owned();
            processes = spawn_blocking(move || {
                processes[node].run(&config);
                processes
            })
            .await
            .unwrap();
        }
    }
    nodes.is_calm.store(true, SeqCst);
    (engine, processes)
}

/// Three servers in front of an engine. Their leases last for two seconds.
fn start(engine: &mut Server) -> (tempfile::NamedTempFile, [Node; 3], Nodes) {
    engine.run();
    // Followers are told with each ping that the engine is away.
    let config = file(&format!(
        "ping-interval = \"1s\"\nengine = \"main\"\n[engines.main]\nurl = \"{}\"\nlease = \"2s\"\n",
        engine.url()
    ));
    let mut processes = [(); 3].map(|()| Node::new());
    for process in &mut processes {
        process.run(config.path());
    }
    let addresses = processes.each_ref().map(|process| process.address);
    let (is_calm, engine_kills) = (AtomicBool::new(false), AtomicUsize::new(0));
    (config, processes, Nodes { addresses, is_calm, engine_kills })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_twice_or_out_of_order_from_one_server_to_the_next() {
    on_each(async |mut engine| {
        let seed = fastrand::u64(..);
        let random = |n: u64| Rng::with_seed(seed.wrapping_add(n));
        let (config, processes, nodes) = start(&mut engine);
        let (first, epoch) = nodes.publish(&mut random(0), "hop", "first").await;
        let publishing = async {
            let (a, b) = tokio::join!(publish(&nodes, 0, random(1)), publish(&nodes, 1, random(2)));
            let (last, _) = nodes.publish(&mut random(3), "hop", END).await;
            [a, b, vec![first, last]].concat()
        };
        let following = async {
            let follow = |n| follow(&nodes, epoch, random(n));
            tokio::join!(follow(4), follow(5), follow(6))
        };
        let disturbing = disturb(&nodes, engine, processes, config.path(), random(7));
        let mut all = Box::pin(async { tokio::join!(publishing, following, disturbing) });
        let Ok((acked, followed, _running)) = timeout(limit(), &mut all).await else {
            let topic = nodes.send(0, "GET /-/topics/hop HTTP/1.1", "").await;
            panic!("followers wait: {topic:?}; seed {seed}");
        };
        let expected: BTreeSet<u64> = acked.iter().copied().collect();
        assert_eq!(expected.len(), acked.len(), "each has an id of its own; seed {seed}");
        let mut all_cuts = 0;
        for (ids, cuts) in [followed.0, followed.1, followed.2] {
            assert!(ids.is_sorted_by(|a, b| a < b), "in order, once: {ids:?}; seed {seed}");
            assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), expected, "seed {seed}");
            all_cuts += cuts;
        }
        assert!(all_cuts >= cuts(), "{all_cuts} cuts; seed {seed}");
    })
    .await;
}

/// What workers know of jobs.
#[derive(Default)]
struct Jobs {
    /// Whether all have been published.
    is_complete: bool,
    /// Those that somebody was given.
    seen: BTreeSet<String>,
    /// By id: when the last lease ends, and how often the engine had been killed when it was given. Leases that were
    /// settled, or may have been, are not here.
    live: BTreeMap<u64, (DateTime<Utc>, usize)>,
}

/// Leases jobs at changing servers and acknowledges them, until nothing is left.
async fn work(nodes: &Nodes, kind: Kind, jobs: &Mutex<Jobs>, mut random: Rng) {
    let target = "GET /jobs?group=workers&raw&lease=2s&wait=500ms HTTP/1.1";
    loop {
        let kills = nodes.engine_kills.load(SeqCst);
        let Some(reply) = nodes.send(random.usize(0..3), target, "").await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        match reply.status {
            200 => {}
            204 if is_done(nodes, jobs, &mut random).await => return,
            204 | 503 | 504 => {
                sleep(Duration::from_millis(20)).await;
                continue;
            }
            _ => panic!("{reply:?}"),
        }
        let (id, now) = (reply.number("Msgbus-Id"), Utc::now());
        let expires = reply.header("Msgbus-Lease-Expires").unwrap().parse().unwrap();
        // The answer may be so late that somebody else has the job by now.
        if expires <= now {
            continue;
        }
        {
            let mut jobs = jobs.lock().unwrap();
            jobs.seen.insert(reply.text().to_owned());
            if let Some((end, known)) = jobs.live.insert(id, (expires, kills)) {
                // NATS gives up leases when it is killed.
                let keeps_leases = kind == Kind::Redis || known == nodes.engine_kills.load(SeqCst);
                let is_over = end <= now + Duration::from_millis(10);
                assert!(is_over || !keeps_leases, "{id} is leased until {end}, and again");
            }
        }
        // Some are forgotten.
        if random.u8(0..10) > 0 {
            sleep(Duration::from_millis(random.u64(0..10))).await;
            jobs.lock().unwrap().live.remove(&id);
            let ack = format!("POST /-/ack/{} HTTP/1.1", reply.header("Msgbus-Lease").unwrap());
            let acked = nodes.insist(&mut random, &ack, "").await;
            assert!(matches!(acked.status, 204 | 410), "{acked:?}");
        }
    }
}

/// Whether every job is done.
async fn is_done(nodes: &Nodes, jobs: &Mutex<Jobs>, random: &mut Rng) -> bool {
    if !jobs.lock().unwrap().is_complete {
        return false;
    }
    let group = nodes.insist(random, "GET /-/groups/workers/jobs HTTP/1.1", "").await;
    let group = (group.status == 200).then(|| group.json());
    group.is_some_and(|group| group["pending"] == 0 && group["unacked"] == 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_is_done_and_no_two_workers_hold_it_at_a_time() {
    on_each(async |mut engine| {
        let seed = fastrand::u64(..);
        let random = |n: u64| Rng::with_seed(seed.wrapping_add(n));
        let (kind, (config, processes, nodes)) = (engine.kind(), start(&mut engine));
        let jobs = Mutex::new(Jobs::default());
        let publishing = async {
            let (mut random, mut published) = (random(1), BTreeSet::new());
            while published.len() < 2 * cuts() || !nodes.is_calm.load(SeqCst) {
                let text = published.len().to_string();
                nodes.publish(&mut random, "jobs", &text).await;
                published.insert(text);
                sleep(Duration::from_millis(random.u64(0..10))).await;
            }
            jobs.lock().unwrap().is_complete = true;
            published
        };
        let working = async {
            let work = |n| work(&nodes, kind, &jobs, random(n));
            tokio::join!(work(2), work(3), work(4), work(5))
        };
        let disturbing = disturb(&nodes, engine, processes, config.path(), random(6));
        let mut all = Box::pin(async { tokio::join!(publishing, working, disturbing) });
        let Ok((published, _, _running)) = timeout(limit(), &mut all).await else {
            let group = nodes.send(0, "GET /-/groups/workers/jobs HTTP/1.1", "").await;
            panic!("jobs are left: {group:?}; seed {seed}");
        };
        assert_eq!(jobs.lock().unwrap().seen, published, "seed {seed}");
    })
    .await;
}
