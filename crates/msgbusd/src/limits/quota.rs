//! Something of which there is only so much, and what holds a part of it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::{Notify, futures::OwnedNotified};

/// How much there may be of something, and how much there is.
#[derive(Debug)]
pub(crate) struct Quota {
    limit: usize,
    used: AtomicUsize,
    /// Wakes one waiter when the limit is no longer reached.
    freed: Arc<Notify>,
}

impl Quota {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), freed: Arc::default() })
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

    /// Ready when the limit is no longer reached. Waiters are woken in order, one at a time: each one that
    /// goes on calls [`wake_next`](Self::wake_next), and one that finds the limit reached again waits anew.
    /// One that is dropped instead lets the next one go.
    pub(crate) fn freed(&self) -> OwnedNotified {
        Arc::clone(&self.freed).notified_owned()
    }

    /// Wakes the next waiter, unless the limit is reached: then whoever gives something back does.
    pub(crate) fn wake_next(&self) {
        if !self.is_full() {
            self.freed.notify_one();
        }
    }

    /// Takes so much, if it is there.
    pub(crate) fn take(self: &Arc<Self>, amount: usize) -> Option<QuotaPermit> {
        let mut hold = QuotaPermit { bound: Arc::clone(self), amount: 0 };
        hold.grow(amount).then_some(hold)
    }

    /// Takes so much, even beyond the limit: for what is there already.
    pub(crate) fn take_anyway(self: &Arc<Self>, amount: usize) -> QuotaPermit {
        self.used.fetch_add(amount, Relaxed);
        QuotaPermit { bound: Arc::clone(self), amount }
    }
}

/// A part of a [`Quota`], given back when this is dropped.
#[derive(Debug)]
pub(crate) struct QuotaPermit {
    bound: Arc<Quota>,
    amount: usize,
}

impl QuotaPermit {
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

impl Drop for QuotaPermit {
    fn drop(&mut self) {
        let before = self.bound.used.fetch_sub(self.amount, Relaxed);
        let limit = self.bound.limit;
        if before >= limit && before - self.amount < limit {
            self.bound.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn what_is_held_is_given_back() {
        let bound = Quota::new(10);
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

    #[test]
    fn waiters_go_on_in_order_until_the_limit_is_reached_again() {
        let bound = Quota::new(10);
        let full = bound.take(10).unwrap();
        let mut waiters = [bound.freed(), bound.freed(), bound.freed()].map(Box::pin);
        assert!(waiters.iter_mut().all(|waiter| waiter.now_or_never().is_none()));
        drop(full);
        let woken = |waiter: &mut Pin<Box<OwnedNotified>>| waiter.now_or_never().is_some();
        assert!(!woken(&mut waiters[1]), "one at a time");
        assert!(woken(&mut waiters[0]));
        let _half = bound.take(5).unwrap();
        bound.wake_next();
        assert!(woken(&mut waiters[1]));
        let rest = bound.take(5).unwrap();
        bound.wake_next();
        assert!(!woken(&mut waiters[2]), "there is nothing for it");
        let mut fourth = Box::pin(bound.freed());
        assert!(!woken(&mut fourth));
        drop(rest);
        let [.., third] = waiters;
        drop(third);
        assert!(woken(&mut fourth), "one that leaves lets the next one go");
    }
}
