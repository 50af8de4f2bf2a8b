//! What ends by time, and the end of the service.

use std::task::Waker;

use super::{Origin, Service, announcement::Announcement, pending::Stage};
use crate::{
    model::{MonotonicTime, RequestError},
    topic::Registration,
};

impl Service {
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
                    self.has_sought = true;
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
            self.accounts.of(pending.origin).count_error(&error);
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
            self.accounts.of(pending.origin).count_error(&outcome);
            wakers.extend(pending.end(Err(outcome)));
        }
        wakers
    }
}
