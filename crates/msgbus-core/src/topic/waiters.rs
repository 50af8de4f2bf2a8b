//! Those who wait to pull from one topic, in order of arrival.

use std::{collections::VecDeque, task::Waker};

/// Names a place in the queue; never used twice.
pub(crate) type Ticket = u64;

#[derive(Debug, Default)]
pub(crate) struct Waiters {
    queue: VecDeque<(Ticket, Option<Waker>)>,
}

impl Waiters {
    pub(crate) const fn new() -> Self {
        Self { queue: VecDeque::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Joins the queue at its end, with a ticket higher than all before.
    pub(crate) fn join(&mut self, ticket: Ticket) {
        self.queue.push_back((ticket, None));
    }

    /// Whether nobody is before this one.
    pub(crate) fn is_first(&self, ticket: Ticket) -> bool {
        self.queue.front().is_some_and(|(first, _)| *first == ticket)
    }

    /// Leaves the queue. The waker is to be dropped when no lock is held.
    #[must_use]
    pub(crate) fn leave(&mut self, ticket: Ticket) -> Option<Waker> {
        let place = self.find(ticket)?;
        self.queue.remove(place)?.1
    }

    /// Remembers whom to wake. The waker that this replaces is to be dropped when no lock is held.
    #[must_use]
    pub(crate) fn park(&mut self, ticket: Ticket, waker: &Waker) -> Option<Waker> {
        let place = self.find(ticket)?;
        let (_, parked) = &mut self.queue[place];
        if parked.as_ref().is_some_and(|parked| parked.will_wake(waker)) {
            return None;
        }
        parked.replace(waker.clone())
    }

    /// The waker of the first in the queue: only the first one may take.
    #[must_use]
    pub(crate) fn unpark_first(&mut self) -> Option<Waker> {
        self.queue.front_mut()?.1.take()
    }

    /// The wakers of all: there is nothing to wait for any more.
    pub(crate) fn unpark_all(&mut self) -> impl Iterator<Item = Waker> {
        self.queue.iter_mut().filter_map(|(_, waker)| waker.take())
    }

    /// Tickets rise along the queue.
    fn find(&self, ticket: Ticket) -> Option<usize> {
        self.queue.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()
    }
}
