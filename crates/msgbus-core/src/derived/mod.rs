//! The rules of a derived log: the messages of all topics that match a pattern, in one order.
//!
//! It holds references to messages, which their topics keep, and cursors over them. Its ids are dense. A message that is
//! gone when a cursor reaches its reference counts as missed. As in `topic`, there is no lock and no clock here.

mod reference;
mod subscribe;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub(crate) use self::{
    reference::{Reference, Stored},
    subscribe::{Pages, Reader, Step},
};
use crate::{
    model::MonotonicTime,
    stats::{Counters, PatternStats, SubscriberStats, SubscriptionStats},
    topic::{CursorKey, Cursors, Parked, Reservation},
};

/// The references to the messages of a pattern, and the cursors over them.
#[derive(Debug)]
pub(crate) struct DerivedLog {
    references: VecDeque<Reference>,
    /// The id of the first reference, or of the next one if there is none.
    first_id: u64,
    /// The lowest id that was ever given.
    origin: u64,
    /// The most references that it holds.
    capacity: usize,
    reservation: Reservation,
    cursors: Cursors,
    counters: Counters,
    state: State,
    /// Whether it begins with what its topics retained when somebody asked for that.
    is_filled: bool,
    /// Whether a reference was left out or dropped for lack of room, so that there may be retained messages before the
    /// first one.
    is_cut: bool,
    /// Since when it has no cursor. `None` while it has one.
    unused_since: Option<MonotonicTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The bus is closed. What is referred to can still be received.
    Closed,
    /// It is no longer fed. Whoever still holds it must look the pattern up again.
    Dropped,
}

impl DerivedLog {
    /// The id of the first message that is published. There is room for ids of earlier messages before it, and all ids are
    /// exact in a 64-bit float.
    const FIRST_ID: u64 = 1 << 40;
    /// What a log adds to the size of the bus besides its references, in bytes.
    const OVERHEAD: u64 = 1024;

    pub(crate) fn new(capacity: usize, reservation: Reservation, now: MonotonicTime) -> Self {
        Self {
            references: VecDeque::new(),
            first_id: Self::FIRST_ID,
            origin: Self::FIRST_ID,
            capacity: capacity.max(1),
            reservation,
            cursors: Cursors::new(),
            counters: Counters::default(),
            state: State::Open,
            is_filled: false,
            is_cut: false,
            unused_since: Some(now),
        }
    }

    /// The id of the next message.
    pub(crate) fn next_id(&self) -> u64 {
        self.first_id + self.references.len() as u64
    }

    pub(crate) fn is_filled(&self) -> bool {
        self.is_filled
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.state == State::Dropped
    }

    /// How many references it holds.
    pub(crate) fn len(&self) -> usize {
        self.references.len()
    }

    /// How many references it may hold in all.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Appends a reference to a message that has become visible. Without room the oldest one is dropped.
    #[inline]
    pub(crate) fn push(&mut self, reference: Reference) {
        if self.state == State::Dropped {
            return;
        }
        while self.references.len() >= self.capacity || !self.reserve(1) {
            if !self.drop_oldest() {
                self.reservation.reserve_beyond(Self::size(1));
                break;
            }
        }
        self.references.push_back(reference);
    }

    fn drop_oldest(&mut self) -> bool {
        let dropped = self.references.pop_front().is_some();
        self.first_id += u64::from(dropped);
        self.is_cut |= dropped;
        dropped
    }

    /// Puts references before all others, in their order, once. Those that have no room are left out, the first ones.
    /// `is_cut` says whether some were left out before.
    /// Returns those, to be dropped after the lock is released.
    pub(crate) fn fill(&mut self, mut earlier: Vec<Reference>, is_cut: bool) -> Vec<Reference> {
        if self.is_filled || self.state == State::Dropped {
            return earlier;
        }
        self.is_filled = true;
        while self.references.len() < self.capacity
            && self.reserve(1)
            && let Some(reference) = earlier.pop()
        {
            self.references.push_front(reference);
            self.first_id -= 1;
        }
        self.is_cut |= is_cut || !earlier.is_empty();
        self.origin = self.origin.min(self.first_id);
        earlier
    }

    fn size(references: usize) -> u64 {
        Self::OVERHEAD + references as u64 * Reference::SIZE
    }

    /// Reserves memory for more references.
    #[inline]
    fn reserve(&mut self, more: usize) -> bool {
        self.reservation.reserve(Self::size(self.references.len() + more))
    }

    /// Takes the wakers of all cursors that sleep.
    #[inline]
    pub(crate) fn take_parked(&mut self, spare: impl FnOnce() -> Vec<Parked>) -> Vec<Parked> {
        self.cursors.take_parked(spare)
    }

    /// Accepts no more cursors: what there is can still be received.
    pub(crate) fn close(&mut self) {
        if self.state == State::Open {
            self.state = State::Closed;
        }
    }

    /// Ends a log that nobody follows. Returns its references, to be dropped after the lock is released.
    #[must_use]
    pub(crate) fn end(&mut self) -> VecDeque<Reference> {
        self.first_id = self.next_id();
        self.state = State::Dropped;
        self.reservation.trim(0);
        std::mem::take(&mut self.references)
    }

    /// Since when nobody follows it.
    pub(crate) fn unused_since(&self) -> Option<MonotonicTime> {
        self.unused_since
    }

    /// Drops references to messages that are gone, from the front up to the first cursor, and frees memory.
    pub(crate) fn sweep(&mut self, now: MonotonicTime) {
        let needed = self.cursors.iter().map(|cursor| cursor.next_id).min().unwrap_or(u64::MAX);
        while self.first_id < needed
            && self.references.front().is_some_and(|first| !first.may_be_kept(now))
        {
            self.references.pop_front();
            self.first_id += 1;
        }
        if self.references.capacity() > 64 && self.references.len() < self.references.capacity() / 4
        {
            self.references.shrink_to(self.references.len() * 2);
        }
        self.cursors.shrink();
        self.reservation.trim(Self::size(self.references.len()));
    }

    pub(crate) fn subscription_stats(&self, key: CursorKey) -> SubscriptionStats {
        let cursor = self.cursors.get(key);
        let pending = self.next_id() - cursor.next_id.max(self.first_id);
        let published = self.next_id() - cursor.start.number();
        let missed = published - cursor.received - pending;
        SubscriptionStats { received: cursor.received, missed, pending }
    }

    pub(crate) fn stats(&self) -> PatternStats {
        let subscriber = |(key, cursor): (CursorKey, &crate::topic::Cursor)| SubscriberStats {
            label: cursor.label.clone(),
            next_id: cursor.next_id.max(self.first_id),
            stats: self.subscription_stats(key),
        };
        PatternStats {
            first_id: self.first_id,
            next_id: self.next_id(),
            counters: self.counters,
            subscribers: self.cursors.entries().map(subscriber).collect(),
        }
    }

    /// What its subscriptions have received and missed, and how many they are.
    pub(crate) fn totals(&self) -> (Counters, usize) {
        (self.counters, self.cursors.len())
    }
}
