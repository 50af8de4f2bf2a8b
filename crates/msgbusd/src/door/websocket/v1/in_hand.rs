//! The requests that a client has from its services, and has not answered.

use std::sync::Arc;

use msgbus_core::ReplyToken;

use super::Client;
use crate::{service::in_hand, worker::Worker};

/// The requests that one client has, with the `serve` that each came from.
#[derive(Debug)]
pub(super) struct InHand {
    worker: Arc<Worker>,
    requests: in_hand::InHand<ReplyToken, Holder>,
    last_holder: u64,
}

/// The `serve` that a request came from. Its number is never used again, unlike its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) key: usize,
    pub(super) number: u64,
}

impl InHand {
    pub(super) fn new(client: &Client) -> Self {
        let worker = Arc::clone(&client.worker);
        Self { requests: in_hand::InHand::new(&worker), worker, last_holder: 0 }
    }

    /// A number for a new `serve`.
    pub(super) fn new_holder(&mut self) -> u64 {
        self.last_holder += 1;
        self.last_holder
    }

    pub(super) fn insert(&mut self, token: ReplyToken, holder: Holder) {
        self.requests.insert(token, token, holder);
    }

    /// Forgets a request that was answered. Returns which `serve` it came from, unless it is not known here: it came
    /// from another connection, or is over.
    pub(super) fn remove(&mut self, token: &ReplyToken) -> Option<Holder> {
        self.requests.remove(token).map(|(_, holder)| holder)
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
            assert!(in_hand.requests.len() < 100, "{}", in_hand.requests.len());
            worker.tasks.stop.cut();
        });
    }
}
