//! The requests that one connection has from the services that it serves, and has not answered.

use std::{borrow::Borrow, cmp::Reverse, collections::HashMap, hash::Hash, sync::Arc};

use msgbus_core::ReplyToken;

use crate::worker::Worker;

/// The requests of one connection, by keys of its door. When it ends, they fail at once, or go to other responders where
/// their requesters allow that.
#[derive(Debug)]
pub(crate) struct InHand<K, V> {
    worker: Arc<Worker>,
    requests: HashMap<K, Held<V>>,
    /// The number of requests that there have been.
    count: u64,
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
        Self { worker: Arc::clone(worker), requests: HashMap::new(), count: 0 }
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
            self.forget_over();
        }
        self.count += 1;
        self.requests.insert(key, Held { token, number: self.count, value });
    }

    /// Removes a request that was answered, or is over. `None` if it is not known here.
    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<(ReplyToken, V)>
    where
        K: Borrow<Q>,
    {
        let Held { token, value, .. } = self.requests.remove(key)?;
        if self.requests.is_empty() && self.requests.capacity() > Self::KEPT {
            self.requests = HashMap::new();
        }
        Some((token, value))
    }

    /// Forgets the requests that are over: they were answered elsewhere, or their requesters have left or waited long
    /// enough.
    pub(crate) fn forget_over(&mut self) {
        let Self { worker, requests, .. } = self;
        requests.retain(|_, held| worker.bus.is_in_hand(&held.token));
    }
}

impl<K, V> Drop for InHand<K, V> {
    fn drop(&mut self) {
        // A server that stops tells all requesters so.
        if self.worker.tasks.stop.is_draining() {
            return;
        }
        let mut requests: Vec<_> = self.requests.drain().map(|(_, held)| held).collect();
        // Each goes to the front of the queue, so that they keep their order.
        requests.sort_unstable_by_key(|held| Reverse(held.number));
        for held in requests {
            self.worker.bus.hand_back(&held.token);
        }
    }
}
