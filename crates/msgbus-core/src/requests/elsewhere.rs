//! Requests that go to other buses.

use std::task::Waker;

use super::{
    Origin, Service, Ticket,
    pending::{Pending, Stage},
};
use crate::model::{MonotonicTime, NewRequest, Reply, RequestError};

impl Service {
    /// Whether it depends on other buses.
    pub(crate) fn is_elsewhere(&self, ticket: Ticket) -> bool {
        let is_elsewhere = |pending: &Pending| matches!(pending.stage, Stage::Sought | Stage::Away);
        self.slots.of(ticket).is_some_and(is_elsewhere)
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
        if !self.is_elsewhere(ticket) {
            return Ok(None);
        }
        let may_queue = self.may_queue(now);
        let Some(pending) = self.slots.of_mut(ticket) else { return Ok(None) };
        if let Err(error) = may_queue {
            pending.stage = Stage::Sought;
            self.has_sought = true;
            return Err(error);
        }
        pending.stage = Stage::Queued;
        self.queue.push_back(ticket.slot);
        Ok(self.responders.unpark_first())
    }

    /// Queues the requests that are sought at other buses, as many as may wait, in the order in which they were asked.
    pub(super) fn queue_sought(&mut self) {
        let room = Self::MAX_QUEUED.saturating_sub(self.queue.len());
        if !self.has_sought || room == 0 {
            return;
        }
        let mut sought: Vec<_> = self.slots.sought().collect();
        sought.sort_unstable_by_key(|ticket| ticket.number);
        self.has_sought = sought.len() > room;
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
        if !self.is_elsewhere(ticket) {
            return;
        }
        let outcome = self.reserve_reply(ticket.slot, outcome);
        let Some(pending) = self.slots.of_mut(ticket) else { return };
        self.accounts.own.count(&outcome, now.since(pending.asked));
        self.discarded.extend(pending.end(outcome));
    }
}
