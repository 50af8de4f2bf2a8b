//! Which consumers to wake after a topic has changed.

use std::task::Waker;

use super::{State, Topic, cursors::Parked, waiters::Waiters};

/// The consumers to wake after a topic's lock is released.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    /// Subscribers, and the pulls that wait first in their groups.
    pub(crate) parked: Vec<Parked>,
    /// The plain pull that waits first.
    pub(crate) waiter: Option<Waker>,
}

impl Topic {
    /// Takes the wakers of all consumers that the latest change concerns: all subscribers and the first
    /// waiting pull, or all waiting pulls when the topic has ended. `spare` returns an empty vector, which
    /// replaces that of the parked subscribers.
    #[inline]
    pub(crate) fn take_wakers(&mut self, spare: impl FnOnce() -> Vec<Parked>) -> Wakers {
        if self.consumers.may_sleep() { self.wake_consumers(spare) } else { Wakers::default() }
    }

    /// Whether there are many subscribers, and most of them do not wait for more yet. Never in a topic with room for few messages.
    pub(crate) fn is_busy(&self) -> bool {
        /// Fewer take little time.
        const MANY: usize = 32;
        /// More do not come while messages gather.
        const MANY_MESSAGES: usize = 1000;
        let cursors = &self.consumers.tables().cursors;
        let is_roomy = self.settings.max_messages >= MANY_MESSAGES;
        is_roomy && cursors.len() >= MANY && 2 * cursors.asleep() < cursors.len()
    }

    // Apart, so that a publish that wakes nobody does not pay for its stack frame.
    #[inline(never)]
    fn wake_consumers(&mut self, spare: impl FnOnce() -> Vec<Parked>) -> Wakers {
        let consumers = self.consumers.tables_mut();
        let mut wakers =
            Wakers { parked: consumers.cursors.take_parked(spare), ..Wakers::default() };
        match self.state {
            State::Open => {
                wakers.waiter = consumers.waiters.unpark_first();
                let first = consumers.group_queues().filter_map(Waiters::unpark_first);
                wakers.parked.extend(first.map(Parked::waiter));
            }
            State::Closed | State::Deleted => {
                wakers.parked.extend(consumers.waiters.unpark_all().map(Parked::waiter));
                let all = consumers.group_queues().flat_map(Waiters::unpark_all);
                wakers.parked.extend(all.map(Parked::waiter));
                wakers.parked.extend(consumers.watchers.unpark_all().map(Parked::waiter));
            }
        }
        wakers
    }
}
