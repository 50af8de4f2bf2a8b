//! The requests that a client has from its services, and has not answered.

use std::{collections::HashMap, sync::Arc};

use msgbus_core::ReplyToken;
use tokio::time::Instant;

use super::Client;
use crate::worker::Worker;

/// The requests that one client has. When it leaves, they fail at once, or go to other responders where their requesters
/// allow that.
#[derive(Debug)]
pub(super) struct InHand {
    worker: Arc<Worker>,
    requests: HashMap<ReplyToken, Held>,
    last_holder: u64,
}

/// The `serve` that a request came from. Its number is never used again, unlike its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) key: usize,
    pub(super) number: u64,
}

#[derive(Debug)]
struct Held {
    holder: Holder,
    /// When the time of its requester is over.
    until: Instant,
}

impl InHand {
    /// Up to this capacity, the memory for requests is kept.
    const KEPT: usize = 64;

    pub(super) fn new(client: &Client) -> Self {
        let worker = Arc::clone(&client.worker);
        Self { worker, requests: HashMap::new(), last_holder: 0 }
    }

    /// A number for a new `serve`.
    pub(super) fn new_holder(&mut self) -> u64 {
        self.last_holder += 1;
        self.last_holder
    }

    pub(super) fn insert(&mut self, token: ReplyToken, holder: Holder, until: Instant) {
        self.requests.insert(token, Held { holder, until });
    }

    /// Forgets a request that was answered. Returns which `serve` it came from, unless it is not known here: it came
    /// from another connection, or its time is over.
    pub(super) fn remove(&mut self, token: &ReplyToken) -> Option<Holder> {
        let removed = self.requests.remove(token)?;
        if self.requests.is_empty() && self.requests.capacity() > Self::KEPT {
            self.requests = HashMap::new();
        }
        Some(removed.holder)
    }

    /// Forgets the requests of a `serve` whose time is over. Returns how many it still has, and when the next one is over.
    pub(super) fn remove_over(&mut self, number: u64, now: Instant) -> (usize, Option<Instant>) {
        let (mut count, mut earliest) = (0, None);
        self.requests.retain(|_, held| {
            if held.holder.number != number {
                return true;
            }
            if held.until <= now {
                return false;
            }
            count += 1;
            earliest = Some(earliest.map_or(held.until, |earliest| held.until.min(earliest)));
            true
        });
        (count, earliest)
    }

    /// Gives the requests of a `serve` back, because its client may not answer them any more.
    pub(super) fn hand_back(&mut self, number: u64) {
        let Self { worker, requests, .. } = self;
        for (token, _) in requests.extract_if(|_, held| held.holder.number == number) {
            worker.bus.hand_back(&token);
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        // A server that stops tells all requesters so.
        if self.worker.tasks.stop.is_draining() {
            return;
        }
        for token in self.requests.keys() {
            self.worker.bus.hand_back(token);
        }
    }
}
