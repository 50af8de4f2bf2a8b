//! The subscriptions of one topic: where each stands in the log, and which of them sleep.

use std::task::Waker;

use slab::Slab;

use crate::options::LagPolicy;

/// One subscription's place in the log.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// The id from which everything published is accounted for.
    pub(crate) start: u64,
    /// The id of the next message to receive.
    pub(crate) next: u64,
    /// Messages received.
    pub(crate) received: u64,
    /// Messages that were gone before the subscription began and that it has not been told of.
    pub(crate) untold: u64,
    pub(crate) lag: LagPolicy,
    pub(crate) label: Option<Box<str>>,
    /// Where in [`Cursors::parked`] its waker is, if it sleeps.
    parked: ParkedAt,
}

impl Cursor {
    pub(crate) fn new(start: u64, next: u64, lag: LagPolicy, label: Option<Box<str>>) -> Self {
        Self {
            start,
            next,
            received: 0,
            untold: next - start,
            lag,
            label,
            parked: ParkedAt::NOWHERE,
        }
    }
}

/// Names a [`Cursor`] within its topic.
pub(crate) type CursorKey = usize;

/// The waker of a cursor that sleeps.
#[derive(Debug)]
pub(crate) struct Parked {
    key: CursorKey,
    pub(crate) waker: Waker,
}

impl Parked {
    /// For a waker that belongs to no cursor and is about to be woken.
    pub(crate) fn other(waker: Waker) -> Self {
        Self { key: CursorKey::MAX, waker }
    }
}

/// An index in [`Cursors::parked`], good until that generation is taken out. So taking all of them out
/// writes nothing into the cursors.
#[derive(Debug, Clone, Copy)]
struct ParkedAt {
    generation: u64,
    index: usize,
}

impl ParkedAt {
    const NOWHERE: Self = Self { generation: 0, index: usize::MAX };
}

#[derive(Debug, Default)]
pub(crate) struct Cursors {
    slots: Slab<Cursor>,
    parked: Vec<Parked>,
    /// How often all wakers were taken out.
    generation: u64,
}

impl Cursors {
    pub(crate) const fn new() -> Self {
        Self { slots: Slab::new(), parked: Vec::new(), generation: 0 }
    }

    pub(crate) fn insert(&mut self, cursor: Cursor) -> CursorKey {
        self.slots.insert(cursor)
    }

    /// Removes a cursor. Its waker, if it sleeps, is to be dropped when no lock is held: what that
    /// does is up to somebody else's executor.
    #[must_use]
    pub(crate) fn remove(&mut self, key: CursorKey) -> Option<Waker> {
        let waker = self.unpark(key);
        self.slots.remove(key);
        waker
    }

    /// # Panics
    /// When there is no such cursor: a subscription outlives its cursor never.
    pub(crate) fn get_mut(&mut self, key: CursorKey) -> &mut Cursor {
        &mut self.slots[key]
    }

    /// # Panics
    /// As [`get_mut`](Self::get_mut).
    pub(crate) fn get(&self, key: CursorKey) -> &Cursor {
        &self.slots[key]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Cursor> {
        self.slots.iter().map(|(_, cursor)| cursor)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Remembers whom to wake when there is something for this cursor. A waker that this replaces is
    /// to be dropped when no lock is held.
    #[must_use]
    pub(crate) fn park(&mut self, key: CursorKey, waker: &Waker) -> Option<Waker> {
        let Some(index) = self.parked_at(key) else {
            let at = ParkedAt { generation: self.generation, index: self.parked.len() };
            self.slots[key].parked = at;
            self.parked.push(Parked { key, waker: waker.clone() });
            return None;
        };
        let parked = &mut self.parked[index].waker;
        if parked.will_wake(waker) {
            return None;
        }
        Some(std::mem::replace(parked, waker.clone()))
    }

    /// The wakers of all who sleep, in one step however many they are: `spare`, which is empty, takes
    /// their place. To be woken by the caller once it holds no lock.
    #[must_use]
    pub(crate) fn take_parked(&mut self, spare: impl FnOnce() -> Vec<Parked>) -> Vec<Parked> {
        if self.parked.is_empty() {
            return Vec::new();
        }
        self.generation += 1;
        std::mem::replace(&mut self.parked, spare())
    }

    /// Gives back memory that many sleepers have left behind.
    pub(crate) fn shrink(&mut self) {
        if self.parked.capacity() > 4 * self.slots.len().max(16) {
            self.parked.shrink_to(self.slots.len());
        }
    }

    fn parked_at(&self, key: CursorKey) -> Option<usize> {
        let at = self.slots[key].parked;
        (at.generation == self.generation && at.index != usize::MAX).then_some(at.index)
    }

    fn unpark(&mut self, key: CursorKey) -> Option<Waker> {
        let index = self.parked_at(key)?;
        self.slots[key].parked = ParkedAt::NOWHERE;
        let Parked { waker, .. } = self.parked.swap_remove(index);
        if let Some(moved) = self.parked.get(index) {
            let at = ParkedAt { generation: self.generation, index };
            self.slots[moved.key].parked = at;
        }
        Some(waker)
    }
}
