//! One service: the responders that wait for requests, and the requests that are not answered. Rules only: no lock, no
//! clock (callers pass `now`).
//!
//! At every moment, of the requests of a service, `asked` = `replied` + `failed` + `timed_out` + `refused` + `given_up`
//! + those that are pending. A request counts at the bus where it was asked.
//!
//! Of a service that lives in an engine, a request goes to a responder that waits here. If there is none, its requester
//! looks for one at other buses. Meanwhile the request is queued here, if somebody serves here, or else it is *sought*, until
//! somebody serves here, too. It is *away* when another bus has it.

mod announcement;
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

pub(crate) use self::{
    announcement::Announced,
    pending::{Origin, Ticket},
};
use self::{
    announcement::Announcement,
    pending::{Pending, Slots, Stage},
};
use crate::{
    engine::Availability,
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
    /// When a responder was last heard of. `None`: there was none.
    seen: Option<MonotonicTime>,
    /// When a bus was last found that serves it.
    seen_elsewhere: Option<MonotonicTime>,
    /// Tells other buses that the service is served here. `None` if they are not told.
    announcement: Option<Announcement>,
    slots: Slots,
    /// The slots of requests that no responder has, the oldest first.
    queue: VecDeque<u32>,
    /// The number of requests that responders have.
    in_hand: usize,
    counters: ServiceCounters,
    /// Of requests that other buses count.
    foreign: ServiceCounters,
    memory: Reservation,
    /// What pending requests take of the memory, in bytes.
    bytes: u64,
    /// No deadline of a request is earlier than this one.
    earliest: Option<MonotonicTime>,
    /// Makes the nonces of tokens: a keyed hash (`SipHash`) of a number that is used once.
    secret: RandomState,
    /// The last number that was used.
    numbers: u64,
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

/// A request that was asked.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) ticket: Ticket,
    /// The responder that gets it.
    pub(crate) responder: Option<Waker>,
    /// Whether its requester looks for a responder at other buses.
    pub(crate) seeks_others: bool,
}

impl Service {
    /// The number of requests that may wait for a responder.
    pub(crate) const MAX_QUEUED: usize = 1024;
    /// How long a service counts as served after its last responder was heard of: a responder that polls comes and goes.
    pub(crate) const GRACE: Duration = Duration::from_secs(2);
    /// How long a service that nobody uses is kept, with its counters.
    const KEPT: Duration = Duration::from_secs(600);

    pub(crate) fn new(name: TopicName, memory: Reservation) -> Self {
        Self {
            name,
            responders: Waiters::new(),
            last_responder: 0,
            seen: None,
            seen_elsewhere: None,
            announcement: None,
            slots: Slots::default(),
            queue: VecDeque::new(),
            in_hand: 0,
            counters: ServiceCounters::default(),
            foreign: ServiceCounters::default(),
            memory,
            bytes: 0,
            earliest: None,
            secret: RandomState::new(),
            numbers: 0,
            registered: None,
            is_closed: false,
            discarded: Vec::new(),
        }
    }

    /// Whether no responder serves it.
    pub(crate) fn is_absent(&self, now: MonotonicTime) -> bool {
        let is_recent = |seen: MonotonicTime| now.since(seen) < Self::GRACE;
        self.responders.len() == 0 && self.in_hand == 0 && !self.seen.is_some_and(is_recent)
    }

    /// Whether a responder waits for which there is no request.
    pub(crate) fn is_free(&self) -> bool {
        self.responders.len() > self.queue.len()
    }

    /// Whether it is served here, for other buses.
    pub(crate) fn availability(&self, now: MonotonicTime) -> Availability {
        if self.is_closed || self.is_absent(now) {
            Availability::Absent
        } else if self.is_free() {
            Availability::Free
        } else if self.queue.len() >= Self::MAX_QUEUED {
            Availability::Full
        } else {
            Availability::Busy
        }
    }

    /// Whether nobody uses it, and its counters are old, or nobody has ever served it.
    pub(crate) fn is_idle(&self, now: MonotonicTime) -> bool {
        let is_recent = |seen: MonotonicTime| now.since(seen) <= Self::KEPT;
        let mut seen = self.seen.into_iter().chain(self.seen_elsewhere);
        self.responders.len() == 0 && self.slots.is_empty() && !seen.any(is_recent)
    }

    pub(crate) fn stats(&self) -> ServiceStats {
        let mut stats = ServiceStats {
            name: self.name.clone(),
            responders: self.responders.len(),
            queued: 0,
            in_hand: 0,
            away: 0,
            visiting: 0,
            taken: self.foreign.asked,
            counters: self.counters,
        };
        for pending in self.slots.iter() {
            match (&pending.stage, pending.origin) {
                (Stage::Done(_), _) => {}
                (_, Origin::Elsewhere) => stats.visiting += 1,
                (Stage::Queued, _) => stats.queued += 1,
                (Stage::InHand, _) => stats.in_hand += 1,
                (Stage::Sought | Stage::Away, _) => stats.away += 1,
            }
        }
        stats
    }

    fn counters(&mut self, origin: Origin) -> &mut ServiceCounters {
        if origin == Origin::Elsewhere { &mut self.foreign } else { &mut self.counters }
    }

    /// Queues a request for a responder. Returns the waker of the responder that gets it.
    ///
    /// A request that may go to other buses is sought there, if it cannot be queued.
    ///
    /// # Errors
    /// When nobody serves the service, or a limit is reached.
    pub(crate) fn ask(
        &mut self,
        request: NewRequest,
        origin: Origin,
        now: MonotonicTime,
    ) -> Result<Placed, RequestError> {
        self.counters(origin).asked += 1;
        let (for_all, is_free) = (origin == Origin::HereForAll, self.is_free());
        let is_sought = for_all && self.may_queue(now).is_err();
        let admitted = self.admit(&request, is_sought, now).map_err(|error| match error {
            // No responder is given it: its requester asks another bus.
            RequestError::Closed if origin == Origin::Elsewhere => RequestError::NoResponder,
            error => error,
        });
        admitted.inspect_err(|_| self.counters(origin).refused += 1)?;
        let number = self.number();
        let mut pending = Pending::new(request, origin, number, now);
        if is_sought {
            pending.stage = Stage::Sought;
        }
        let (size, deadline) = (pending.size, pending.deadline);
        let limit = Self::MAX_QUEUED;
        let slot = self.slots.insert(pending).ok_or(RequestError::TooManyRequests { limit })?;
        self.bytes += size;
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        let ticket = Ticket { slot, number };
        let responder = if is_sought {
            None
        } else {
            self.queue.push_back(slot);
            self.responders.unpark_first()
        };
        Ok(Placed { ticket, responder, seeks_others: for_all && !is_free })
    }

    /// Whether it depends on other buses.
    pub(crate) fn is_away(&self, ticket: Ticket) -> bool {
        let is_away = |pending: &Pending| matches!(pending.stage, Stage::Sought | Stage::Away);
        self.slots.of(ticket).is_some_and(is_away)
    }

    /// Another bus gets a request. `None` if it may not go there, a responder here has it meanwhile, or it is over.
    pub(crate) fn send_away(&mut self, ticket: Ticket, now: MonotonicTime) -> Option<NewRequest> {
        let may_go = |pending: &&mut Pending| {
            pending.origin == Origin::HereForAll
                && matches!(pending.stage, Stage::Queued | Stage::Sought | Stage::Away)
        };
        let pending = self.slots.of_mut(ticket).filter(may_go)?;
        if matches!(pending.stage, Stage::Queued) {
            self.queue.retain(|queued| *queued != ticket.slot);
        }
        pending.stage = Stage::Away;
        self.seen_elsewhere = Some(now);
        Some(pending.copy(now))
    }

    /// Queues a request that is away, and that no other bus has. Returns the waker of the responder that gets it.
    ///
    /// # Errors
    /// When nobody serves the service here, or as many wait as may. The request is sought.
    pub(crate) fn queue_here(
        &mut self,
        ticket: Ticket,
        now: MonotonicTime,
    ) -> Result<Option<Waker>, RequestError> {
        if !self.is_away(ticket) {
            return Ok(None);
        }
        let may_queue = self.may_queue(now);
        let Some(pending) = self.slots.of_mut(ticket) else { return Ok(None) };
        pending.stage = if may_queue.is_ok() { Stage::Queued } else { Stage::Sought };
        may_queue?;
        self.queue.push_back(ticket.slot);
        Ok(self.responders.unpark_first())
    }

    /// Queues the requests that are sought at other buses, in the order in which they were asked.
    fn queue_sought(&mut self) {
        let room = Self::MAX_QUEUED.saturating_sub(self.queue.len());
        let mut sought: Vec<_> = self.slots.sought().collect();
        sought.sort_unstable_by_key(|ticket| ticket.number);
        for ticket in sought.into_iter().take(room) {
            if let Some(pending) = self.slots.of_mut(ticket) {
                pending.stage = Stage::Queued;
                self.queue.push_back(ticket.slot);
            }
        }
    }

    /// Ends a request that was away. The caller polls for the outcome.
    pub(crate) fn come_back(
        &mut self,
        ticket: Ticket,
        outcome: Result<Reply, RequestError>,
        now: MonotonicTime,
    ) {
        if !self.is_away(ticket) {
            return;
        }
        let is_refusal = outcome.as_ref().is_err_and(RequestError::is_refusal);
        let outcome = self.reserve_reply(ticket.slot, outcome);
        let Some(pending) = self.slots.of_mut(ticket) else { return };
        let time = now.since(pending.asked);
        match &outcome {
            Ok(_) => {
                self.counters.replied += 1;
                self.counters.reply_times.record(time);
            }
            Err(RequestError::TimedOut) => self.counters.timed_out += 1,
            Err(_) if is_refusal => self.counters.refused += 1,
            Err(_) => self.counters.failed += 1,
        }
        self.discarded.extend(pending.end(outcome));
    }

    /// Begins to tell other buses that the service is served here. `None` if they have been told.
    pub(crate) fn announce(&mut self) -> Option<Announced> {
        if self.announcement.is_some() || self.is_closed {
            return None;
        }
        let (announcement, announced) = announcement::new();
        self.announcement = Some(announcement);
        Some(announced)
    }

    /// Counts a request that was refused before it was made.
    pub(crate) fn count_refused(&mut self) {
        self.counters.asked += 1;
        self.counters.refused += 1;
    }

    fn may_queue(&self, now: MonotonicTime) -> Result<(), RequestError> {
        if self.is_closed {
            return Err(RequestError::Closed);
        }
        if self.is_absent(now) {
            return Err(RequestError::NoResponder);
        }
        if self.queue.len() >= Self::MAX_QUEUED {
            return Err(RequestError::TooManyRequests { limit: Self::MAX_QUEUED });
        }
        Ok(())
    }

    fn admit(
        &mut self,
        request: &NewRequest,
        is_sought: bool,
        now: MonotonicTime,
    ) -> Result<(), RequestError> {
        if !is_sought {
            self.may_queue(now)?;
        } else if self.is_closed {
            return Err(RequestError::Closed);
        }
        let size = Pending::size_of(request);
        if !self.memory.reserve(self.bytes + size) {
            return Err(LimitReached::Bytes { limit: self.memory.limit() }.into());
        }
        Ok(())
    }

    /// A number that is used once.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn nonce(&mut self) -> u64 {
        let number = self.number();
        self.secret.hash_one(number)
    }

    /// The outcome of a request, once. Until there is one, it keeps the waker.
    pub(crate) fn poll_outcome(
        &mut self,
        ticket: Ticket,
        waker: &Waker,
    ) -> Poll<Result<Reply, RequestError>> {
        if let Some(pending) = self.slots.of_mut(ticket).filter(|pending| !pending.is_done()) {
            self.discarded.extend(pending.park(waker));
            return Poll::Pending;
        }
        Poll::Ready(match self.remove(ticket).map(|pending| pending.stage) {
            Some(Stage::Done(outcome)) => outcome,
            _ => Err(RequestError::Closed),
        })
    }

    /// The requester has left before it took the outcome.
    pub(crate) fn give_up(&mut self, ticket: Ticket, now: MonotonicTime) {
        if let Some(origin) = self.take_open(ticket, now) {
            self.counters(origin).given_up += 1;
        }
    }

    /// The requester does not wait any longer. Returns an outcome that is there after all.
    pub(crate) fn time_out(
        &mut self,
        ticket: Ticket,
        now: MonotonicTime,
    ) -> Result<Reply, RequestError> {
        if let Poll::Ready(outcome) = self.poll_outcome(ticket, Waker::noop()) {
            return outcome;
        }
        if let Some(origin) = self.take_open(ticket, now) {
            self.counters(origin).timed_out += 1;
        }
        Err(RequestError::TimedOut)
    }

    /// Removes a request. Returns where it was asked, if it had no outcome.
    fn take_open(&mut self, ticket: Ticket, now: MonotonicTime) -> Option<Origin> {
        let removed = self.remove(ticket)?;
        match removed.stage {
            Stage::Sought | Stage::Away => {}
            Stage::Queued => self.queue.retain(|queued| *queued != ticket.slot),
            Stage::InHand => {
                self.in_hand -= 1;
                self.seen = Some(now);
            }
            Stage::Done(_) => return None,
        }
        Some(removed.origin)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Pending> {
        let mut removed = self.slots.remove(ticket)?;
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
        if self.is_absent(now) {
            self.queue_sought();
        }
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
        self.seen = Some(now);
        if !self.is_in_hand(key, now) {
            self.counters.not_wanted += 1;
            return Err(ReplyNotWanted);
        }
        let outcome = reply.map_err(|reason| RequestError::Failed { reason });
        let outcome = self.reserve_reply(key.slot, outcome);
        let Some(pending) = self.slots.get_mut(key.slot) else { return Err(ReplyNotWanted) };
        let (time, origin, is_reply) = (now.since(pending.asked), pending.origin, outcome.is_ok());
        let waker = pending.end(outcome);
        self.in_hand -= 1;
        let counters = self.counters(origin);
        if is_reply {
            counters.replied += 1;
            counters.reply_times.record(time);
        } else {
            counters.failed += 1;
        }
        Ok(waker)
    }

    /// Counts a reply until its requester has taken it. One for which there is no memory is a failure.
    fn reserve_reply(
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
        self.counters(origin).failed += 1;
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

    /// Ends requests whose time is over, and those that wait although nobody serves, unless they may go to other buses.
    /// Returns the wakers of their requesters.
    #[must_use]
    pub(crate) fn run_due(&mut self, now: MonotonicTime) -> Vec<Waker> {
        self.registered = None;
        let mut wakers = Vec::new();
        let is_absent = self.is_absent(now);
        if is_absent {
            wakers.extend(self.announcement.take().and_then(Announcement::end));
        }
        for pending in self.slots.iter_mut() {
            let error = match pending.stage {
                Stage::Done(_) => continue,
                _ if pending.deadline <= now => RequestError::TimedOut,
                Stage::Queued if is_absent && pending.origin == Origin::HereForAll => {
                    pending.stage = Stage::Sought;
                    wakers.extend(pending.unpark());
                    continue;
                }
                Stage::Queued if is_absent => RequestError::NoResponder,
                _ => continue,
            };
            if matches!(pending.stage, Stage::InHand) {
                self.in_hand -= 1;
                self.seen = Some(now);
            }
            let is_foreign = pending.origin == Origin::Elsewhere;
            let counters = if is_foreign { &mut self.foreign } else { &mut self.counters };
            match error {
                RequestError::TimedOut => counters.timed_out += 1,
                _ => counters.refused += 1,
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
        let may_be_absent = self.responders.len() == 0
            && self.in_hand == 0
            && (!self.queue.is_empty() || self.announcement.is_some());
        let absent_at = self.seen.filter(|_| may_be_absent);
        let absent_at = absent_at.map(|seen| seen.after(Self::GRACE.into()));
        let at = self.earliest.into_iter().chain(absent_at).min()?;
        if self.registered.is_some_and(|registered| registered <= at) {
            return None;
        }
        Some(Registration { at, previous: self.registered.replace(at) })
    }

    /// The deadline for which the timer of the bus will call.
    pub(crate) fn registered(&self) -> Option<MonotonicTime> {
        self.registered
    }

    /// Ends the service: all requests fail, and responders get no more. Returns everybody's wakers.
    #[must_use]
    pub(crate) fn close(&mut self) -> Vec<Waker> {
        self.is_closed = true;
        self.queue.clear();
        self.in_hand = 0;
        let mut wakers: Vec<Waker> = self.responders.unpark_all().collect();
        wakers.extend(self.announcement.take().and_then(Announcement::end));
        for pending in self.slots.iter_mut().filter(|pending| !pending.is_done()) {
            let outcome = match (&pending.stage, pending.origin) {
                // No responder was given it: its requester asks another bus.
                (Stage::Queued, Origin::Elsewhere) => RequestError::NoResponder,
                _ => RequestError::Closed,
            };
            let is_foreign = pending.origin == Origin::Elsewhere;
            let counters = if is_foreign { &mut self.foreign } else { &mut self.counters };
            counters.failed += 1;
            wakers.extend(pending.end(Err(outcome)));
        }
        wakers
    }
}
