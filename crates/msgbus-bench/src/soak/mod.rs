//! Wears msgbusd: every kind of client at once, many of which leave without a word, against bounds
//! that are met all the time. Then all is quiet, and every message is accounted for.
//!
//! The load comes in rounds. After each the books are compared, all topics deleted, and memory and
//! open files compared with what they were. The seed decides what each client does; when it happens is
//! up to the machine, so that a seed makes a fault likely again, and not certain.

mod account;
mod books;
mod claims;
mod cost;
mod disturb;
mod follow;
mod ids;
mod keys;
mod payload;
mod publish;
mod pull;
mod reload;
mod report;
mod show;
mod topics;
mod track;
mod transport;
mod wire;

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
    time::{Instant, sleep},
};

use self::{
    books::{Book, Books},
    cost::Cost,
    follow::Follower,
    keys::Keys,
    payload::{Described, Origin},
    publish::Publisher,
    pull::Puller,
    track::Live,
    wire::{Cut, Place},
};
use crate::{
    certificate::{self, Certificate},
    compare::{
        build,
        servers::{Running, beside},
    },
};

/// How long to soak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Minutes of load. What comes between and after is not in it.
    pub minutes: f64,
    /// What the clients' dice begin with.
    pub seed: u64,
    /// Whether all speak TLS.
    pub tls: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worn {
    /// Tables of what was done and of the books.
    pub report: String,
    /// Whether all books balance.
    pub balances: bool,
}

/// The first round is short: it only shows what memory the server keeps when all is gone.
const FIRST_ROUND: Duration = Duration::from_secs(10);
const ROUND: Duration = Duration::from_secs(60);
const PUBLISHERS: usize = 8;
const PULLERS: usize = 8;
const FOLLOWERS: usize = 32;
/// In the folder of the server.
const KEY_FILE: &str = "keys.toml";

/// What the clients are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Load,
    /// Only those who follow read on.
    Settle,
    Over,
}

/// What all clients share.
struct Soak {
    server: RefCell<Running>,
    place: Place,
    phase: watch::Sender<Phase>,
    books: RefCell<Books>,
    /// Own subscriptions that are there now, by the name that the server has for them.
    live: RefCell<BTreeMap<String, Live>>,
    /// Followers on their way to a subscription.
    connecting: Cell<usize>,
    publishers: Cell<u64>,
    keys: RefCell<Keys>,
    /// The file that the server has them from.
    key_file: PathBuf,
    /// The header of one who may do everything all the time.
    steady: String,
}

impl Soak {
    fn is_loading(&self) -> bool {
        *self.phase.borrow() == Phase::Load
    }

    /// A request of one who may do everything all the time.
    fn request(&self, method: &str, target: &str) -> String {
        format!("{method} {target} HTTP/1.1\r\nHost: soak.localhost\r\n{}\r\n", self.steady)
    }

    /// A publisher that there was not yet.
    fn new_origin(&self) -> Origin {
        self.publishers.set(self.publishers.get() + 1);
        Origin {
            publisher: self.publishers.get(),
            sequence: 0,
            reloads: 0,
            described: Described::default(),
        }
    }

    fn some_cut(&self, rng: &mut Rng) -> Cut {
        let cut = if rng.bool() { Cut::Reset } else { Cut::Close };
        let what = match cut {
            Cut::Reset => "connections reset",
            Cut::Close => "connections just closed",
        };
        self.books.borrow_mut().count(what, 1);
        cut
    }

    /// A connection may break, but the server may not be silent on one.
    fn note_silence(&self, error: &io::Error, what: &str) {
        let is_silence = error.kind() == io::ErrorKind::TimedOut;
        let mut books = self.books.borrow_mut();
        books.check(Book::Answers, !is_silence, || format!("{what} was not answered"));
        books.count("requests that ended without an answer", 1);
    }
}

/// Soaks, and says what was found.
///
/// # Errors
/// When there are no minutes, the server cannot be started or does not answer at rest, or the system
/// does not tell what it costs.
pub fn run(options: &Options) -> anyhow::Result<Worn> {
    let time = Duration::try_from_secs_f64(options.minutes * 60.0).context("so many minutes")?;
    ensure!(!time.is_zero(), "it takes some minutes");
    build()?;
    // Each connection is a file. Where that is not allowed, opening one will say so.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let mut rng = Rng::with_seed(options.seed);
    let keys = Keys::make()?;
    let text = keys.text(&mut rng);
    let certificate = options.tls.then(Certificate::make).transpose()?;
    let running = Running::start("msgbusd", |port, folder| {
        server_command(port, folder, &text, certificate.as_ref())
    })?;
    let tls = certificate.as_ref().map(Certificate::connector).transpose()?;
    let soak = Rc::new(Soak {
        place: Place { address: running.address(), tls },
        key_file: running.folder().join(KEY_FILE),
        server: RefCell::new(running),
        steady: show::bearer(keys.steady_secret()),
        keys: RefCell::new(keys),
        phase: watch::Sender::new(Phase::Over),
        books: RefCell::default(),
        live: RefCell::default(),
        connecting: Cell::default(),
        publishers: Cell::default(),
    });
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let rounds = rounds(&soak, rng, time);
    let costs = LocalSet::new().block_on(&runtime, rounds).with_context(|| {
        format!("seed {}; the server has said: {}", options.seed, soak.server.borrow().log())
    })?;
    report::end_progress();
    let end = soak.server.borrow_mut().stop();
    let mut books = soak.books.borrow_mut();
    books.check(Book::End, end.is_some_and(|status| status.success()), || {
        format!("{end:?}: {}", soak.server.borrow().log())
    });
    Ok(Worn { report: report::text(&books, &costs, options), balances: books.balance() })
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

async fn rounds(soak: &Rc<Soak>, mut rng: Rng, mut left: Duration) -> io::Result<Vec<Cost>> {
    let pid = soak.server.borrow().pid();
    let mut costs = vec![cost::rest(pid, 0).await?];
    let mut length = FIRST_ROUND.min(left / 4);
    while !length.is_zero() {
        round(soak, &mut rng, length, left).await?;
        report::progress(&soak.books.borrow(), "quiet");
        account::clear(soak).await?;
        costs.push(cost::rest(pid, costs[0].files).await?);
        cost::compare(&mut soak.books.borrow_mut(), &costs);
        left = left.saturating_sub(length);
        length = ROUND.min(left);
    }
    Ok(costs)
}

/// Load for so long, then quiet, then the books.
async fn round(soak: &Rc<Soak>, rng: &mut Rng, length: Duration, left: Duration) -> io::Result<()> {
    soak.phase.send_replace(Phase::Load);
    let mut workers = JoinSet::new();
    let mut followers = JoinSet::new();
    for _ in 0..PUBLISHERS {
        workers.spawn_local(Publisher::new(soak, rng.fork()).run());
    }
    for _ in 0..PULLERS {
        workers.spawn_local(Puller::new(soak, rng.fork()).run());
    }
    for _ in 0..FOLLOWERS {
        followers.spawn_local(Follower::new(soak, rng.fork()).run());
    }
    for _ in 0..2 {
        workers.spawn_local(disturb::look(Rc::clone(soak), rng.fork()));
        workers.spawn_local(disturb::misbehave(Rc::clone(soak), rng.fork()));
    }
    workers.spawn_local(disturb::delete(Rc::clone(soak), rng.fork()));
    workers.spawn_local(disturb::crowd(Rc::clone(soak), rng.fork()));
    workers.spawn_local(reload::reload(Rc::clone(soak), rng.fork()));

    let begin = Instant::now();
    while begin.elapsed() < length {
        sleep(Duration::from_millis(500).min(length)).await;
        let left = left.saturating_sub(begin.elapsed()).as_secs();
        report::progress(&soak.books.borrow(), &format!("{left} s left"));
    }
    soak.phase.send_replace(Phase::Settle);
    workers.join_all().await;
    account::settle(soak).await?;
    soak.phase.send_replace(Phase::Over);
    followers.join_all().await;
    Ok(())
}
