//! A counter with a limit, and permits for shares of it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::{Notify, futures::OwnedNotified};

/// A limit and the amount in use.
#[derive(Debug)]
pub(crate) struct Quota {
    limit: usize,
    used: AtomicUsize,
    /// Notified when the amount in use falls below the limit.
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

    /// Ready when the amount in use falls below the limit. Waiters are woken in order, one at a time. A woken waiter
    /// that proceeds calls [`wake_next`](Self::wake_next); one that finds the limit reached again waits anew. Dropping
    /// a woken waiter wakes the next one.
    pub(crate) fn freed(&self) -> OwnedNotified {
        Arc::clone(&self.freed).notified_owned()
    }

    /// Wakes the next waiter, unless the limit is reached: then the next permit that is dropped does.
    pub(crate) fn wake_next(&self) {
        if !self.is_full() {
            self.freed.notify_one();
        }
    }

    /// Acquires `amount` if the limit allows it.
    pub(crate) fn try_acquire(self: &Arc<Self>, amount: usize) -> Option<QuotaPermit> {
        let mut permit = QuotaPermit { quota: Arc::clone(self), amount: 0 };
        permit.try_extend(amount).then_some(permit)
    }

    /// Acquires `amount` even beyond the limit, for memory that is allocated already.
    pub(crate) fn acquire_overdraft(self: &Arc<Self>, amount: usize) -> QuotaPermit {
        self.used.fetch_add(amount, Relaxed);
        QuotaPermit { quota: Arc::clone(self), amount }
    }
}

/// A share of a [`Quota`], returned when this is dropped.
#[derive(Debug)]
pub(crate) struct QuotaPermit {
    quota: Arc<Quota>,
    amount: usize,
}

impl QuotaPermit {
    pub(crate) fn amount(&self) -> usize {
        self.amount
    }

    /// Acquires `more` in addition if the limit allows it; otherwise changes nothing.
    pub(crate) fn try_extend(&mut self, more: usize) -> bool {
        let extended = |used: usize| used.checked_add(more).filter(|sum| *sum <= self.quota.limit);
        let is_acquired = self.quota.used.fetch_update(Relaxed, Relaxed, extended).is_ok();
        self.amount += if is_acquired { more } else { 0 };
        is_acquired
    }
}

impl Drop for QuotaPermit {
    fn drop(&mut self) {
        let before = self.quota.used.fetch_sub(self.amount, Relaxed);
        let limit = self.quota.limit;
        if before >= limit && before - self.amount < limit {
            self.quota.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn permits_are_returned_when_dropped() {
        let quota = Quota::new(10);
        let mut one = quota.try_acquire(4).unwrap();
        assert!(quota.try_acquire(7).is_none());
        assert!(one.try_extend(5) && !one.try_extend(2));
        assert_eq!((one.amount(), quota.used(), quota.is_full()), (9, 9, false));
        let beyond = quota.acquire_overdraft(5);
        assert!(quota.is_full() && quota.try_acquire(1).is_none());
        drop(beyond);
        drop(one);
        assert_eq!(quota.used(), 0);
        assert!(quota.try_acquire(10).is_some());
    }

    #[test]
    fn waiters_proceed_in_order_until_the_limit_is_reached_again() {
        let quota = Quota::new(10);
        let full = quota.try_acquire(10).unwrap();
        let mut waiters = [quota.freed(), quota.freed(), quota.freed()].map(Box::pin);
        assert!(waiters.iter_mut().all(|waiter| waiter.now_or_never().is_none()));
        drop(full);
        let woken = |waiter: &mut Pin<Box<OwnedNotified>>| waiter.now_or_never().is_some();
        assert!(!woken(&mut waiters[1]), "one at a time");
        assert!(woken(&mut waiters[0]));
        let _half = quota.try_acquire(5).unwrap();
        quota.wake_next();
        assert!(woken(&mut waiters[1]));
        let rest = quota.try_acquire(5).unwrap();
        quota.wake_next();
        assert!(!woken(&mut waiters[2]), "the limit is reached");
        let mut fourth = Box::pin(quota.freed());
        assert!(!woken(&mut fourth));
        drop(rest);
        let [.., third] = waiters;
        drop(third);
        assert!(woken(&mut fourth), "dropping a woken waiter wakes the next");
    }
}
