//! One service: the responders that wait for requests, and the requests that are not answered. Rules only: no lock, no
//! clock (callers pass `now`).
//!
//! At every moment, of the requests of a service, `asked` = `replied` + `failed` + `timed_out` + `refused` + `given_up`
//! + those that are pending. A request counts at the bus where it was asked.
//!
//! Of a service that lives in an engine, a request goes to a responder that waits here. If there is none, its requester
//! looks for one at other buses. Meanwhile the request is queued here, if somebody serves here, or else it is *sought*, until
//! somebody serves here, too. It is *away* when another bus has it.

mod accounts;
mod announcement;
mod ask;
mod due;
mod elsewhere;
mod pending;
mod reply;
mod serve;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, hash::RandomState, task::Waker, time::Duration};

use bytes::Bytes;

use self::{
    accounts::Accounts,
    announcement::Announcement,
    pending::{Pending, Slots},
};
pub(crate) use self::{
    announcement::Announced,
    pending::{Origin, Ticket},
};
use crate::{
    engine::Availability,
    model::{Headers, MonotonicTime, RequestKey, TopicName},
    topic::{Reservation, WaiterId, Waiters},
};

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
    /// Whether there may be requests that are sought at other buses.
    has_sought: bool,
    /// The number of requests that responders have.
    in_hand: usize,
    accounts: Accounts,
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
            has_sought: false,
            in_hand: 0,
            accounts: Accounts::default(),
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

    /// Begins to tell other buses that the service is served here. `None` if they have been told.
    pub(crate) fn announce(&mut self) -> Option<Announced> {
        if self.announcement.is_some() || self.is_closed {
            return None;
        }
        let (announcement, announced) = announcement::new();
        self.announcement = Some(announcement);
        Some(announced)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Pending> {
        let mut removed = self.slots.remove(ticket)?;
        self.discarded.extend(removed.unpark());
        self.bytes -= removed.size;
        self.memory.trim(self.bytes);
        Some(removed)
    }

    /// A number that is used once.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Wakers to drop after the lock is released.
    pub(crate) fn discarded(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.discarded)
    }
}
