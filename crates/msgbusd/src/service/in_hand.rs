//! The requests that one connection has from the services that it serves, and has not answered.

use std::{cmp::Reverse, collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use msgbus_core::ReplyToken;
use tokio::time::Instant;

use crate::worker::Worker;

/// The requests of one connection, by keys of its door. When it ends, they fail at once, or go to other responders where
/// their requesters allow that.
#[derive(Debug)]
pub(crate) struct InHand<K, V> {
    worker: Arc<Worker>,
    requests: HashMap<K, Held<V>>,
    /// The number of requests that there have been.
    count: u64,
    /// When it was last looked at which of them are over.
    looked_at: Option<Instant>,
}

#[derive(Debug)]
struct Held<V> {
    token: ReplyToken,
    /// Its number among all requests.
    number: u64,
    value: V,
}

impl<K: Hash + Eq, V> InHand<K, V> {
    /// Up to this capacity, the memory for requests is kept.
    const KEPT: usize = 64;

    pub(crate) fn new(worker: &Arc<Worker>) -> Self {
        Self { worker: Arc::clone(worker), requests: HashMap::new(), count: 0, looked_at: None }
    }

    /// The number of requests, some of which may be over.
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// The number of requests that there have been.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn insert(&mut self, key: K, token: ReplyToken, value: V) {
        // What is over is forgotten before the map grows, so it holds at most twice as many as are not.
        if self.requests.len() == self.requests.capacity() {
            self.forget_over(Duration::ZERO);
        }
        self.count += 1;
        self.requests.insert(key, Held { token, number: self.count, value });
    }

    /// Removes a request that was answered, or is over. `None` if it is not known here.
    pub(crate) fn remove(&mut self, key: &K) -> Option<(ReplyToken, V)> {
        let Held { token, value, .. } = self.requests.remove(key)?;
        if self.requests.is_empty() && self.requests.capacity() > Self::KEPT {
            self.requests = HashMap::new();
        }
        Some((token, value))
    }

    /// Forgets the requests that are over: they were answered elsewhere, or their requesters have left or waited long
    /// enough. It looks no more often than at this interval.
    pub(crate) fn forget_over(&mut self, interval: Duration) {
        let Self { worker, requests, looked_at, .. } = self;
        let now = Instant::now();
        if looked_at.is_none_or(|before| before + interval <= now) {
            *looked_at = Some(now);
            requests.retain(|_, held| worker.bus.is_in_hand(&held.token));
        }
    }
}

impl<K, V> InHand<K, V> {
    /// Gives requests back that the client cannot or may not answer any more.
    pub(crate) fn hand_back(&mut self, is_one: impl Fn(&V) -> bool) {
        let mut requests: Vec<_> =
            self.requests.extract_if(|_, held| is_one(&held.value)).map(|(_, held)| held).collect();
        // Each goes to the front of the queue, so that they keep their order.
        requests.sort_unstable_by_key(|held| Reverse(held.number));
        for held in requests {
            self.worker.bus.hand_back(&held.token);
        }
    }

    /// Gives all requests back. A server that stops tells all requesters so.
    pub(crate) fn give_up(&mut self) {
        if !self.worker.tasks.stop.is_draining() {
            self.hand_back(|_| true);
        }
    }
}

impl<K, V> Drop for InHand<K, V> {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use msgbus_core::{BatchLimit, TopicName};

    use super::*;
    use crate::{config::Config, fuzzing::block_on, state::App};

    #[test]
    fn what_is_over_is_forgotten() {
        block_on(async {
            let worker = Worker::new(&Arc::new(App::in_memory(Config::default(), None)));
            let mut in_hand = InHand::new(&worker);
            let service: TopicName = "s".parse().expect("a name");
            for number in 0..10_000 {
                let responder = worker.bus.serve(&service, BatchLimit::ONE).expect("open");
                let asked = worker.bus.request(&service, "x");
                for request in responder.wait().expect("open") {
                    in_hand.insert(number, request.into_token(), ());
                }
                drop(asked);
            }
            assert!(in_hand.requests.len() < 100, "{}", in_hand.requests.len());
            worker.tasks.stop.cut();
        });
    }
}
