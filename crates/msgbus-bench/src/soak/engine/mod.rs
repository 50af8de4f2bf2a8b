//! A soak on an engine: two msgbusd share topics that live in nats-server or redis-server. Clients use both, and all three
//! servers are killed and restarted all the time. Then the load stops, and what the clients know is compared with what
//! the engine itself counts.

mod accounts;
mod caller;
mod chaos;
mod cluster;
mod counts;
mod finish;
mod follow;
mod publish;
mod topics;
mod trail;
mod work;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use tokio::{
    runtime,
    sync::watch,
    task::{JoinSet, LocalSet},
    time::{Instant, timeout},
};

use self::{
    accounts::Accounts,
    cluster::Cluster,
    follow::{Follower, Live},
    publish::Publisher,
    topics::Queue,
    work::Worker,
};
use super::{
    Options, Phase, SoakResult,
    invariants::{Invariant, Invariants},
    payload::Origin,
    raw_client::{self, Endpoint},
    report,
    resource_use::{self, ResourceUse},
    rounds::{self, Round},
};
use crate::engines::EngineKind;

const PUBLISHERS: usize = 6;
const WORKERS: usize = 10;
const FOLLOWERS: usize = 24;
/// Longer than clients need to end when the load does: a publisher repeats a message for a minute.
const TO_LEAVE: Duration = Duration::from_secs(120);
/// Longer than all that is waited for at the end of a round.
const TO_FINISH: Duration = Duration::from_secs(300);

/// The state that all clients share.
struct EngineSoak {
    cluster: Cluster,
    phase: watch::Sender<Phase>,
    invariants: RefCell<Invariants>,
    accounts: RefCell<Accounts>,
    /// The active subscriptions, by their number.
    live: RefCell<BTreeMap<u64, Live>>,
    numbers: Cell<u64>,
    /// The last number before this round, and when the topics of the round before were deleted.
    before: Cell<(u64, Instant)>,
    /// What is waited for.
    waiting: RefCell<String>,
}

impl EngineSoak {
    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    fn is_loading(&self) -> bool {
        self.phase() == Phase::Load
    }

    fn any_endpoint(&self, rng: &mut Rng) -> &Endpoint {
        &self.cluster.endpoints[rng.usize(..self.cluster.endpoints.len())]
    }

    /// The number of a new publisher or subscription.
    fn new_number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    /// Shows what is waited for.
    fn wait_for(&self, what: String) {
        report::progress(&self.invariants.borrow(), &what);
        self.waiting.replace(what);
    }

    /// Waits for something, and says for what if it takes too long.
    async fn within<T>(
        &self,
        limit: Duration,
        what: &str,
        waiting: impl Future<Output = T>,
    ) -> anyhow::Result<T> {
        self.wait_for(what.to_owned());
        let waited = timeout(limit, waiting).await;
        waited.with_context(|| format!("not over after {limit:?}: {}", self.waiting.borrow()))
    }

    /// Everything was deleted. What is published from now on is of a new round.
    fn begin_round(&self) {
        self.before.set((self.numbers.get(), Instant::now()));
    }

    /// Whether a message was published in this round. Others were deleted at its beginning.
    fn is_of_round(&self, origin: Origin) -> bool {
        origin.publisher > self.before.get().0
    }

    /// Whether messages of earlier rounds may be there again.
    fn may_have_revived(&self) -> bool {
        self.cluster.may_have_revived(self.before.get().1)
    }
}

/// Runs a soak on an engine.
pub(super) fn run(
    kind: EngineKind,
    options: &Options,
    time: Duration,
) -> anyhow::Result<SoakResult> {
    let soak = Rc::new(EngineSoak {
        cluster: Cluster::start(kind)?,
        phase: watch::Sender::new(Phase::Over),
        invariants: RefCell::default(),
        accounts: RefCell::default(),
        live: RefCell::default(),
        numbers: Cell::default(),
        before: Cell::new((0, Instant::now())),
        waiting: RefCell::default(),
    });
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let rounds = run_rounds(&soak, Rng::with_seed(options.seed), time);
    let usage = LocalSet::new()
        .block_on(&runtime, rounds)
        .with_context(|| format!("seed {}; the logs: {}", options.seed, soak.cluster.log()))?;
    report::end_progress();
    let unclean = soak.cluster.stop();
    let mut invariants = soak.invariants.borrow_mut();
    invariants.check(Invariant::End, unclean.is_empty(), || format!("{unclean:?}"));
    Ok(SoakResult::new(&invariants, &Invariant::ON_ENGINE, &usage, options))
}

async fn run_rounds(
    soak: &Rc<EngineSoak>,
    mut rng: Rng,
    load: Duration,
) -> anyhow::Result<Vec<ResourceUse>> {
    prepare(soak, &mut rng).await?;
    let mut usage = vec![rest(soak, None).await?];
    let mut rounds = rounds::of(load).peekable();
    while let Some(round) = rounds.next() {
        run_round(soak, &mut rng, round).await?;
        let finishing = Box::pin(finish::finish(soak, &mut rng));
        soak.within(TO_FINISH, "the end of the round", finishing).await??;
        soak.begin_round();
        usage.push(rest(soak, Some(&usage[0])).await?);
        resource_use::compare(&mut soak.invariants.borrow_mut(), &usage);
        if rounds.peek().is_some() {
            prepare(soak, &mut rng).await?;
        }
    }
    Ok(usage)
}

async fn prepare(soak: &Rc<EngineSoak>, rng: &mut Rng) -> anyhow::Result<()> {
    soak.within(TO_FINISH, "the beginning of a round", finish::prepare(soak, rng)).await?
}

/// The resources of all msgbusd together, when they are idle, without what the windows of topics hold. Windows stay for a
/// minute.
async fn rest(soak: &EngineSoak, start: Option<&ResourceUse>) -> anyhow::Result<ResourceUse> {
    publish_everywhere(soak).await?;
    let pids = soak.cluster.pids();
    let files = start.map_or(0, |start| start.files.len() / pids.len());
    let mut all = ResourceUse { memory: 0, files: Vec::new() };
    for (pid, node) in pids.into_iter().zip(&soak.cluster.endpoints) {
        let one = resource_use::rest(pid, files).await?;
        all.memory += one.memory.saturating_sub(reserved(node).await?);
        all.files.extend(one.files);
    }
    Ok(all)
}

/// Publishes from each serving thread of each msgbusd to each engine, because it opens a connection when it does so for the
/// first time. A msgbusd gives its connections to one thread after the other.
async fn publish_everywhere(soak: &EngineSoak) -> anyhow::Result<()> {
    let threads = thread::available_parallelism()?.get();
    for node in &soak.cluster.endpoints {
        for topic in ["everywhere", "short/everywhere"] {
            let head = |method| format!("{method} /{topic} HTTP/1.1\r\nHost: localhost\r\n");
            let put = head("PUT") + "Content-Length: 1\r\n\r\nx";
            for _ in 0..2 * threads {
                let (status, _) = raw_client::send_request(node, put.as_bytes(), true).await?;
                ensure!(status == 202, "{put:?}: {status}");
            }
            raw_client::send_request(node, (head("DELETE") + "\r\n").as_bytes(), true).await?;
        }
    }
    Ok(())
}

/// The bytes that the topics of a msgbusd have reserved: here, those of windows.
async fn reserved(node: &Endpoint) -> anyhow::Result<u64> {
    const METRIC: &str = "msgbus_bus_bytes ";
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (_, body) = raw_client::send_request(node, request, true).await?;
    let mut lines = str::from_utf8(&body)?.lines();
    let bytes = lines.find_map(|line| line.strip_prefix(METRIC));
    Ok(bytes.with_context(|| format!("no {METRIC}in /metrics"))?.parse()?)
}

/// One round: load, then settling.
async fn run_round(soak: &Rc<EngineSoak>, rng: &mut Rng, round: Round) -> anyhow::Result<()> {
    soak.phase.send_replace(Phase::Load);
    let (mut workers, mut followers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..PUBLISHERS {
        workers.spawn_local(Publisher::new(soak, rng.fork()).run());
    }
    for _ in 0..WORKERS {
        let queue = Queue::any(rng);
        workers.spawn_local(Worker::new(soak, rng.fork(), queue).run());
    }
    for _ in 0..FOLLOWERS {
        followers.spawn_local(Follower::new(soak, rng.fork()).run());
    }
    workers.spawn_local(chaos::delete(Rc::clone(soak), rng.fork()));
    workers.spawn_local(chaos::inspect(Rc::clone(soak), rng.fork()));
    let restarts = tokio::task::spawn_local(chaos::restart(Rc::clone(soak), rng.fork()));

    round.load(&soak.phase, &soak.invariants).await;
    soak.within(TO_LEAVE, "the restart of a server", restarts).await???;
    soak.within(TO_LEAVE, "publishers and workers, to leave", workers.join_all()).await?;
    let settling = Box::pin(finish::settle(soak, rng));
    soak.within(TO_FINISH, "followers, to receive all", settling).await??;
    soak.phase.send_replace(Phase::Over);
    soak.within(TO_LEAVE, "followers, to leave", followers.join_all()).await?;
    Ok(())
}
