//! Publishing and pulling, as fast as the server responds or at a given rate.

use std::{cell::Cell, io, rc::Rc};

use tokio::{select, task::JoinSet, time::Instant};

use crate::{
    client::Client,
    load::{Load, Target},
    progress::Progress,
    report::{Accounts, Meters, Report},
    run_state::{RESPONSE_TIMEOUT, RunState, Work},
};

/// Publishes messages.
///
/// With a rate, each request has a due time. If a slow response delays it, its latency counts from
/// the due time, so that delays are not hidden (coordinated omission).
///
/// # Errors
/// The server cannot be reached, stops responding or answers with 4xx, or a connection breaks.
pub async fn publish(target: &Target, load: &Load) -> io::Result<Report> {
    let state = Rc::new(RunState::new(load));
    let clients = connect(target, load).await?;
    let meter = Meters::start(target)?;
    let begin = Instant::now();
    drive(clients, load, &state, Work::Publish).await?;
    state.report(begin.elapsed(), meter)
}

/// Pulls messages from topics that it fills first.
///
/// # Errors
/// See [`publish`].
pub async fn pull(target: &Target, load: &Load) -> io::Result<Report> {
    let filled = fill(target, load).await?.iter().sum();
    let load = &Load { batch: 1, ..load.clone() };
    let state = Rc::new(RunState::new(load));
    let clients = connect(target, load).await?;
    let meter = Meters::start(target)?;
    let begin = Instant::now();
    drive(clients, load, &state, Work::Pull).await?;
    let mut report = state.report(begin.elapsed(), meter)?;
    report.accounts.received = report.accounts.published;
    report.accounts.published = filled;
    if load.duration.is_none() {
        let Accounts { published, received, .. } = report.accounts;
        report.accounts.lost = published.saturating_sub(received);
    }
    Ok(report)
}

/// Publishes all messages of a load, to each topic as many, and returns how many each topic has.
pub(crate) async fn fill(target: &Target, load: &Load) -> io::Result<Vec<u64>> {
    const LINES: usize = 200;
    const PIPELINE: usize = 64;
    let each = load.messages / load.topics.len() as u64;
    let lines = if load.size * LINES <= 512 << 10 { LINES } else { 1 };
    let lines = lines.min(usize::try_from(each / 4).unwrap_or(lines)).max(1);
    let (pipeline, batch) =
        if target.protocol.publishes_lines() { (1, lines) } else { (PIPELINE, 1) };
    let filling = Load {
        // One client, because it visits the topics in order and so fills them evenly.
        clients: 1,
        rate: None,
        duration: None,
        pipeline,
        batch,
        progress: Progress::default(),
        ..load.clone()
    };
    let state = Rc::new(RunState::new(&filling));
    drive(connect(target, &filling).await?, &filling, &state, Work::Publish).await?;
    if state.accounts.get().refused > 0 {
        return Err(io::Error::other(
            "the server rejected the messages that were published for reading",
        ));
    }
    Ok(state.by_topic.iter().map(Cell::get).collect())
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
    state: &Rc<RunState>,
    work: Work,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    let begin = Instant::now();
    for client in clients {
        let (load, state) = (load.clone(), Rc::clone(state));
        tasks.spawn_local(async move { client.run(&load, &state, work, begin).await });
    }
    join(tasks, state).await
}

/// Waits for all clients, or until the server has stopped responding.
pub(crate) async fn join(mut tasks: JoinSet<io::Result<()>>, state: &RunState) -> io::Result<()> {
    let done = async {
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    };
    select! {
        done = done => done,
        () = state.response_timeout() => {
            let text = format!("no response from the server for {} s", RESPONSE_TIMEOUT.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}
