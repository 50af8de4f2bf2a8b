//! The requests that a client has from its services, and has not answered.

use std::{collections::HashMap, sync::Arc};

use msgbus_core::ReplyToken;

use super::Client;
use crate::worker::Worker;

/// The requests that one client has. When it leaves, they fail at once, or go to other responders where their requesters
/// allow that.
#[derive(Debug)]
pub(super) struct InHand {
    worker: Arc<Worker>,
    requests: HashMap<ReplyToken, Held>,
    last_holder: u64,
    /// The number of requests that there have been.
    count: u64,
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
    /// Its number among all requests.
    number: u64,
}

impl InHand {
    /// Up to this capacity, the memory for requests is kept.
    const KEPT: usize = 64;

    pub(super) fn new(client: &Client) -> Self {
        let worker = Arc::clone(&client.worker);
        Self { worker, requests: HashMap::new(), last_holder: 0, count: 0 }
    }

    /// A number for a new `serve`.
    pub(super) fn new_holder(&mut self) -> u64 {
        self.last_holder += 1;
        self.last_holder
    }

    pub(super) fn insert(&mut self, token: ReplyToken, holder: Holder) {
        let Self { worker, requests, .. } = self;
        // What is over is forgotten before the map grows, so it holds at most twice as many as are not.
        if requests.len() == requests.capacity() {
            requests.retain(|token, _| worker.bus.is_in_hand(token));
        }
        self.count += 1;
        requests.insert(token, Held { holder, number: self.count });
    }

    /// Forgets a request that was answered. Returns which `serve` it came from, unless it is not known here: it came
    /// from another connection, or is over.
    pub(super) fn remove(&mut self, token: &ReplyToken) -> Option<Holder> {
        let removed = self.requests.remove(token)?;
        if self.requests.is_empty() && self.requests.capacity() > Self::KEPT {
            self.requests = HashMap::new();
        }
        Some(removed.holder)
    }

    /// Whether a request still waits for its reply. It may have been answered elsewhere, and its requester may have left.
    /// One that is over is forgotten.
    pub(super) fn waits(&mut self, token: &ReplyToken) -> bool {
        let waits = self.worker.bus.is_in_hand(token);
        if !waits {
            self.remove(token);
        }
        waits
    }

    /// Gives a request back, because its client may not answer it any more.
    pub(super) fn hand_back(&mut self, token: &ReplyToken) {
        if self.remove(token).is_some() {
            self.worker.bus.hand_back(token);
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        // A server that stops tells all requesters so.
        if self.worker.tasks.stop.is_draining() {
            return;
        }
        let mut requests: Vec<_> = self.requests.drain().collect();
        // Each goes to the front of the queue, so that they keep their order.
        requests.sort_unstable_by_key(|(_, held)| std::cmp::Reverse(held.number));
        for (token, _) in requests {
            self.worker.bus.hand_back(&token);
        }
    }
}

#[cfg(test)]
mod tests {
    use msgbus_core::{BatchLimit, TopicName};

    use super::{super::fuzzing, *};
    use crate::fuzzing::block_on;

    #[test]
    fn what_is_over_is_forgotten() {
        block_on(async {
            let (worker, _) = fuzzing::worker();
            let mut in_hand = InHand::new(&fuzzing::client(&worker));
            let service: TopicName = "s".parse().expect("a name");
            for number in 0..10_000 {
                let responder = worker.bus.serve(&service, BatchLimit::ONE).expect("open");
                let asked = worker.bus.request(&service, "x");
                for request in responder.wait().expect("open") {
                    in_hand.insert(request.into_token(), Holder { key: 0, number });
                }
                drop(asked);
            }
            assert!(in_hand.requests.capacity() < 100, "{}", in_hand.requests.capacity());
            worker.tasks.stop.cut();
        });
    }
}
