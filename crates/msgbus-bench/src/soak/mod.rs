//! Stress-tests msgbusd: clients of every kind at once, many of which disconnect abruptly, against low
//! limits that are reached all the time. Then the load stops, and every message is accounted for.
//!
//! The load comes in rounds. After each round the counters are compared, all topics are deleted, and
//! memory and open files are compared with the start. The seed determines what each client does, but
//! not when, so the same seed makes a fault likely to recur, but not certain.

mod acl_model;
mod chaos;
mod credentials;
mod door_client;
mod doors;
mod drain;
mod engine;
mod follow;
mod groups;
mod ids;
mod invariants;
mod keys;
mod payload;
mod publish;
mod pull;
mod raw_client;
mod reconcile;
mod reload;
mod report;
mod requesters;
mod resource_use;
mod responders;
mod rounds;
mod services;
mod settle;
mod socket_queues;
mod subscription_model;
mod topics;
mod transport;
mod workers;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use tokio::{
    runtime,
    sync::watch,
    task::{JoinSet, LocalSet},
};

use self::{
    doors::Doors,
    follow::Follower,
    groups::Held,
    invariants::{Invariant, Invariants},
    keys::Keys,
    payload::{Described, Origin},
    publish::Publisher,
    pull::Puller,
    raw_client::{Cut, Endpoint},
    requesters::Requester,
    resource_use::ResourceUse,
    responders::Responder,
    rounds::Round,
    subscription_model::LiveSubscription,
    workers::Worker,
};
use crate::{
    certificate::{self, Certificate},
    engines::EngineKind,
    running::{Running, beside, build, free_addresses},
};

/// The options of a soak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Minutes of load. The time between and after the rounds is not included.
    pub minutes: f64,
    /// The seed of all random decisions of the clients.
    pub seed: u64,
    /// Whether all clients use TLS.
    pub tls: bool,
    /// Whether topics are durable and the server is killed after each round.
    pub data: bool,
    /// Where topics live, if not in the server. Servers and engine are restarted again and again then.
    pub engine: Option<EngineKind>,
}

/// The result of a soak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoakResult {
    /// Tables of the actions and of the invariants.
    pub report: String,
    /// Whether all invariants hold.
    pub passed: bool,
}

impl SoakResult {
    fn new(
        invariants: &Invariants,
        of: &[Invariant],
        usage: &[ResourceUse],
        options: &Options,
    ) -> Self {
        let report = report::text(invariants, of, usage, options);
        Self { report, passed: invariants.all_hold(of) }
    }
}

const PUBLISHERS: usize = 8;
const PULLERS: usize = 8;
const WORKERS: usize = 16;
const FOLLOWERS: usize = 28;
const REQUESTERS: usize = 8;
const RESPONDERS: usize = 6;
/// The requesters and the responders among the clients of other systems.
const OLD_REQUESTERS: usize = 6;
const OLD_RESPONDERS: usize = 4;
/// The key file in the folder of the server.
const KEY_FILE: &str = "keys.toml";

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Load,
    /// Only subscribers keep pace.
    Settle,
    Over,
}

/// The state that all clients share.
struct Soak {
    server: RefCell<Running>,
    endpoint: Endpoint,
    doors: Doors,
    phase: watch::Sender<Phase>,
    invariants: RefCell<Invariants>,
    /// The active subscriptions of the soak, by the address of the client.
    live: RefCell<BTreeMap<String, LiveSubscription>>,
    /// The leases that workers hold when the load is over.
    held: RefCell<Vec<Held>>,
    /// The number of followers that are connecting.
    connecting: Cell<usize>,
    publishers: Cell<u64>,
    keys: RefCell<Keys>,
    /// The key file of the server.
    key_file: PathBuf,
    /// Whether topics are durable and the server is killed after each round.
    is_durable: bool,
    /// The `Authorization` header with a key that permanently allows everything.
    admin_header: String,
}

impl Soak {
    fn is_loading(&self) -> bool {
        *self.phase.borrow() == Phase::Load
    }

    /// A request with the key that allows everything.
    fn request(&self, method: &str, target: &str) -> String {
        format!("{method} {target} HTTP/1.1\r\nHost: soak.localhost\r\n{}\r\n", self.admin_header)
    }

    /// A POST request with the key that allows everything.
    fn post(&self, target: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        format!(
            "POST {target} HTTP/1.1\r\nHost: soak.localhost\r\n{}Content-Length: {length}\r\n\r\n{body}",
            self.admin_header
        )
        .into_bytes()
    }

    /// A new publisher.
    fn new_origin(&self) -> Origin {
        self.publishers.set(self.publishers.get() + 1);
        Origin {
            publisher: self.publishers.get(),
            sequence: 0,
            reloads: 0,
            described: Described::default(),
        }
    }

    fn random_cut(&self, rng: &mut Rng) -> Cut {
        let cut = if rng.bool() { Cut::Reset } else { Cut::Close };
        let what = match cut {
            Cut::Reset => "connections reset",
            Cut::Close => "connections closed abruptly",
        };
        self.invariants.borrow_mut().count(what, 1);
        cut
    }

    /// Records a response that violates the protocol.
    fn record_fault(&self, what: &str) {
        self.invariants.borrow_mut().check(Invariant::Responses, false, || what.to_owned());
    }

    /// Records a failed request. A connection may break, but a timeout is a violation.
    fn record_error(&self, error: &io::Error, what: &str) {
        let is_silence = error.kind() == io::ErrorKind::TimedOut;
        let mut invariants = self.invariants.borrow_mut();
        invariants.check(Invariant::Responses, !is_silence, || format!("{what} timed out"));
        invariants.count("requests without a response", 1);
    }
}

/// Runs a soak.
///
/// # Errors
/// `minutes` is not positive, the server cannot be started or does not respond when idle, or the system
/// does not report its resource use.
pub fn run(options: &Options) -> anyhow::Result<SoakResult> {
    let time = Duration::try_from_secs_f64(options.minutes * 60.0).context("invalid --minutes")?;
    ensure!(!time.is_zero(), "--minutes must be more than 0");
    let is_plain = !options.tls && !options.data;
    ensure!(
        options.engine.is_none() || is_plain,
        "--engine goes neither with --tls nor with --data"
    );
    build()?;
    // Each connection needs a file descriptor. If the limit cannot be raised, connecting fails with an error.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    if let Some(kind) = options.engine {
        return engine::run(kind, options, time);
    }
    let mut rng = Rng::with_seed(options.seed);
    let keys = Keys::make()?;
    let text = keys.text(&mut rng);
    let certificate = options.tls.then(Certificate::make).transpose()?;
    let doors = free_addresses()?;
    let running = Running::start("msgbusd", |port, folder| {
        let mut command = server_command(port, folder, &text, certificate.as_ref())?;
        command.args(Doors::flags(doors));
        if options.data {
            command.arg("--data").arg(folder.join("data"));
        }
        Ok(command)
    })?;
    let tls = certificate.as_ref().map(Certificate::connector).transpose()?;
    let endpoint = Endpoint { address: running.address(), tls };
    let soak = Rc::new(Soak {
        doors: Doors::at(doors, &endpoint),
        endpoint,
        key_file: running.folder().join(KEY_FILE),
        is_durable: options.data,
        server: RefCell::new(running),
        admin_header: credentials::bearer(keys.permanent_secret()),
        keys: RefCell::new(keys),
        phase: watch::Sender::new(Phase::Over),
        invariants: RefCell::default(),
        live: RefCell::default(),
        held: RefCell::default(),
        connecting: Cell::default(),
        publishers: Cell::default(),
    });
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let rounds = run_rounds(&soak, rng, time);
    let usage = LocalSet::new().block_on(&runtime, rounds).with_context(|| {
        format!("seed {}; the server's log: {}", options.seed, soak.server.borrow().log())
    })?;
    report::end_progress();
    let end = soak.server.borrow_mut().stop();
    let mut invariants = soak.invariants.borrow_mut();
    invariants.check(Invariant::End, end.is_some_and(|status| status.success()), || {
        format!("{end:?}: {}", soak.server.borrow().log())
    });
    Ok(SoakResult::new(&invariants, &Invariant::ALL, &usage, options))
}

fn server_command(
    port: u16,
    folder: &Path,
    keys: &str,
    certificate: Option<&Certificate>,
) -> anyhow::Result<Command> {
    let config = folder.join("soak.toml");
    let key_file = folder.join(KEY_FILE);
    fs::write(&config, topics::CONFIG)?;
    fs::write(&key_file, keys)?;
    let mut command = Command::new(beside("msgbusd")?);
    command.arg("--bind").arg(format!("127.0.0.1:{port}")).arg("--config").arg(config);
    command.arg("--keys").arg(key_file);
    if let Some(certificate) = certificate {
        command.args(certificate::FLAGS).current_dir(folder);
        certificate.write(folder)?;
    }
    Ok(command)
}

async fn run_rounds(soak: &Rc<Soak>, mut rng: Rng, load: Duration) -> io::Result<Vec<ResourceUse>> {
    let pid = || soak.server.borrow().pid();
    let mut usage = vec![resource_use::rest(pid(), 0).await?];
    for round in rounds::of(load) {
        drain::create_groups(soak).await?;
        run_round(soak, &mut rng, round).await?;
        drain::hold(soak).await?;
        if soak.is_durable {
            kill(soak, &mut rng).await?;
        }
        report::progress(&soak.invariants.borrow(), "settling");
        settle::settle_held(soak).await?;
        drain::drain(soak, &mut rng).await?;
        reconcile::finish(soak).await?;
        reconcile::clear(soak).await?;
        usage.push(resource_use::rest(pid(), usage[0].files.len()).await?);
        resource_use::compare(&mut soak.invariants.borrow_mut(), &usage);
    }
    Ok(usage)
}

/// Kills the server, starts it again, and compares what it still knows.
async fn kill(soak: &Soak, rng: &mut Rng) -> io::Result<()> {
    // The last reload may have left an invalid file.
    fs::write(&soak.key_file, soak.keys.borrow().text(rng))?;
    soak.server.borrow_mut().kill_and_start().map_err(io::Error::other)?;
    {
        let mut invariants = soak.invariants.borrow_mut();
        invariants.count("kills of the server", 1);
        invariants.services.forget_counts();
        invariants.groups.record_kill();
    }
    reconcile::after_restart(soak).await
}

/// One round: load, then settling.
async fn run_round(soak: &Rc<Soak>, rng: &mut Rng, round: Round) -> io::Result<()> {
    soak.phase.send_replace(Phase::Load);
    let mut workers = JoinSet::new();
    let mut followers = JoinSet::new();
    for _ in 0..PUBLISHERS {
        workers.spawn_local(Publisher::new(soak, rng.fork()).run());
    }
    for _ in 0..PULLERS {
        workers.spawn_local(Puller::new(soak, rng.fork()).run());
    }
    for _ in 0..WORKERS {
        workers.spawn_local(Worker::new(soak, rng.fork()).run());
    }
    for _ in 0..REQUESTERS {
        workers.spawn_local(Requester::new(soak, rng.fork()).run());
    }
    for _ in 0..RESPONDERS {
        workers.spawn_local(Responder::new(soak, rng.fork()).run());
    }
    for _ in 0..OLD_REQUESTERS {
        workers.spawn_local(doors::ask(Rc::clone(soak), rng.fork()));
    }
    for _ in 0..OLD_RESPONDERS {
        workers.spawn_local(doors::serve(Rc::clone(soak), rng.fork()));
    }
    for _ in 0..FOLLOWERS {
        followers.spawn_local(Follower::new(soak, rng.fork()).run());
    }
    for _ in 0..2 {
        workers.spawn_local(chaos::inspect(Rc::clone(soak), rng.fork()));
        workers.spawn_local(chaos::send_bad_requests(Rc::clone(soak), rng.fork()));
    }
    workers.spawn_local(chaos::delete(Rc::clone(soak), rng.fork()));
    workers.spawn_local(chaos::move_groups(Rc::clone(soak), rng.fork()));
    workers.spawn_local(chaos::crowd(Rc::clone(soak), rng.fork()));
    workers.spawn_local(reload::reload(Rc::clone(soak), rng.fork()));

    round.load(&soak.phase, &soak.invariants).await;
    workers.join_all().await;
    services::settle(soak).await?;
    reconcile::settle(soak).await?;
    soak.phase.send_replace(Phase::Over);
    followers.join_all().await;
    Ok(())
}
