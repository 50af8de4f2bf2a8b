//! The pulls that wait on one topic, in order of arrival.

use std::{collections::VecDeque, task::Waker};

/// Identifies a waiting pull within its topic. The topic never uses one twice.
pub(crate) type WaiterId = u64;

#[derive(Debug, Default)]
pub(crate) struct Waiters {
    /// Ids rise along the queue.
    queue: VecDeque<(WaiterId, Option<Waker>)>,
}

impl Waiters {
    pub(crate) const fn new() -> Self {
        Self { queue: VecDeque::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Joins the queue at its end. `waiter` is higher than all ids before it.
    pub(crate) fn join(&mut self, waiter: WaiterId) {
        self.queue.push_back((waiter, None));
    }

    pub(crate) fn is_first(&self, waiter: WaiterId) -> bool {
        self.queue.front().is_some_and(|(first, _)| *first == waiter)
    }

    /// Leaves the queue. Returns the waker, to be dropped after the lock is released.
    #[must_use]
    pub(crate) fn leave(&mut self, waiter: WaiterId) -> Option<Waker> {
        let index = self.find(waiter)?;
        self.queue.remove(index)?.1
    }

    /// Stores a waker. Returns the waker that it replaces, to be dropped after the lock is released.
    #[must_use]
    pub(crate) fn park(&mut self, waiter: WaiterId, waker: &Waker) -> Option<Waker> {
        let index = self.find(waiter)?;
        let (_, parked) = &mut self.queue[index];
        if parked.as_ref().is_some_and(|parked| parked.will_wake(waker)) {
            return None;
        }
        parked.replace(waker.clone())
    }

    /// Takes the waker of the first in the queue. Only the first may take messages.
    #[must_use]
    pub(crate) fn unpark_first(&mut self) -> Option<Waker> {
        self.queue.front_mut()?.1.take()
    }

    /// Takes all wakers, when no message can come any more.
    pub(crate) fn unpark_all(&mut self) -> impl Iterator<Item = Waker> {
        self.queue.iter_mut().filter_map(|(_, waker)| waker.take())
    }

    fn find(&self, waiter: WaiterId) -> Option<usize> {
        self.queue.binary_search_by_key(&waiter, |(waiter, _)| *waiter).ok()
    }
}
