//! Publishing and pulling as fast as the server answers, or at a given rate.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use tokio::{
    select,
    sync::Notify,
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};

use crate::{
    connection::Connection,
    process::Server,
    protocol::{Body, Outcome, Protocol, Requester},
    report::{Accounts, Latencies, Meter, Progress, Report},
    stamp::Stamp,
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
    left: Cell<u64>,
    /// Wakes the clients whose turn will not come any more.
    none_left: Notify,
    /// Requests sent, and answered.
    asked: Cell<u64>,
    answered: Cell<u64>,
    latencies: RefCell<Latencies>,
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

    fn take(&self, most: usize) -> usize {
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

/// What is measured beside the work.
#[derive(Debug)]
pub(crate) struct Meters {
    server: Option<Meter>,
    generator: Option<Meter>,
}

impl Meters {
    pub(crate) fn start(target: &Target) -> io::Result<Self> {
        Ok(Self {
            server: target.server.as_ref().map(Meter::start).transpose()?,
            // Nobody has asked for it: where it cannot be known, it is left out.
            generator: Meter::start(&Server::own()).ok(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
    pub(crate) fn report(
        self,
        time: Duration,
        operations: u64,
        accounts: Accounts,
        latencies: &Latencies,
    ) -> io::Result<Report> {
        Ok(Report {
            seconds: time.as_secs_f64(),
            operations,
            rate: operations as f64 / time.as_secs_f64(),
            latency: latencies.percentiles(),
            accounts,
            server: self.server.map(|meter| meter.stop(operations)).transpose()?,
            generator: self.generator.and_then(|meter| meter.stop(operations).ok()),
        })
    }
}

pub(crate) async fn connect(target: &Target, load: &Load) -> io::Result<Vec<Client>> {
    let topics: Rc<[String]> =
        load.topics.iter().map(|topic| target.protocol.encode_topic(topic)).collect();
    let mut clients = Vec::new();
    for index in 0..load.clients {
        let requester = target.protocol.requester();
        let mut connection = Connection::open(target.address).await?;
        let mut out = Vec::new();
        requester.open(&mut out);
        connection.write(&out).await?;
        clients.push(Client {
            index,
            connection,
            requester,
            out,
            turn: Turn::new(index, load),
            topics: Rc::clone(&topics),
            under_way: VecDeque::new(),
            fruitless: 0,
        });
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

/// Whose turn it is: each client goes round all topics, and they begin as far apart as can be, or
/// those that pull would come to what another has just emptied.
#[derive(Debug)]
struct Turn {
    topic: usize,
    first: usize,
    count: usize,
    round: u64,
}

impl Turn {
    fn new(index: usize, load: &Load) -> Self {
        let count = load.topics.len();
        let first = index * count / load.clients;
        Self { topic: first, first, count, round: 0 }
    }

    /// The next topic, and how many times this client was there before.
    fn next(&mut self) -> (usize, u64) {
        let now = (self.topic, self.round);
        self.topic = (self.topic + 1) % self.count;
        self.round += u64::from(self.topic == self.first);
        now
    }
}

/// A connection at work.
pub(crate) struct Client {
    index: usize,
    connection: Connection,
    requester: Box<dyn Requester>,
    out: Vec<u8>,
    turn: Turn,
    topics: Rc<[String]>,
    under_way: VecDeque<Asked>,
    /// Pulls in a row that found nothing.
    fruitless: usize,
}

/// A request under way.
struct Asked {
    since: Instant,
    topic: usize,
    messages: u64,
}

impl Client {
    async fn run(mut self, load: &Load, sent: &Sent, work: Work, begin: Instant) -> io::Result<()> {
        let end = load.duration.map(|duration| begin + duration);
        let mut schedule = load.rate.map(|rate| Schedule::new(begin, rate, self.index, load));
        let mut payload = Payload::new(load.size, load.batch);
        // Since when the connection has been able to send.
        let mut free = begin;
        loop {
            let now = Instant::now();
            let is_over = end.is_some_and(|end| now >= end);
            self.out.clear();
            while self.under_way.len() < load.pipeline && !is_over {
                let due = schedule.as_ref().map_or(now, |schedule| schedule.due);
                if due > now {
                    break;
                }
                let messages = sent.take(load.batch);
                if messages == 0 {
                    break;
                }
                if let Some(schedule) = &mut schedule {
                    schedule.advance();
                }
                // A timer that is late is not the server's fault; a connection in use is.
                let since = if due < free { due } else { now };
                sent.asked.set(sent.asked.get() + 1);
                self.ask(work, messages, &mut payload, now - since, since);
            }
            if !self.out.is_empty()
                && let Err(error) = self.connection.write(&self.out).await
            {
                // The server may have said why it takes no more.
                self.hear(load, sent).await?;
                return Err(error);
            }
            if self.under_way.is_empty() {
                if is_over || sent.left.get() == 0 {
                    return Ok(());
                }
                if let Some(schedule) = &schedule {
                    select! {
                        () = sleep_until(end.map_or(schedule.due, |end| end.min(schedule.due))) => {}
                        () = sent.none_left.notified() => {}
                    }
                }
                continue;
            }
            self.hear(load, sent).await?;
            free = Instant::now();
        }
    }

    async fn hear(&mut self, load: &Load, sent: &Sent) -> io::Result<()> {
        let Self { connection, requester, under_way, fruitless, .. } = self;
        connection.read(|input| answers(requester, under_way, fruitless, load, sent, input)).await
    }

    fn ask(
        &mut self,
        work: Work,
        messages: usize,
        payload: &mut Payload,
        late: Duration,
        since: Instant,
    ) {
        let (topic, round) = self.turn.next();
        let name = &self.topics[topic];
        match work {
            Work::Publish => {
                let body = payload.stamped(self.index, round, late, messages);
                self.requester.publish(name, body, &mut self.out);
            }
            Work::Pull => self.requester.pull(name, &mut self.out),
        }
        self.under_way.push_back(Asked { since, topic, messages: messages as u64 });
    }
}

/// Enters the answers that have come.
fn answers(
    requester: &mut Box<dyn Requester>,
    under_way: &mut VecDeque<Asked>,
    fruitless: &mut usize,
    load: &Load,
    sent: &Sent,
    input: &[u8],
) -> io::Result<usize> {
    let now = Instant::now();
    let mut latencies = sent.latencies.borrow_mut();
    let mut accounts = sent.accounts.get();
    let mut unasked = false;
    let used = requester.answers(input, &mut |outcome| {
        let Some(asked) = under_way.pop_front() else {
            unasked = true;
            return;
        };
        let time = now.saturating_duration_since(asked.since);
        latencies.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        sent.answered.set(sent.answered.get() + 1);
        if outcome != Outcome::Empty {
            load.progress.add(asked.messages);
        }
        match outcome {
            Outcome::Done => {
                *fruitless = 0;
                accounts.published += asked.messages;
                let topic = &sent.by_topic[asked.topic];
                topic.set(topic.get() + asked.messages);
            }
            Outcome::Empty => {
                accounts.empty += 1;
                *fruitless += 1;
                // Another topic may still have it, unless this client has been to all of them.
                if *fruitless < load.topics.len() {
                    sent.left.set(sent.left.get() + asked.messages);
                } else {
                    sent.left.set(0);
                    sent.none_left.notify_waiters();
                }
            }
            Outcome::Refused => accounts.refused += 1,
        }
    })?;
    sent.accounts.set(accounts);
    if unasked {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to no question"));
    }
    Ok(used)
}

/// When the next request of a client is due.
#[derive(Debug)]
struct Schedule {
    due: Instant,
    step: Duration,
}

impl Schedule {
    #[expect(clippy::cast_precision_loss, reason = "few clients, small batches")]
    fn new(begin: Instant, rate: f64, index: usize, load: &Load) -> Self {
        let between = Duration::from_secs_f64(load.batch as f64 / rate);
        let offset = between.mul_f64(index as f64);
        Self { due: begin + offset, step: between.mul_f64(load.clients as f64) }
    }

    fn advance(&mut self) {
        self.due += self.step;
    }
}

/// The bytes to publish, which change by their stamps only.
#[derive(Debug)]
struct Payload {
    bytes: Vec<u8>,
    size: usize,
    batch: usize,
}

impl Payload {
    fn new(size: usize, batch: usize) -> Self {
        let mut bytes = vec![b'x'; size];
        if batch > 1 {
            bytes.push(b'\n');
            bytes = bytes.repeat(batch);
        }
        Self { bytes, size, batch }
    }

    fn stamped(&mut self, client: usize, round: u64, late: Duration, count: usize) -> Body<'_> {
        let is_batch = self.batch > 1;
        let line = if is_batch { self.size + 1 } else { self.size };
        let late = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
        let mut stamp = Stamp {
            publisher: u16::try_from(client).unwrap_or(u16::MAX),
            sequence: round * self.batch as u64,
            time: Stamp::now().saturating_sub(late),
        };
        let bytes = &mut self.bytes[..line * count];
        for payload in bytes.chunks_exact_mut(line.max(1)) {
            stamp.write(&mut payload[..self.size]);
            stamp.sequence += 1;
        }
        if is_batch { Body::Lines(bytes) } else { Body::Message(bytes) }
    }
}
