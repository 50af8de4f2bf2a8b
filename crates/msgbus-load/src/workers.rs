//! Workers: taking messages and acknowledging them, one request after the other.

use std::{io, rc::Rc};

use tokio::{task::JoinSet, time::Instant};

use crate::{
    connection::Connection,
    load::{Load, Target},
    plan::TopicCycle,
    protocol::{Step, Worker},
    report::{Meters, Report},
    requests::{self, fill},
    run_state::RunState,
};

/// Takes messages from topics that it fills first, up to `load.batch` with each request, and acknowledges
/// them. A connection has one request in flight. The latency is the time from a request for messages until
/// their acknowledgement has been answered.
///
/// # Errors
/// See [`publish`](crate::publish), and if the protocol has no acknowledgements.
pub async fn work(target: &Target, load: &Load) -> io::Result<Report> {
    let published = fill(target, load).await?.iter().sum();
    let state = Rc::new(RunState::new(load));
    let mut workers = Vec::new();
    for index in 0..load.clients {
        workers.push(Client::connect(target, load, index).await?);
    }
    let meters = Meters::start(target)?;
    let mut tasks = JoinSet::new();
    let begin = Instant::now();
    for worker in workers {
        let (load, state) = (load.clone(), Rc::clone(&state));
        tasks.spawn_local(async move { worker.run(&load, &state).await });
    }
    requests::join(tasks, &state).await?;
    let mut report = state.report(begin.elapsed(), meters)?;
    report.accounts.received = report.accounts.published;
    report.accounts.published = published;
    report.accounts.lost = published.saturating_sub(report.accounts.received);
    Ok(report)
}

/// The connection of a worker.
struct Client {
    connection: Connection,
    worker: Box<dyn Worker>,
    topics: Vec<String>,
    topic_cycle: TopicCycle,
    out: Vec<u8>,
}

impl Client {
    async fn connect(target: &Target, load: &Load, index: usize) -> io::Result<Self> {
        let none = || io::Error::new(io::ErrorKind::Unsupported, "no acknowledgements");
        let worker = target.protocol.worker().ok_or_else(none)?;
        let mut connection = Connection::open(&*target.connector).await?;
        let mut out = Vec::new();
        worker.open(&mut out);
        connection.write(&out).await?;
        let topics = load.topics.iter().map(|topic| target.protocol.encode_topic(topic)).collect();
        Ok(Self { connection, worker, topics, topic_cycle: TopicCycle::new(index, load), out })
    }

    /// Runs until no messages are left.
    async fn run(mut self, load: &Load, state: &RunState) -> io::Result<()> {
        let mut empty_in_a_row = 0;
        while empty_in_a_row < self.topics.len() {
            let most = state.take(load.batch);
            if most == 0 {
                break;
            }
            let (topic, _) = self.topic_cycle.next();
            let begin = Instant::now();
            self.out.clear();
            self.worker.take(&self.topics[topic], most, &mut self.out);
            let taken = match self.request(state).await? {
                Step::Taken(count) => {
                    self.out.clear();
                    self.worker.ack(&mut self.out);
                    match self.request(state).await? {
                        Step::Done(_) => count,
                        _ => return Err(io::Error::other("an acknowledgement was not accepted")),
                    }
                }
                Step::Done(count) => count,
                Step::Empty => 0,
            };
            empty_in_a_row = if taken == 0 { empty_in_a_row + 1 } else { 0 };
            state.left.set(state.left.get() + (most as u64).saturating_sub(taken));
            if taken > 0 {
                let time = begin.elapsed().as_nanos();
                state.latencies.borrow_mut().record(u64::try_from(time).unwrap_or(u64::MAX));
            }
            let mut accounts = state.accounts.get();
            accounts.published += taken;
            accounts.empty += u64::from(taken == 0);
            state.accounts.set(accounts);
            load.progress.add(taken);
        }
        Ok(())
    }

    /// Sends a request, and waits for its response.
    async fn request(&mut self, state: &RunState) -> io::Result<Step> {
        let Self { connection, worker, out, .. } = self;
        state.requested.set(state.requested.get() + 1);
        connection.write(out).await?;
        let mut step = None;
        while step.is_none() {
            connection.read(|input| worker.decode(input, &mut |done| step = Some(done))).await?;
        }
        state.answered.set(state.answered.get() + 1);
        step.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
