//! Something of which there is only so much, and what holds a part of it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// How much there may be of something, and how much there is.
#[derive(Debug)]
pub(crate) struct Bound {
    limit: usize,
    used: AtomicUsize,
}

impl Bound {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used() >= self.limit
    }

    /// Takes so much, if it is there.
    pub(crate) fn take(self: &Arc<Self>, amount: usize) -> Option<Hold> {
        let mut hold = Hold { bound: Arc::clone(self), amount: 0 };
        hold.grow(amount).then_some(hold)
    }

    /// Takes so much, even beyond the limit: for what is there already.
    pub(crate) fn take_anyway(self: &Arc<Self>, amount: usize) -> Hold {
        self.used.fetch_add(amount, Relaxed);
        Hold { bound: Arc::clone(self), amount }
    }
}

/// A part of a [`Bound`], given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    bound: Arc<Bound>,
    amount: usize,
}

impl Hold {
    pub(crate) fn amount(&self) -> usize {
        self.amount
    }

    /// Takes so much more, if it is there; else nothing changes.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let grown = |used: usize| used.checked_add(more).filter(|sum| *sum <= self.bound.limit);
        let is_there = self.bound.used.fetch_update(Relaxed, Relaxed, grown).is_ok();
        self.amount += if is_there { more } else { 0 };
        is_there
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.bound.used.fetch_sub(self.amount, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back() {
        let bound = Bound::new(10);
        let mut one = bound.take(4).unwrap();
        assert!(bound.take(7).is_none());
        assert!(one.grow(5) && !one.grow(2));
        assert_eq!((one.amount(), bound.used(), bound.is_full()), (9, 9, false));
        let beyond = bound.take_anyway(5);
        assert!(bound.is_full() && bound.take(1).is_none());
        drop(beyond);
        drop(one);
        assert_eq!(bound.used(), 0);
        assert!(bound.take(10).is_some());
    }
}
