//! Following topics, with or without publishing to them at the same time.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::pending,
    io,
    rc::Rc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::{
    connection::Connection,
    load::{Load, Target},
    progress::Progress,
    protocol::{Follower, Heard},
    report::{Accounts, Latencies, Meters, Report},
    requests,
    sent::{Sent, Work},
    stamp::{Ledger, Stamp},
};

/// How long it may be quiet before what has not come is called lost.
const QUIET: Duration = Duration::from_secs(2);
/// How often it is looked whether all has come.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long the server may take to let a follower in.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// How many connections are opened at a time.
const OPENED_AT_ONCE: usize = 64;

/// Publishes to topics that are followed, and accounts for every message. Latency is from the time
/// a message was to be sent until a follower has it.
///
/// # Errors
/// When the server cannot be reached or stops answering, or a connection breaks.
pub async fn fan_out(target: &Target, load: &Load, followers: usize) -> io::Result<Report> {
    let mut crowd = Crowd::gather(target, load, followers).await?;
    let heard = Rc::clone(&crowd.heard);
    let sent = Rc::new(Sent::new(load));
    // The operations are what is delivered, not what is published.
    let publishing = Load { progress: Progress::default(), ..load.clone() };
    let clients = requests::connect(target, &publishing).await?;
    let meters = Meters::start(target)?;
    let begin = Instant::now();
    let work = async {
        requests::drive(clients, &publishing, &sent, Work::Publish).await?;
        let topic = |follower| follower % load.topics.len();
        let expected: u64 = (0..followers).map(|i| sent.by_topic[topic(i)].get()).sum();
        let (mut seen, mut since) = (0, Instant::now());
        while heard.received() < expected && since.elapsed() < QUIET {
            sleep(LOOK_EVERY).await;
            if heard.received() > seen {
                (seen, since) = (heard.received(), Instant::now());
            }
        }
        Ok(expected)
    };
    let expected = tokio::select! {
        expected = work => expected,
        error = crowd.ended() => Err(error),
    }?;
    let accounts = Accounts {
        lost: expected.saturating_sub(heard.received()),
        ..heard.accounts(sent.accounts.get())
    };
    let time = heard.last.get().unwrap_or(begin) - begin;
    meters.report(time, accounts.received, accounts, &heard.latencies.borrow())
}

/// Follows topics that somebody else publishes to, until `load.messages` have been received, or
/// `load.duration` is over, or `stop` is ready.
///
/// # Errors
/// When the server cannot be reached, or a connection breaks.
pub async fn follow(
    target: &Target,
    load: &Load,
    followers: usize,
    stop: impl Future<Output = ()>,
) -> io::Result<Report> {
    let mut crowd = Crowd::gather(target, load, followers).await?;
    let heard = Rc::clone(&crowd.heard);
    let meters = Meters::start(target)?;
    let begin = Instant::now();
    let enough = async {
        let is_over = || load.duration.is_some_and(|duration| begin.elapsed() >= duration);
        while heard.received() < load.messages && !is_over() {
            sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = enough => {}
        () = stop => {}
        error = crowd.ended() => return Err(error),
    }
    let accounts = heard.accounts(Accounts::default());
    // Before the first message there was nothing to do.
    let begin = heard.first.get().unwrap_or(begin);
    let time = heard.last.get().unwrap_or(begin) - begin;
    meters.report(time, accounts.received, accounts, &heard.latencies.borrow())
}

/// Connections that follow topics; they end when this is dropped.
pub(crate) struct Crowd {
    tasks: JoinSet<io::Result<Infallible>>,
    heard: Rc<Everything>,
}

impl Crowd {
    /// Opens connections, and returns when all of them follow.
    pub(crate) async fn gather(target: &Target, load: &Load, followers: usize) -> io::Result<Self> {
        let heard = Rc::new(Everything::new(followers, load.progress.clone()));
        let (ready, mut count) = watch::channel(0);
        let ready = Rc::new(ready);
        let mut crowd = Self { tasks: JoinSet::new(), heard };
        for index in 0..followers {
            let topic = target.protocol.encode_topic(&load.topics[index % load.topics.len()]);
            let follower = target.protocol.follower(&topic);
            let connection = Connection::open(&*target.dial).await?;
            let (heard, ready) = (Rc::clone(&crowd.heard), Rc::clone(&ready));
            crowd.tasks.spawn_local(async move {
                listen(connection, follower, index, &heard, &ready).await
            });
            if index % OPENED_AT_ONCE == 0 || index + 1 == followers {
                crowd.wait_for(&mut count, index + 1).await?;
            }
        }
        Ok(crowd)
    }

    async fn wait_for(&mut self, count: &mut watch::Receiver<usize>, all: usize) -> io::Result<()> {
        let ready = count.wait_for(|count| *count >= all);
        tokio::select! {
            ready = timeout(READY_PATIENCE, ready) => match ready {
                Ok(_) => Ok(()),
                Err(_) => Err(io::Error::other("the server lets no more subscribers in")),
            },
            Some(ended) = self.tasks.join_next() => Err(why(ended)),
        }
    }

    /// Waits until one of them follows no longer, and says why.
    pub(crate) async fn ended(&mut self) -> io::Error {
        match self.tasks.join_next().await {
            Some(ended) => why(ended),
            None => pending().await,
        }
    }
}

fn why(ended: Result<io::Result<Infallible>, JoinError>) -> io::Error {
    match ended {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) => error,
        Err(error) => io::Error::other(error),
    }
}

async fn listen(
    mut connection: Connection,
    mut follower: Box<dyn Follower>,
    index: usize,
    heard: &Everything,
    ready: &watch::Sender<usize>,
) -> io::Result<Infallible> {
    let mut out = Vec::new();
    follower.open(&mut out);
    connection.write(&out).await?;
    out = Vec::new();
    loop {
        connection
            .read(|input| {
                let batch = heard.batch(index);
                follower.hear(input, &mut out, &mut |what| match what {
                    Heard::Ready => ready.send_modify(|count| *count += 1),
                    Heard::Message(stamp) => batch.enter(stamp),
                })
            })
            .await?;
        if !out.is_empty() {
            connection.write(&out).await?;
            out.clear();
        }
    }
}

/// What all followers have heard.
#[derive(Debug)]
pub(crate) struct Everything {
    ledgers: Vec<RefCell<Ledger>>,
    received: Cell<u64>,
    latencies: RefCell<Latencies>,
    first: Cell<Option<Instant>>,
    last: Cell<Option<Instant>>,
    progress: Progress,
}

impl Everything {
    fn new(followers: usize, progress: Progress) -> Self {
        Self {
            ledgers: std::iter::repeat_with(RefCell::default).take(followers).collect(),
            received: Cell::new(0),
            latencies: RefCell::new(Latencies::new()),
            first: Cell::new(None),
            last: Cell::new(None),
            progress,
        }
    }

    /// Different messages, by all followers together.
    fn received(&self) -> u64 {
        self.received.get()
    }

    fn batch(&self, follower: usize) -> Batch<'_> {
        Batch { all: self, follower, now: Stamp::now(), count: Cell::new(0) }
    }

    fn accounts(&self, published: Accounts) -> Accounts {
        let mut accounts = published;
        for ledger in &self.ledgers {
            let ledger = ledger.borrow();
            accounts.lost += ledger.gaps();
            accounts.repeated += ledger.repeated;
            accounts.reordered += ledger.reordered;
        }
        accounts.received = self.received();
        accounts
    }
}

/// What came in one read.
struct Batch<'a> {
    all: &'a Everything,
    follower: usize,
    now: u64,
    /// Different messages.
    count: Cell<u64>,
}

impl Batch<'_> {
    fn enter(&self, stamp: Option<Stamp>) {
        let all = self.all;
        let new = match stamp {
            Some(stamp) => {
                let mut ledger = all.ledgers[self.follower].borrow_mut();
                let before = ledger.received;
                ledger.enter(&stamp);
                all.latencies.borrow_mut().record(self.now.saturating_sub(stamp.time));
                ledger.received - before
            }
            // It can be counted, and no more.
            None => 1,
        };
        self.count.set(self.count.get() + new);
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let count = self.count.get();
        if count == 0 {
            return;
        }
        self.all.received.set(self.all.received() + count);
        self.all.progress.add(count);
        let now = Instant::now();
        self.all.last.set(Some(now));
        if self.all.first.get().is_none() {
            self.all.first.set(Some(now));
        }
    }
}
