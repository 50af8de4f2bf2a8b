//! The requests that responders have: replies, and those that come back without one.

use std::task::Waker;

use bytes::Bytes;

use super::{Service, pending::Pending};
use crate::model::{Headers, MonotonicTime, Reply, ReplyNotWanted, RequestError, RequestKey};

/// The reason of a reply that does not fit into the memory of the bus.
const NO_MEMORY: &str = "the server has no memory for the reply";

impl Service {
    /// Whether a responder has this request, and its requester waits. If not, a reply to it is counted as not wanted.
    ///
    /// # Errors
    /// When nobody waits for the reply.
    pub(crate) fn wants_reply(
        &mut self,
        key: RequestKey,
        now: MonotonicTime,
    ) -> Result<(), ReplyNotWanted> {
        if self.is_in_hand(key, now) {
            return Ok(());
        }
        self.accounts.own.not_wanted += 1;
        Err(ReplyNotWanted)
    }

    /// Whether a responder has this request, and its requester waits.
    pub(crate) fn is_in_hand(&self, key: RequestKey, now: MonotonicTime) -> bool {
        self.slots.get(key.slot).is_some_and(|pending| pending.is_in_hand(key.nonce, now))
    }

    /// A request that a responder has.
    fn in_hand(&mut self, key: RequestKey, now: MonotonicTime) -> Option<&mut Pending> {
        self.slots.get_mut(key.slot).filter(|pending| pending.is_in_hand(key.nonce, now))
    }

    /// Answers the requester. Returns its waker.
    ///
    /// # Errors
    /// When nobody waits for the reply.
    pub(crate) fn reply(
        &mut self,
        key: RequestKey,
        reply: Result<Reply, Box<str>>,
        now: MonotonicTime,
    ) -> Result<Option<Waker>, ReplyNotWanted> {
        self.seen = Some(now);
        if !self.is_in_hand(key, now) {
            self.accounts.own.not_wanted += 1;
            return Err(ReplyNotWanted);
        }
        let outcome = reply.map_err(|reason| RequestError::Failed { reason });
        let outcome = self.reserve_reply(key.slot, outcome);
        let Some(pending) = self.slots.get_mut(key.slot) else { return Err(ReplyNotWanted) };
        self.in_hand -= 1;
        self.accounts.of(pending.origin).count(&outcome, now.since(pending.asked));
        Ok(pending.end(outcome))
    }

    /// Counts a reply until its requester has taken it. One for which there is no memory is a failure.
    pub(super) fn reserve_reply(
        &mut self,
        slot: u32,
        outcome: Result<Reply, RequestError>,
    ) -> Result<Reply, RequestError> {
        let Some(pending) = self.slots.get_mut(slot) else { return outcome };
        let more = Pending::size_of_outcome(&outcome).saturating_sub(pending.size);
        if more > 0 {
            if !self.memory.reserve(self.bytes + more) {
                return Err(RequestError::Failed { reason: NO_MEMORY.into() });
            }
            pending.size += more;
            self.bytes += more;
        }
        outcome
    }

    /// A responder has left with a request in hand. It fails, or another responder gets it. Returns the waker of the
    /// requester or of the responder.
    #[must_use]
    pub(crate) fn hand_back(&mut self, key: RequestKey, now: MonotonicTime) -> Option<Waker> {
        self.seen = Some(now);
        let pending = self.in_hand(key, now)?;
        if pending.requeue() {
            self.in_hand -= 1;
            self.queue.push_front(key.slot);
            return self.responders.unpark_first();
        }
        let (origin, waker) = (pending.origin, pending.end(Err(RequestError::ResponderGone)));
        self.in_hand -= 1;
        self.accounts.of(origin).failed += 1;
        waker
    }

    /// A request never reached the responder that it was for. Another one gets it. Returns its waker.
    #[must_use]
    pub(crate) fn put_back(
        &mut self,
        key: RequestKey,
        (payload, headers): (Bytes, Headers),
        now: MonotonicTime,
    ) -> Option<Waker> {
        let pending = self.in_hand(key, now)?;
        pending.put_back(payload, headers);
        self.in_hand -= 1;
        self.queue.push_front(key.slot);
        self.responders.unpark_first()
    }
}
