//! Subscribing to topics, with or without publishing to them at the same time.

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
    protocol::{Follower, Received},
    report::{Accounts, Latencies, Meters, Report},
    requests,
    run_state::{RunState, Work},
    trace::{Tally, Trace},
};

/// Messages count as lost if nothing is received for this long.
const QUIET_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval at which the number of received messages is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The time limit for a subscription to become active.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How many connections are opened before waiting for their subscriptions.
const PARALLEL_CONNECTS: usize = 64;

/// Publishes to topics with subscribers, and accounts for every message. Latency is the time from
/// when a message was due until a follower has received it.
///
/// # Errors
/// The server cannot be reached or stops responding, or a connection breaks.
pub async fn fan_out(target: &Target, load: &Load, followers: usize) -> io::Result<Report> {
    let mut group = Group::connect(target, load, followers).await?;
    let deliveries = Rc::clone(&group.deliveries);
    let state = Rc::new(RunState::new(load));
    // The progress counts deliveries, not publishes.
    let publishing = Load { progress: Progress::default(), ..load.clone() };
    let clients = requests::connect(target, &publishing).await?;
    let meters = Meters::start(target)?;
    let begin = Instant::now();
    let work = async {
        requests::drive(clients, &publishing, &state, Work::Publish).await?;
        let expected: u64 = match load.pattern {
            Some(_) => state.by_topic.iter().map(Cell::get).sum::<u64>() * followers as u64,
            None => (0..followers).map(|i| state.by_topic[i % load.topics.len()].get()).sum(),
        };
        deliveries.wait_for(expected).await;
        Ok(expected)
    };
    let expected = tokio::select! {
        expected = work => expected,
        error = group.ended() => Err(error),
    }?;
    let accounts = Accounts {
        lost: expected.saturating_sub(deliveries.received()),
        ..deliveries.accounts(state.accounts.get())
    };
    let time = deliveries.last.get().unwrap_or(begin) - begin;
    meters.report(time, accounts.received, accounts, &deliveries.latencies.borrow())
}

/// Publishes all messages first, and then measures how fast followers receive them. The protocol must be one whose
/// followers begin with the oldest message, such as [`Replaying`](crate::Replaying).
///
/// # Errors
/// See [`fan_out`].
pub async fn replay(target: &Target, load: &Load, followers: usize) -> io::Result<Report> {
    let filled = requests::fill(target, load).await?;
    let expected: u64 = (0..followers).map(|i| filled[i % filled.len()]).sum();
    let meters = Meters::start(target)?;
    let begin = Instant::now();
    let mut group = Group::connect(target, load, followers).await?;
    let deliveries = Rc::clone(&group.deliveries);
    tokio::select! {
        () = deliveries.wait_for(expected) => {}
        error = group.ended() => return Err(error),
    }
    let mut accounts = deliveries.accounts(Accounts::default());
    accounts.lost = expected.saturating_sub(accounts.received);
    let time = deliveries.last.get().unwrap_or(begin) - begin;
    // The latencies would say how long ago the messages were published.
    meters.report(time, accounts.received, accounts, &Latencies::new())
}

/// Subscribes to topics that another process publishes to, until `load.messages` have been received,
/// `load.duration` is over, or `stop` is ready.
///
/// # Errors
/// The server cannot be reached, or a connection breaks.
pub async fn follow(
    target: &Target,
    load: &Load,
    followers: usize,
    stop: impl Future<Output = ()>,
) -> io::Result<Report> {
    let mut group = Group::connect(target, load, followers).await?;
    let deliveries = Rc::clone(&group.deliveries);
    let meters = Meters::start(target)?;
    let begin = Instant::now();
    let enough = async {
        let is_over = || load.duration.is_some_and(|duration| begin.elapsed() >= duration);
        while deliveries.received() < load.messages && !is_over() {
            sleep(POLL_INTERVAL).await;
        }
    };
    tokio::select! {
        () = enough => {}
        () = stop => {}
        error = group.ended() => return Err(error),
    }
    let accounts = deliveries.accounts(Accounts::default());
    // The measurement starts with the first message.
    let begin = deliveries.first.get().unwrap_or(begin);
    let time = deliveries.last.get().unwrap_or(begin) - begin;
    meters.report(time, accounts.received, accounts, &deliveries.latencies.borrow())
}

/// Subscriber connections. Dropping this closes them.
pub(crate) struct Group {
    tasks: JoinSet<io::Result<Infallible>>,
    deliveries: Rc<SharedTally>,
}

impl Group {
    /// Opens connections, and returns when all subscriptions are active.
    pub(crate) async fn connect(
        target: &Target,
        load: &Load,
        followers: usize,
    ) -> io::Result<Self> {
        let deliveries = Rc::new(SharedTally::new(followers, load.progress.clone()));
        let (ready, mut count) = watch::channel(0);
        let ready = Rc::new(ready);
        let mut group = Self { tasks: JoinSet::new(), deliveries };
        for index in 0..followers {
            let topic = load.pattern.as_ref().unwrap_or(&load.topics[index % load.topics.len()]);
            let topic = target.protocol.encode_topic(topic);
            let follower = target.protocol.follower(&topic);
            let connection = Connection::open(&*target.connector).await?;
            let (deliveries, ready) = (Rc::clone(&group.deliveries), Rc::clone(&ready));
            group.tasks.spawn_local(async move {
                receive(connection, follower, index, &deliveries, &ready).await
            });
            if index % PARALLEL_CONNECTS == 0 || index + 1 == followers {
                group.wait_for(&mut count, index + 1).await?;
            }
        }
        Ok(group)
    }

    async fn wait_for(&mut self, count: &mut watch::Receiver<usize>, all: usize) -> io::Result<()> {
        let ready = count.wait_for(|count| *count >= all);
        tokio::select! {
            ready = timeout(READY_TIMEOUT, ready) => match ready {
                Ok(_) => Ok(()),
                Err(_) => Err(io::Error::other("the server accepts no more subscribers")),
            },
            Some(ended) = self.tasks.join_next() => Err(end_error(ended)),
        }
    }

    /// Waits until one of the subscriptions ends, and returns the reason.
    pub(crate) async fn ended(&mut self) -> io::Error {
        match self.tasks.join_next().await {
            Some(ended) => end_error(ended),
            None => pending().await,
        }
    }
}

fn end_error(ended: Result<io::Result<Infallible>, JoinError>) -> io::Error {
    match ended {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) => error,
        Err(error) => io::Error::other(error),
    }
}

async fn receive(
    mut connection: Connection,
    mut follower: Box<dyn Follower>,
    index: usize,
    deliveries: &SharedTally,
    ready: &watch::Sender<usize>,
) -> io::Result<Infallible> {
    let mut out = Vec::new();
    follower.open(&mut out);
    connection.write(&out).await?;
    out = Vec::new();
    loop {
        connection
            .read(|input| {
                let batch = deliveries.batch(index);
                follower.decode(input, &mut out, &mut |what| match what {
                    Received::Ready => ready.send_modify(|count| *count += 1),
                    Received::Message(trace) => batch.record(trace),
                })
            })
            .await?;
        if !out.is_empty() {
            connection.write(&out).await?;
            out.clear();
        }
    }
}

/// The message counts and latencies of all followers.
#[derive(Debug)]
pub(crate) struct SharedTally {
    tallies: Vec<RefCell<Tally>>,
    received: Cell<u64>,
    latencies: RefCell<Latencies>,
    first: Cell<Option<Instant>>,
    last: Cell<Option<Instant>>,
    progress: Progress,
}

impl SharedTally {
    fn new(followers: usize, progress: Progress) -> Self {
        Self {
            tallies: std::iter::repeat_with(RefCell::default).take(followers).collect(),
            received: Cell::new(0),
            latencies: RefCell::new(Latencies::new()),
            first: Cell::new(None),
            last: Cell::new(None),
            progress,
        }
    }

    /// Distinct messages received, summed over all followers.
    fn received(&self) -> u64 {
        self.received.get()
    }

    /// Waits until as many messages are received, or none for a while.
    async fn wait_for(&self, expected: u64) {
        let (mut seen, mut since) = (0, Instant::now());
        while self.received() < expected && since.elapsed() < QUIET_TIMEOUT {
            sleep(POLL_INTERVAL).await;
            if self.received() > seen {
                (seen, since) = (self.received(), Instant::now());
            }
        }
    }

    fn batch(&self, follower: usize) -> Batch<'_> {
        Batch { all: self, follower, now: Trace::now(), count: Cell::new(0) }
    }

    fn accounts(&self, published: Accounts) -> Accounts {
        let mut accounts = published;
        for tally in &self.tallies {
            let tally = tally.borrow();
            accounts.lost += tally.lost();
            accounts.repeated += tally.repeated;
            accounts.reordered += tally.reordered;
        }
        accounts.received = self.received();
        accounts
    }
}

/// The messages of one read.
struct Batch<'a> {
    all: &'a SharedTally,
    follower: usize,
    now: u64,
    /// Distinct messages.
    count: Cell<u64>,
}

impl Batch<'_> {
    fn record(&self, trace: Option<Trace>) {
        let all = self.all;
        let new = match trace {
            Some(trace) => {
                let mut tally = all.tallies[self.follower].borrow_mut();
                let before = tally.received;
                tally.record(&trace);
                all.latencies.borrow_mut().record(self.now.saturating_sub(trace.time));
                tally.received - before
            }
            // Without a trace it can only be counted.
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
