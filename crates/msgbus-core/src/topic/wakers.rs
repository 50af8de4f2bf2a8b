//! Who is to be woken after a change of a topic.

use std::task::Waker;

use super::{Life, Topic, cursors::Parked};

/// Who is to be woken after a change of a topic, once its lock is released.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    /// Subscribers.
    pub(crate) parked: Vec<Parked>,
    /// The next of those who wait to pull.
    pub(crate) waiter: Option<Waker>,
}

impl Topic {
    /// The wakers of everyone who waits for what has just happened: of all who subscribe and, of those
    /// who wait to pull, of the first, or of all if this is the end. To be woken when the lock is released.
    #[inline]
    pub(crate) fn take_wakers(&mut self, spare: impl FnOnce() -> Vec<Parked>) -> Wakes {
        if self.audience.is_nobody() {
            return Wakes::default();
        }
        let mut wakes =
            Wakes { parked: self.audience.cursors.take_parked(spare), ..Wakes::default() };
        match self.life {
            Life::Open => wakes.waiter = self.audience.waiters.unpark_first(),
            Life::Closed | Life::Deleted => {
                wakes.parked.extend(self.audience.waiters.unpark_all().map(Parked::other));
            }
        }
        wakes
    }
}
