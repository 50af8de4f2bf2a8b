//! One service: the responders that wait for requests, and the requests that are not answered. Rules only: no lock, no
//! clock (callers pass `now`).
//!
//! At every moment, of the requests of a service, `asked` = `replied` + `failed` + `timed_out` + `refused` + `given_up`
//! + those that are pending.

mod pending;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, RandomState},
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;

use self::pending::{Pending, Slots, Stage};
use crate::{
    error::LimitReached,
    model::{
        Headers, MonotonicTime, NewRequest, Reply, ReplyNotWanted, RequestError, RequestKey,
        TopicName,
    },
    options::BatchLimit,
    stats::{ServiceCounters, ServiceStats},
    topic::{Registration, Reservation, WaiterId, Waiters},
};

/// The reason of a reply that does not fit into the memory of the bus.
const NO_MEMORY: &str = "the server has no memory for the reply";

/// A service.
#[derive(Debug)]
pub(crate) struct Service {
    name: TopicName,
    /// The responders that wait, in order of arrival.
    responders: Waiters,
    last_responder: WaiterId,
    /// When a responder was last heard of.
    seen: MonotonicTime,
    slots: Slots,
    /// The slots of requests that no responder has, the oldest first.
    queue: VecDeque<u32>,
    /// The number of requests without an outcome, and of those that responders have.
    open: usize,
    in_hand: usize,
    counters: ServiceCounters,
    memory: Reservation,
    /// What pending requests take of the memory, in bytes.
    bytes: u64,
    /// No deadline of a request is earlier than this one.
    earliest: Option<MonotonicTime>,
    /// Makes the nonces of tokens: a keyed hash (`SipHash`) of a number that is used once.
    secret: RandomState,
    nonces: u64,
    /// The deadline for which the timer of the bus will call.
    registered: Option<MonotonicTime>,
    is_closed: bool,
    /// Wakers that are no longer needed, to be dropped after the lock is released.
    discarded: Vec<Waker>,
}

/// A request as a responder gets it.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) key: RequestKey,
    pub(crate) payload: Bytes,
    pub(crate) headers: Headers,
    /// How long the requester still waits.
    pub(crate) left: Duration,
}

impl Service {
    /// The number of requests that may wait for a responder.
    pub(crate) const MAX_QUEUED: usize = 1024;
    /// How long a service counts as served after its last responder was heard of: a responder that polls comes and goes.
    pub(crate) const GRACE: Duration = Duration::from_secs(2);
    /// How long a service that nobody uses is kept, with its counters.
    const KEPT: Duration = Duration::from_secs(600);

    pub(crate) fn new(name: TopicName, memory: Reservation, now: MonotonicTime) -> Self {
        Self {
            name,
            responders: Waiters::new(),
            last_responder: 0,
            seen: now,
            slots: Slots::default(),
            queue: VecDeque::new(),
            open: 0,
            in_hand: 0,
            counters: ServiceCounters::default(),
            memory,
            bytes: 0,
            earliest: None,
            secret: RandomState::new(),
            nonces: 0,
            registered: None,
            is_closed: false,
            discarded: Vec::new(),
        }
    }

    /// Whether no responder serves it.
    pub(crate) fn is_absent(&self, now: MonotonicTime) -> bool {
        self.responders.len() == 0 && self.in_hand == 0 && now.since(self.seen) >= Self::GRACE
    }

    /// Whether nobody uses it, and its counters are old.
    pub(crate) fn is_idle(&self, now: MonotonicTime) -> bool {
        self.responders.len() == 0 && self.slots.is_empty() && now.since(self.seen) > Self::KEPT
    }

    pub(crate) fn stats(&self) -> ServiceStats {
        ServiceStats {
            name: self.name.clone(),
            responders: self.responders.len(),
            queued: self.open - self.in_hand,
            in_hand: self.in_hand,
            counters: self.counters,
        }
    }

    /// Queues a request for a responder. Returns the waker of the responder that gets it.
    ///
    /// # Errors
    /// When nobody serves the service, or a limit is reached.
    pub(crate) fn ask(
        &mut self,
        request: NewRequest,
        now: MonotonicTime,
    ) -> Result<(RequestKey, Option<Waker>), RequestError> {
        self.counters.asked += 1;
        self.admit(&request, now).inspect_err(|_| self.counters.refused += 1)?;
        let nonce = self.nonce();
        let pending = Pending::new(request, nonce, now);
        let (size, deadline) = (pending.size, pending.deadline);
        let limit = Self::MAX_QUEUED;
        let slot = self.slots.insert(pending).ok_or(RequestError::TooManyRequests { limit })?;
        self.bytes += size;
        self.open += 1;
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        self.queue.push_back(slot);
        Ok((RequestKey { slot, nonce }, self.responders.unpark_first()))
    }

    /// Counts a request that was refused before it was made.
    pub(crate) fn count_refused(&mut self) {
        self.counters.asked += 1;
        self.counters.refused += 1;
    }

    fn admit(&mut self, request: &NewRequest, now: MonotonicTime) -> Result<(), RequestError> {
        if self.is_closed {
            return Err(RequestError::Closed);
        }
        if self.is_absent(now) {
            return Err(RequestError::NoResponder);
        }
        if self.queue.len() >= Self::MAX_QUEUED {
            return Err(RequestError::TooManyRequests { limit: Self::MAX_QUEUED });
        }
        let size = Pending::size_of(request);
        if !self.memory.reserve(self.bytes + size) {
            return Err(LimitReached::Bytes { limit: self.memory.limit() }.into());
        }
        Ok(())
    }

    fn nonce(&mut self) -> u64 {
        self.nonces += 1;
        self.secret.hash_one(self.nonces)
    }

    /// The outcome of a request, once. Until there is one, it keeps the waker.
    pub(crate) fn poll_outcome(
        &mut self,
        slot: u32,
        waker: &Waker,
    ) -> Poll<Result<Reply, RequestError>> {
        if let Some(pending) = self.slots.get_mut(slot).filter(|pending| !pending.is_done()) {
            self.discarded.extend(pending.park(waker));
            return Poll::Pending;
        }
        Poll::Ready(match self.remove(slot).map(|pending| pending.stage) {
            Some(Stage::Done(outcome)) => outcome,
            _ => Err(RequestError::Closed),
        })
    }

    /// The requester has left before it took the outcome.
    pub(crate) fn give_up(&mut self, slot: u32, now: MonotonicTime) {
        if self.take_open(slot, now) {
            self.counters.given_up += 1;
        }
    }

    /// The requester does not wait any longer. Returns an outcome that is there after all.
    pub(crate) fn time_out(
        &mut self,
        slot: u32,
        now: MonotonicTime,
    ) -> Result<Reply, RequestError> {
        if let Poll::Ready(outcome) = self.poll_outcome(slot, Waker::noop()) {
            return outcome;
        }
        self.take_open(slot, now);
        self.counters.timed_out += 1;
        Err(RequestError::TimedOut)
    }

    /// Removes a request. Returns whether it had no outcome.
    fn take_open(&mut self, slot: u32, now: MonotonicTime) -> bool {
        match self.remove(slot).map(|pending| pending.stage) {
            Some(Stage::Queued) => self.queue.retain(|queued| *queued != slot),
            Some(Stage::InHand) => {
                self.in_hand -= 1;
                self.seen = now;
            }
            Some(Stage::Done(_)) | None => return false,
        }
        self.open -= 1;
        true
    }

    fn remove(&mut self, slot: u32) -> Option<Pending> {
        let mut removed = self.slots.remove(slot)?;
        self.discarded.extend(removed.unpark());
        self.bytes -= removed.size;
        self.memory.trim(self.bytes);
        Some(removed)
    }

    /// A responder joins the queue of those that wait for requests.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) fn join(&mut self, now: MonotonicTime) -> Result<WaiterId, RequestError> {
        if self.is_closed {
            return Err(RequestError::Closed);
        }
        self.seen = now;
        self.last_responder += 1;
        self.responders.join(self.last_responder);
        Ok(self.last_responder)
    }

    /// A responder leaves the queue. Returns the waker of the one that gets the requests instead.
    #[must_use]
    pub(crate) fn leave(&mut self, responder: WaiterId, now: MonotonicTime) -> Option<Waker> {
        self.seen = now;
        self.discarded.extend(self.responders.leave(responder));
        self.wake_responder()
    }

    /// The size of the payload that is handed out next, in bytes.
    pub(crate) fn next_size(&self) -> Option<usize> {
        self.queue.front().and_then(|slot| self.slots.get(*slot)).map(Pending::payload_len)
    }

    fn wake_responder(&mut self) -> Option<Waker> {
        if self.queue.is_empty() { None } else { self.responders.unpark_first() }
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
        self.counters.not_wanted += 1;
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
        self.seen = now;
        if !self.is_in_hand(key, now) {
            self.counters.not_wanted += 1;
            return Err(ReplyNotWanted);
        }
        let reply = self.reserve_reply(key.slot, reply);
        let Some(pending) = self.slots.get_mut(key.slot) else { return Err(ReplyNotWanted) };
        let time = now.since(pending.asked);
        let is_reply = reply.is_ok();
        let waker = pending.end(reply.map_err(|reason| RequestError::Failed { reason }));
        self.in_hand -= 1;
        self.open -= 1;
        if is_reply {
            self.counters.replied += 1;
            self.counters.reply_times.record(time);
        } else {
            self.counters.failed += 1;
        }
        Ok(waker)
    }

    /// Counts a reply until its requester has taken it. One for which there is no memory is a failure.
    fn reserve_reply(
        &mut self,
        slot: u32,
        reply: Result<Reply, Box<str>>,
    ) -> Result<Reply, Box<str>> {
        let Some(pending) = self.slots.get_mut(slot) else { return reply };
        let more = Pending::size_of_reply(&reply).saturating_sub(pending.size);
        if more > 0 {
            if !self.memory.reserve(self.bytes + more) {
                return Err(NO_MEMORY.into());
            }
            pending.size += more;
            self.bytes += more;
        }
        reply
    }

    /// A responder has left with a request in hand. It fails, or another responder gets it. Returns the waker of the
    /// requester or of the responder.
    #[must_use]
    pub(crate) fn hand_back(&mut self, key: RequestKey, now: MonotonicTime) -> Option<Waker> {
        self.seen = now;
        let pending = self.in_hand(key, now)?;
        if pending.requeue() {
            self.in_hand -= 1;
            self.queue.push_front(key.slot);
            return self.responders.unpark_first();
        }
        let waker = pending.end(Err(RequestError::ResponderGone));
        self.in_hand -= 1;
        self.open -= 1;
        self.counters.failed += 1;
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

    /// Ends requests whose time is over, and those that wait although nobody serves. Returns the wakers of their
    /// requesters.
    #[must_use]
    pub(crate) fn run_due(&mut self, now: MonotonicTime) -> Vec<Waker> {
        self.registered = None;
        let mut wakers = Vec::new();
        let is_absent = self.is_absent(now);
        for pending in self.slots.iter_mut() {
            let error = match pending.stage {
                Stage::Done(_) => continue,
                _ if pending.deadline <= now => RequestError::TimedOut,
                Stage::Queued if is_absent => RequestError::NoResponder,
                _ => continue,
            };
            if matches!(pending.stage, Stage::InHand) {
                self.in_hand -= 1;
                self.seen = now;
            }
            self.open -= 1;
            match error {
                RequestError::TimedOut => self.counters.timed_out += 1,
                _ => self.counters.refused += 1,
            }
            wakers.extend(pending.end(Err(error)));
        }
        let slots = &self.slots;
        let is_queued = |slot: &u32| {
            slots.get(*slot).is_some_and(|pending| matches!(pending.stage, Stage::Queued))
        };
        self.queue.retain(is_queued);
        let open = slots.iter().filter(|pending| !pending.is_done());
        self.earliest = open.map(|pending| pending.deadline).min();
        wakers
    }

    /// Wakers to drop after the lock is released.
    pub(crate) fn discarded(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.discarded)
    }

    /// What the timer of the bus has to know, if something is due earlier than it knows.
    pub(crate) fn next_registration(&mut self) -> Option<Registration> {
        let may_be_absent =
            self.responders.len() == 0 && self.in_hand == 0 && !self.queue.is_empty();
        let absent_at = may_be_absent.then(|| self.seen.after(Self::GRACE.into()));
        let at = self.earliest.into_iter().chain(absent_at).min()?;
        if self.registered.is_some_and(|registered| registered <= at) {
            return None;
        }
        Some(Registration { at, previous: self.registered.replace(at) })
    }

    /// Ends the service: all requests fail, and responders get no more. Returns everybody's wakers.
    #[must_use]
    pub(crate) fn close(&mut self) -> Vec<Waker> {
        self.is_closed = true;
        self.queue.clear();
        (self.open, self.in_hand) = (0, 0);
        let mut wakers: Vec<Waker> = self.responders.unpark_all().collect();
        for pending in self.slots.iter_mut().filter(|pending| !pending.is_done()) {
            self.counters.failed += 1;
            wakers.extend(pending.end(Err(RequestError::Closed)));
        }
        wakers
    }
}
