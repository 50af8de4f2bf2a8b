//! The requests of a service that are not answered.

use std::{mem, task::Waker};

use bytes::Bytes;

use crate::model::{Headers, MonotonicTime, NewRequest, Reply, RequestError};

/// A request that is not answered, or whose requester has not taken the outcome.
#[derive(Debug)]
pub(super) struct Pending {
    /// That of its ticket.
    number: u64,
    /// By which a responder has it.
    nonce: u64,
    pub(super) stage: Stage,
    /// Empty once it was handed out, unless it may be handed out again.
    payload: Bytes,
    headers: Headers,
    /// What it takes of the memory of the bus, in bytes.
    pub(super) size: u64,
    pub(super) asked: MonotonicTime,
    pub(super) deadline: MonotonicTime,
    pub(super) may_repeat: bool,
    /// Where it was asked.
    pub(super) origin: Origin,
    /// The task of the requester.
    waker: Option<Waker>,
}

/// Identifies a request for who has asked it. A slot is used again, a number is not: a search may still run when its request
/// is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(super) slot: u32,
    pub(super) number: u64,
}

/// Where a request was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// At this bus.
    Here,
    /// At this bus, and it may go to other buses.
    HereForAll,
    /// At another bus, which counts it.
    Elsewhere,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Its requester looks for a responder at other buses. None has it.
    Sought,
    /// Another bus has it, or had it and has refused it.
    Away,
    /// It waits for a responder.
    Queued,
    /// A responder has it.
    InHand,
    /// The requester has to take the outcome.
    Done(Result<Reply, RequestError>),
}

impl Pending {
    /// What a request takes besides its payload and headers, in bytes.
    const OVERHEAD: u64 = 256;

    pub(super) fn new(
        request: NewRequest,
        origin: Origin,
        number: u64,
        now: MonotonicTime,
    ) -> Self {
        Self {
            number,
            nonce: 0,
            stage: Stage::Queued,
            origin,
            size: Self::size_of(&request),
            asked: now,
            deadline: now.after(request.timeout.into()),
            may_repeat: request.may_repeat,
            payload: request.payload,
            headers: request.headers,
            waker: None,
        }
    }

    /// What a request would take of the memory of the bus, in bytes.
    pub(super) fn size_of(request: &NewRequest) -> u64 {
        request.payload.len() as u64 + request.headers.accounted_size() + Self::OVERHEAD
    }

    /// What an outcome would take, in bytes.
    pub(super) fn size_of_outcome(outcome: &Result<Reply, RequestError>) -> u64 {
        let content = match outcome {
            Ok(reply) => reply.payload.len() as u64 + reply.headers.accounted_size(),
            Err(RequestError::Failed { reason }) => reason.len() as u64,
            Err(_) => 0,
        };
        content + Self::OVERHEAD
    }

    /// Whether a responder has it by this nonce, and its requester waits.
    pub(super) fn is_in_hand(&self, nonce: u64, now: MonotonicTime) -> bool {
        self.nonce == nonce && matches!(self.stage, Stage::InHand) && self.deadline > now
    }

    /// The request as another bus gets it.
    pub(super) fn copy(&self, now: MonotonicTime) -> NewRequest {
        NewRequest {
            payload: self.payload.clone(),
            headers: self.headers.clone(),
            timeout: self.deadline.since(now),
            may_repeat: self.may_repeat,
        }
    }

    pub(super) fn payload_len(&self) -> usize {
        self.payload.len()
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done(_))
    }

    /// Hands the request to a responder.
    pub(super) fn hand(&mut self, nonce: u64) -> (Bytes, Headers) {
        self.nonce = nonce;
        self.stage = Stage::InHand;
        if self.may_repeat {
            (self.payload.clone(), self.headers.clone())
        } else {
            (mem::take(&mut self.payload), mem::take(&mut self.headers))
        }
    }

    /// Queues the request again, if it may be handed out twice.
    pub(super) fn requeue(&mut self) -> bool {
        if self.may_repeat {
            self.stage = Stage::Queued;
        }
        self.may_repeat
    }

    /// Queues the request again as it was before it was handed out.
    pub(super) fn put_back(&mut self, payload: Bytes, headers: Headers) {
        (self.payload, self.headers, self.stage) = (payload, headers, Stage::Queued);
    }

    /// Keeps the waker of the requester. Returns the waker that it replaces.
    #[must_use]
    pub(super) fn park(&mut self, waker: &Waker) -> Option<Waker> {
        if self.waker.as_ref().is_some_and(|parked| parked.will_wake(waker)) {
            return None;
        }
        self.waker.replace(waker.clone())
    }

    #[must_use]
    pub(super) fn unpark(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// Sets the outcome. Returns the waker of the requester.
    pub(super) fn end(&mut self, outcome: Result<Reply, RequestError>) -> Option<Waker> {
        self.stage = Stage::Done(outcome);
        self.waker.take()
    }
}

/// Requests by the number of their slot.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Option<Pending>>,
    free: Vec<u32>,
}

impl Slots {
    /// The number of free slots that are always kept.
    const SPARE: usize = 256;

    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    /// Adds a request, if there are not 2^32 of them.
    pub(super) fn insert(&mut self, pending: Pending) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(pending);
            return Some(slot);
        }
        let slot = u32::try_from(self.slots.len()).ok()?;
        self.slots.push(Some(pending));
        Some(slot)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Pending> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Pending> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn of(&self, ticket: Ticket) -> Option<&Pending> {
        self.get(ticket.slot).filter(|pending| pending.number == ticket.number)
    }

    pub(super) fn of_mut(&mut self, ticket: Ticket) -> Option<&mut Pending> {
        self.get_mut(ticket.slot).filter(|pending| pending.number == ticket.number)
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Pending> {
        let slot = self.slots.get_mut(ticket.slot as usize)?;
        let removed = slot.take_if(|pending| pending.number == ticket.number)?;
        self.free.push(ticket.slot);
        // What many requests at once have needed is not kept for ever.
        if self.is_empty() {
            *self = Self::default();
        } else if self.free.len() > Self::SPARE.max(self.slots.len() / 4 * 3) {
            self.trim();
        }
        Some(removed)
    }

    /// Frees empty slots at the end. The others wait until the requests at the end are over.
    fn trim(&mut self) {
        let last = self.slots.iter().rposition(Option::is_some).unwrap_or(0);
        // So that it is worth a walk over the free ones.
        if last < self.slots.len() / 2 {
            self.slots.truncate(last + 1);
            self.slots.shrink_to(2 * (last + 1));
            let len = self.slots.len();
            self.free.retain(|slot| (*slot as usize) < len);
            self.free.shrink_to(len);
        }
    }

    /// The requests that are sought at other buses.
    pub(super) fn sought(&self) -> impl Iterator<Item = Ticket> {
        let slots = self.slots.iter().zip(0..);
        slots.filter_map(|(pending, slot)| {
            let pending = pending.as_ref()?;
            let number = pending.number;
            matches!(pending.stage, Stage::Sought).then_some(Ticket { slot, number })
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Pending> {
        self.slots.iter().flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Pending> {
        self.slots.iter_mut().flatten()
    }
}
