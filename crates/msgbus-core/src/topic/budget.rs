//! The limit on the bytes of a whole bus, without a counter that every publish contends for.
//!
//! A topic reserves bytes of the [`Budget`] in blocks that grow with it, and spends them by itself. So it
//! touches the shared counter about once for each eighth of its growth.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The bytes that all topics of a bus may hold together.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok()
    }

    /// Takes bytes even beyond the limit.
    fn take_beyond(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    /// Whether most of the bytes are in use.
    fn is_scarce(&self) -> bool {
        self.used() > self.limit / 4 * 3
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

/// The part of a [`Budget`] that one topic holds. Dropping it returns the bytes.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    held: u64,
}

impl Reservation {
    /// The most that is reserved ahead of need, in bytes.
    const MAX_BLOCK: u64 = 1 << 20;

    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, held: 0 }
    }

    /// Bytes held, used or not.
    pub(crate) fn held(&self) -> u64 {
        self.held
    }

    /// The limit of the whole budget, in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.budget.limit()
    }

    /// Ensures that at least `bytes` are held in all. If the budget does not have them, changes nothing and
    /// returns `false`.
    pub(crate) fn reserve(&mut self, bytes: u64) -> bool {
        let Some(missing) = bytes.checked_sub(self.held).filter(|missing| *missing > 0) else {
            return true;
        };
        for wanted in [missing.saturating_add(Self::block(bytes)), missing] {
            if self.budget.take(wanted) {
                self.held += wanted;
                return true;
            }
        }
        false
    }

    /// Ensures that at least `bytes` are held in all, even if the budget does not have them.
    pub(crate) fn reserve_beyond(&mut self, bytes: u64) {
        if let Some(missing) = bytes.checked_sub(self.held) {
            self.budget.take_beyond(missing);
            self.held = bytes;
        }
    }

    /// Whether most of the budget is in use.
    pub(crate) fn is_scarce(&self) -> bool {
        self.budget.is_scarce()
    }

    /// Returns what is held far beyond `bytes`.
    pub(crate) fn trim(&mut self, bytes: u64) {
        let block = Self::block(bytes);
        if self.held > bytes + 2 * block {
            self.budget.give_back(self.held - bytes - block);
            self.held = bytes + block;
        }
    }

    fn block(bytes: u64) -> u64 {
        (bytes / 8).min(Self::MAX_BLOCK)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserves_blocks_and_near_the_limit_the_exact_need() {
        let budget = Budget::new(1000);
        let mut a = Reservation::new(Arc::clone(&budget));
        assert!(a.reserve(800));
        assert_eq!((a.held(), budget.used()), (900, 900));
        assert!(a.reserve(1000), "the block does not fit, the need does");
        assert!(!a.reserve(1001));
        assert_eq!(budget.used(), 1000);

        a.trim(80);
        assert_eq!((a.held(), budget.used()), (90, 90));
        drop(a);
        assert_eq!(budget.used(), 0);
    }
}
