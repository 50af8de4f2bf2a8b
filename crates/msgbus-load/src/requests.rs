//! Publishing and pulling as fast as the server answers, or at a given rate.

use std::{io, rc::Rc};

use tokio::{select, task::JoinSet, time::Instant};

use crate::{
    client::Client,
    load::{Load, Target},
    progress::Progress,
    report::{Accounts, Meters, Report},
    sent::{PATIENCE, Sent, Work},
};

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
