//! Publishing and pulling as fast as the server answers, or at a given rate.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use tokio::{
    select,
    sync::Notify,
    task::JoinSet,
    time::{Instant, interval},
};

use crate::{
    client::Client,
    process::Server,
    protocol::Protocol,
    report::{Accounts, Latencies, Meters, Progress, Report},
};

/// How long the server may answer nothing at all of what it was asked.
const PATIENCE: Duration = Duration::from_secs(10);

/// The server under load.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: Rc<dyn Protocol>,
    /// Its processes, where they are to be measured.
    pub server: Option<Server>,
}

/// What is asked of the server.
#[derive(Debug, Clone)]
pub struct Load {
    /// Connections that publish or pull.
    pub clients: usize,
    /// The topics, which the clients share between them.
    pub topics: Vec<String>,
    /// How many messages, by all clients together.
    pub messages: u64,
    /// Ends earlier after this time.
    pub duration: Option<Duration>,
    /// The size of a payload, in bytes.
    pub size: usize,
    /// How many messages in a second, by all clients together; as many as the server takes if
    /// `None`.
    pub rate: Option<f64>,
    /// How many requests a connection has under way.
    pub pipeline: usize,
    /// How many messages a request publishes.
    pub batch: usize,
    /// Counts the operations while they are done.
    pub progress: Progress,
}

/// Publishes.
///
/// With a rate, each request has a time at which it is due, and its latency counts from there
/// wherever the server has kept the connection from sending it: a slow answer is not hidden by the
/// requests that it held back (coordinated omission).
///
/// # Errors
/// When the server cannot be reached, stops answering, or calls a request wrong; or when a connection
/// breaks.
pub async fn publish(target: &Target, load: &Load) -> io::Result<Report> {
    let sent = Rc::new(Sent::new(load));
    let clients = connect(target, load).await?;
    let meter = Meters::start(target)?;
    let begin = Instant::now();
    drive(clients, load, &sent, Work::Publish).await?;
    sent.report(begin.elapsed(), meter)
}

/// Pulls, from topics that it has filled before.
///
/// # Errors
/// As [`publish`].
pub async fn pull(target: &Target, load: &Load) -> io::Result<Report> {
    const LINES: usize = 200;
    let each = load.messages / load.topics.len() as u64;
    let lines = if load.size * LINES <= 512 << 10 { LINES } else { 1 };
    let filling = Load {
        // A single one goes round the topics in order, so that they have the same number, or nearly.
        clients: 1,
        rate: None,
        duration: None,
        pipeline: 1,
        batch: lines.min(usize::try_from(each / 4).unwrap_or(lines)).max(1),
        progress: Progress::default(),
        ..load.clone()
    };
    let filled = publish(target, &filling).await?;
    if filled.accounts.refused > 0 {
        return Err(io::Error::other("the server refused the messages that were to be pulled"));
    }
    let load = &Load { batch: 1, ..load.clone() };
    let sent = Rc::new(Sent::new(load));
    let clients = connect(target, load).await?;
    let meter = Meters::start(target)?;
    let begin = Instant::now();
    drive(clients, load, &sent, Work::Pull).await?;
    let mut report = sent.report(begin.elapsed(), meter)?;
    report.accounts.received = report.accounts.published;
    report.accounts.published = filled.accounts.published;
    if load.duration.is_none() {
        let Accounts { published, received, .. } = report.accounts;
        report.accounts.lost = published.saturating_sub(received);
    }
    Ok(report)
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Publish,
    Pull,
}

/// What all clients of a run share.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Messages that have not been given to a client yet.
    pub(crate) left: Cell<u64>,
    /// Wakes the clients whose turn will not come any more.
    pub(crate) none_left: Notify,
    /// Requests sent, and answered.
    pub(crate) asked: Cell<u64>,
    pub(crate) answered: Cell<u64>,
    pub(crate) latencies: RefCell<Latencies>,
    pub(crate) accounts: Cell<Accounts>,
    /// Messages accepted, by topic.
    pub(crate) by_topic: Vec<Cell<u64>>,
}

impl Sent {
    pub(crate) fn new(load: &Load) -> Self {
        Self {
            left: Cell::new(load.messages),
            none_left: Notify::new(),
            asked: Cell::new(0),
            answered: Cell::new(0),
            latencies: RefCell::new(Latencies::new()),
            accounts: Cell::default(),
            by_topic: vec![Cell::new(0); load.topics.len()],
        }
    }

    /// Takes as many messages as there are left, but not more.
    pub(crate) fn take(&self, most: usize) -> usize {
        let taken = self.left.get().min(most as u64);
        self.left.set(self.left.get() - taken);
        if self.left.get() == 0 {
            self.none_left.notify_waiters();
        }
        usize::try_from(taken).unwrap_or(most)
    }

    /// Waits until the server has answered nothing for too long.
    async fn silence(&self) {
        let mut looks = interval(Duration::from_secs(1));
        let (mut answered, mut since) = (0, Instant::now());
        while since.elapsed() < PATIENCE {
            looks.tick().await;
            if self.answered.get() > answered || self.answered.get() == self.asked.get() {
                (answered, since) = (self.answered.get(), Instant::now());
            }
        }
    }

    fn report(&self, time: Duration, meters: Meters) -> io::Result<Report> {
        let accounts = self.accounts.get();
        let operations = accounts.published;
        meters.report(time, operations, accounts, &self.latencies.borrow())
    }
}

pub(crate) async fn connect(target: &Target, load: &Load) -> io::Result<Vec<Client>> {
    let topics: Rc<[String]> =
        load.topics.iter().map(|topic| target.protocol.encode_topic(topic)).collect();
    let mut clients = Vec::new();
    for index in 0..load.clients {
        clients.push(Client::connect(target, load, index, Rc::clone(&topics)).await?);
    }
    Ok(clients)
}

pub(crate) async fn drive(
    clients: Vec<Client>,
    load: &Load,
    sent: &Rc<Sent>,
    work: Work,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    let begin = Instant::now();
    for client in clients {
        let (load, sent) = (load.clone(), Rc::clone(sent));
        tasks.spawn_local(async move { client.run(&load, &sent, work, begin).await });
    }
    let done = async {
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    };
    select! {
        done = done => done,
        () = sent.silence() => {
            let text = format!("the server has answered nothing for {} s", PATIENCE.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}
