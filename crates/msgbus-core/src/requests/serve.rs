//! The responders that wait, and the requests that they are handed.

use std::{
    hash::BuildHasher as _,
    task::{Poll, Waker},
};

use super::{Handed, Service, pending::Pending};
use crate::{
    model::{MonotonicTime, RequestError, RequestKey},
    options::BatchLimit,
    topic::WaiterId,
};

impl Service {
    /// A responder joins the queue of those that wait for requests.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) fn join(&mut self, now: MonotonicTime) -> Result<WaiterId, RequestError> {
        if self.is_closed {
            return Err(RequestError::Closed);
        }
        self.queue_sought();
        self.seen = Some(now);
        self.last_responder += 1;
        self.responders.join(self.last_responder);
        Ok(self.last_responder)
    }

    /// A responder leaves the queue. Returns the waker of the one that gets the requests instead.
    #[must_use]
    pub(crate) fn leave(&mut self, responder: WaiterId, now: MonotonicTime) -> Option<Waker> {
        self.seen = Some(now);
        self.discarded.extend(self.responders.leave(responder));
        self.wake_responder()
    }

    fn wake_responder(&mut self) -> Option<Waker> {
        if self.queue.is_empty() { None } else { self.responders.unpark_first() }
    }

    /// The size of the payload that is handed out next, in bytes.
    pub(crate) fn next_size(&self) -> Option<usize> {
        self.queue.front().and_then(|slot| self.slots.get(*slot)).map(Pending::payload_len)
    }

    /// Hands requests to the responder that has waited longest, which leaves the queue with them. Empty if the bus was
    /// closed. Also returns the waker of the next responder, if there are more requests.
    pub(crate) fn poll_take(
        &mut self,
        responder: WaiterId,
        limit: BatchLimit,
        now: MonotonicTime,
        waker: &Waker,
    ) -> Poll<(Vec<Handed>, Option<Waker>)> {
        self.skip_expired(now);
        let is_turn = self.responders.is_first(responder) && !self.queue.is_empty();
        if !is_turn && !self.is_closed {
            self.discarded.extend(self.responders.park(responder, waker));
            return Poll::Pending;
        }
        let (mut handed, mut bytes) = (Vec::new(), 0);
        while handed.len() < limit.events.max(1)
            && bytes < limit.bytes.max(1)
            && let Some(next) = self.hand_next(now)
        {
            bytes += next.payload.len();
            handed.push(next);
        }
        self.queue_sought();
        let next = self.leave(responder, now);
        Poll::Ready((handed, next))
    }

    /// Passes over requests whose time is over. The timer ends them.
    fn skip_expired(&mut self, now: MonotonicTime) {
        let is_over = |slot: &u32| self.slots.get(*slot).is_none_or(|next| next.deadline <= now);
        while self.queue.front().is_some_and(is_over) {
            self.queue.pop_front();
        }
    }

    fn hand_next(&mut self, now: MonotonicTime) -> Option<Handed> {
        self.skip_expired(now);
        let slot = self.queue.pop_front()?;
        let nonce = self.nonce();
        let pending = self.slots.get_mut(slot)?;
        self.in_hand += 1;
        let (payload, headers) = pending.hand(nonce);
        let left = pending.deadline.since(now);
        Some(Handed { key: RequestKey { slot, nonce }, payload, headers, left })
    }

    fn nonce(&mut self) -> u64 {
        let number = self.number();
        self.secret.hash_one(number)
    }
}
