//! What all clients of a run share: what is left to do, and what became of it.

use std::{
    cell::{Cell, RefCell},
    io,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, interval},
};

use crate::{
    load::Load,
    report::{Accounts, Latencies, Meters, Report},
};

/// How long the server may answer nothing at all of what it was asked.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

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
    pub(crate) async fn silence(&self) {
        let mut looks = interval(Duration::from_secs(1));
        let (mut answered, mut since) = (0, Instant::now());
        while since.elapsed() < PATIENCE {
            looks.tick().await;
            if self.answered.get() > answered || self.answered.get() == self.asked.get() {
                (answered, since) = (self.answered.get(), Instant::now());
            }
        }
    }

    pub(crate) fn report(&self, time: Duration, meters: Meters) -> io::Result<Report> {
        let accounts = self.accounts.get();
        let operations = accounts.published;
        meters.report(time, operations, accounts, &self.latencies.borrow())
    }
}
