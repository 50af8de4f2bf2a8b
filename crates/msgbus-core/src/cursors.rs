//! The subscriptions of one topic: where each stands in the log, and which of them sleep.

use std::task::Waker;

use slab::Slab;

/// What a subscription does when messages have left the log before it got to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LagPolicy {
    /// It is told how many, and goes on with the oldest message there is.
    #[default]
    Skip,
    /// It ends with [`RecvError::Lagged`](crate::RecvError::Lagged).
    Disconnect,
}

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
    /// The place in [`Cursors::parked`] while the subscription sleeps.
    parked: Option<usize>,
}

impl Cursor {
    pub(crate) fn new(start: u64, next: u64, lag: LagPolicy, label: Option<Box<str>>) -> Self {
        Self { start, next, received: 0, untold: next - start, lag, label, parked: None }
    }
}

/// Names a [`Cursor`] within its topic.
pub(crate) type CursorKey = usize;

#[derive(Debug, Default)]
pub(crate) struct Cursors {
    cursors: Slab<Cursor>,
    parked: Vec<(CursorKey, Waker)>,
}

impl Cursors {
    pub(crate) const fn new() -> Self {
        Self { cursors: Slab::new(), parked: Vec::new() }
    }

    pub(crate) fn insert(&mut self, cursor: Cursor) -> CursorKey {
        self.cursors.insert(cursor)
    }

    /// Removes a cursor. Its waker, if it sleeps, is to be dropped when no lock is held: what that
    /// does is up to somebody else's executor.
    #[must_use]
    pub(crate) fn remove(&mut self, key: CursorKey) -> Option<Waker> {
        let waker = self.unpark(key);
        self.cursors.remove(key);
        waker
    }

    /// # Panics
    /// When there is no such cursor: a subscription outlives its cursor never.
    pub(crate) fn get_mut(&mut self, key: CursorKey) -> &mut Cursor {
        &mut self.cursors[key]
    }

    /// # Panics
    /// As [`get_mut`](Self::get_mut).
    pub(crate) fn get(&self, key: CursorKey) -> &Cursor {
        &self.cursors[key]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Cursor> {
        self.cursors.iter().map(|(_, cursor)| cursor)
    }

    pub(crate) fn len(&self) -> usize {
        self.cursors.len()
    }

    /// Remembers whom to wake when there is something for this cursor. A waker that this replaces is
    /// to be dropped when no lock is held.
    #[must_use]
    pub(crate) fn park(&mut self, key: CursorKey, waker: &Waker) -> Option<Waker> {
        match self.cursors[key].parked {
            Some(place) if self.parked[place].1.will_wake(waker) => None,
            Some(place) => Some(std::mem::replace(&mut self.parked[place].1, waker.clone())),
            None => {
                self.cursors[key].parked = Some(self.parked.len());
                self.parked.push((key, waker.clone()));
                None
            }
        }
    }

    /// Everyone who sleeps, to be woken by the caller once it holds no lock.
    #[must_use]
    pub(crate) fn unpark_all(&mut self) -> Vec<Waker> {
        if self.parked.is_empty() {
            return Vec::new();
        }
        let parked = std::mem::take(&mut self.parked);
        parked
            .into_iter()
            .map(|(key, waker)| {
                self.cursors[key].parked = None;
                waker
            })
            .collect()
    }

    fn unpark(&mut self, key: CursorKey) -> Option<Waker> {
        let place = self.cursors[key].parked.take()?;
        let (_, waker) = self.parked.swap_remove(place);
        if let Some((moved, _)) = self.parked.get(place) {
            self.cursors[*moved].parked = Some(place);
        }
        Some(waker)
    }
}
