//! The requester: asking, and waiting for the outcome.

use std::task::{Poll, Waker};

use super::{
    Origin, Placed, Service, Ticket,
    pending::{Pending, Stage},
};
use crate::{
    error::LimitReached,
    model::{MonotonicTime, NewRequest, Reply, RequestError},
};

impl Service {
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
        self.accounts.of(origin).asked += 1;
        let (for_all, is_free) = (origin == Origin::HereForAll, self.is_free());
        let is_sought = for_all && self.may_queue(now).is_err();
        let admitted = self.admit(&request, is_sought, now).map_err(|error| match error {
            // No responder is given it: its requester asks another bus.
            RequestError::Closed if origin == Origin::Elsewhere => RequestError::NoResponder,
            error => error,
        });
        admitted.inspect_err(|_| self.accounts.of(origin).refused += 1)?;
        let number = self.number();
        let mut pending = Pending::new(request, origin, number, now);
        if is_sought {
            pending.stage = Stage::Sought;
            self.has_sought = true;
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

    pub(super) fn may_queue(&self, now: MonotonicTime) -> Result<(), RequestError> {
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
            self.accounts.of(origin).given_up += 1;
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
            self.accounts.of(origin).timed_out += 1;
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
}
