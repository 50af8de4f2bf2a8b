//! The subscriptions of one topic: the position of each in the log, and the wakers of those that sleep.

use std::{sync::Arc, task::Waker};

use slab::Slab;

use super::sequence::Ordinal;
use crate::options::LagPolicy;

/// The position of one subscription in the log.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// The first message that the subscription asked for. Every message from here on is received, missed or
    /// pending.
    pub(crate) start: Ordinal,
    /// The next message to receive.
    pub(crate) next: Ordinal,
    /// Its id, or a lower one that no message has.
    pub(crate) next_id: u64,
    /// Messages received.
    pub(crate) received: u64,
    /// Messages that had left before the subscription began and that have not been reported to it.
    pub(crate) pending_gap: u64,
    pub(crate) lag: LagPolicy,
    pub(crate) label: Option<Arc<str>>,
    /// The index of its waker in [`Cursors::parked`] while it sleeps.
    parked: ParkedAt,
}

impl Cursor {
    pub(crate) fn new(
        start: Ordinal,
        (next, next_id): (Ordinal, u64),
        lag: LagPolicy,
        label: Option<Arc<str>>,
    ) -> Self {
        Self {
            start,
            next,
            next_id,
            received: 0,
            pending_gap: next.since(start),
            lag,
            label,
            parked: ParkedAt::NOWHERE,
        }
    }
}

/// Identifies a [`Cursor`] within its topic.
pub(crate) type CursorKey = usize;

/// The waker of a sleeping consumer.
#[derive(Debug)]
pub(crate) struct Parked {
    key: CursorKey,
    pub(crate) waker: Waker,
}

impl Parked {
    /// A waker that belongs to a waiting pull and not to a cursor.
    pub(crate) fn waiter(waker: Waker) -> Self {
        Self { key: CursorKey::MAX, waker }
    }
}

/// An index in [`Cursors::parked`]. It is valid for one generation, so that taking all wakers out does not
/// have to write to every cursor.
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
        if self.slots.capacity() == 0 {
            // Most topics that somebody follows have one subscription. A slab or a vector would begin with room for four.
            self.slots.reserve_exact(1);
            self.parked.reserve_exact(1);
        }
        self.slots.insert(cursor)
    }

    /// Removes a cursor. Returns its waker, to be dropped after the lock is released: the drop may run code
    /// of another executor.
    #[must_use]
    pub(crate) fn remove(&mut self, key: CursorKey) -> Option<Waker> {
        let waker = self.unpark(key);
        self.slots.remove(key);
        waker
    }

    /// # Panics
    /// If the cursor is gone. A subscription never outlives its cursor.
    pub(crate) fn get_mut(&mut self, key: CursorKey) -> &mut Cursor {
        &mut self.slots[key]
    }

    /// # Panics
    /// If the cursor is gone. A subscription never outlives its cursor.
    pub(crate) fn get(&self, key: CursorKey) -> &Cursor {
        &self.slots[key]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Cursor> {
        self.slots.iter().map(|(_, cursor)| cursor)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (CursorKey, &Cursor)> {
        self.slots.iter()
    }

    pub(crate) fn any_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The number of those that wait for more.
    pub(crate) fn asleep(&self) -> usize {
        self.parked.len()
    }

    /// Stores the waker of a cursor. Returns the waker that it replaces, to be dropped after the lock is
    /// released.
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

    /// Takes all wakers, in one step whatever their number, and puts the empty vector `spare` in their place.
    /// The caller wakes them after it has released the lock.
    #[must_use]
    pub(crate) fn take_parked(&mut self, spare: impl FnOnce() -> Vec<Parked>) -> Vec<Parked> {
        if self.parked.is_empty() {
            return Vec::new();
        }
        self.generation += 1;
        std::mem::replace(&mut self.parked, spare())
    }

    /// Frees memory that was needed for many sleepers.
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
