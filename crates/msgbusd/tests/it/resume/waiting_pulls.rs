//! Waiting pulls whose clients vanish take no messages.

use std::{collections::BTreeSet, time::Duration};

use fastrand::Rng;
use msgbus_core::json;
use tokio::{task::JoinSet, time::sleep};

use super::seeded;
use crate::support::{Connection, Daemon, soon, until};

/// A waiting pull, and the maximum number of messages that it takes.
struct Waiting {
    connection: Connection,
    most: usize,
}

impl Waiting {
    async fn begin(daemon: &Daemon, topic: &str, rng: &mut Rng) -> Self {
        let mut connection = daemon.connect().await;
        let (max, most) = if rng.bool() { ("&max=3", 3) } else { ("", 1) };
        let head = format!("GET /{topic}?wait=20s{max} HTTP/1.1\r\nHost: localhost\r\n");
        connection.write(format!("{head}Connection: close\r\n\r\n").as_bytes()).await;
        Self { connection, most }
    }

    fn vanish(self, rng: &mut Rng) {
        if rng.bool() {
            self.connection.0.set_zero_linger().unwrap();
        }
    }

    async fn ids(mut self) -> Vec<u64> {
        let reply = self.connection.reply().await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let lines = reply.text().lines();
        lines.map(|line| json::read_message(line.as_bytes()).unwrap().id()).collect()
    }
}

async fn waiting(daemon: &Daemon, topic: &str, count: usize, rng: &mut Rng) -> Vec<Waiting> {
    let mut waiting = Vec::new();
    for _ in 0..count {
        waiting.push(Waiting::begin(daemon, topic, rng).await);
    }
    waiting
}

/// One topic: some pulls wait to the end, some vanish before anything is published, some meanwhile.
async fn pull_and_vanish(daemon: &Daemon, topic: &str, rng: &mut Rng) {
    let name = topic.parse().unwrap();
    let bus = &daemon.bus;
    let waiters = || bus.topic(&name).map_or(0, |stats| stats.waiters);
    let mut group = async |count| waiting(daemon, topic, count, rng).await;
    let (early, staying, late) = (group(4).await, group(4).await, group(4).await);
    soon(until(|| waiters() == 12)).await;
    for client in early {
        client.vanish(rng);
    }
    soon(until(|| waiters() == 8)).await;

    let at_most_lost: usize = late.iter().map(|client| client.most).sum();
    let mut pulls = JoinSet::new();
    for client in staying {
        pulls.spawn(client.ids());
    }
    let mut published = 0;
    let mut late = late.into_iter();
    let mut ids = Vec::new();
    while !pulls.is_empty() {
        match rng.u8(0..3) {
            0 => published = bus.put(&name, "x").unwrap().id + 1,
            1 => late.next().into_iter().for_each(|client| client.vanish(rng)),
            _ => sleep(Duration::from_micros(rng.u64(0..500))).await,
        }
        while let Some(pulled) = pulls.try_join_next() {
            ids.extend(pulled.unwrap());
        }
    }
    late.for_each(|client| client.vanish(rng));
    soon(until(|| waiters() == 0)).await;
    while let Some(message) = bus.get(&name).unwrap() {
        ids.push(message.id());
    }
    let different: BTreeSet<_> = ids.iter().copied().collect();
    assert_eq!(different.len(), ids.len(), "pulled twice: {ids:?}");
    assert!(different.iter().all(|id| *id < published));
    let lost = usize::try_from(published).unwrap() - ids.len();
    assert!(lost <= at_most_lost, "{lost} of {published} are lost: {ids:?}");
}

async fn wait_and_vanish(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let daemon = Daemon::start();
    for round in 0..40 {
        pull_and_vanish(&daemon, &format!("t/{round}"), &mut rng).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_pulls_that_vanish_take_no_messages() {
    seeded(wait_and_vanish).await;
}
