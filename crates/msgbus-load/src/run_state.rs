//! The state that all clients of a run share: the remaining work and its results.

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

/// How long the server may send no response while requests are in flight.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Publish,
    Pull,
}

/// The state that all clients of a run share.
#[derive(Debug)]
pub(crate) struct RunState {
    /// Messages that no client has taken yet.
    pub(crate) left: Cell<u64>,
    /// Wakes clients that wait for their next due time when no messages are left.
    pub(crate) none_left: Notify,
    /// The number of requests.
    pub(crate) requested: Cell<u64>,
    /// The number of responses.
    pub(crate) answered: Cell<u64>,
    pub(crate) latencies: RefCell<Latencies>,
    pub(crate) accounts: Cell<Accounts>,
    /// Accepted messages by topic.
    pub(crate) by_topic: Vec<Cell<u64>>,
}

impl RunState {
    pub(crate) fn new(load: &Load) -> Self {
        Self {
            left: Cell::new(load.messages),
            none_left: Notify::new(),
            requested: Cell::new(0),
            answered: Cell::new(0),
            latencies: RefCell::new(Latencies::new()),
            accounts: Cell::default(),
            by_topic: vec![Cell::new(0); load.topics.len()],
        }
    }

    /// Takes up to `most` of the remaining messages, and returns how many.
    pub(crate) fn take(&self, most: usize) -> usize {
        let taken = self.left.get().min(most as u64);
        self.left.set(self.left.get() - taken);
        if self.left.get() == 0 {
            self.none_left.notify_waiters();
        }
        usize::try_from(taken).unwrap_or(most)
    }

    /// Completes when the server has sent no response for [`RESPONSE_TIMEOUT`] despite open requests.
    pub(crate) async fn response_timeout(&self) {
        let mut ticks = interval(Duration::from_secs(1));
        let (mut answered, mut since) = (0, Instant::now());
        while since.elapsed() < RESPONSE_TIMEOUT {
            ticks.tick().await;
            if self.answered.get() > answered || self.answered.get() == self.requested.get() {
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
