//! The consumers of one topic: subscriptions and waiting pulls.
//!
//! Most topics have none. Memory is allocated when the first consumer arrives, and freed by a sweep after
//! the last one has left.

use super::{cursors::Cursors, waiters::Waiters};

#[derive(Debug, Default)]
pub(crate) struct Consumers(Option<Box<Tables>>);

#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) cursors: Cursors,
    pub(crate) waiters: Waiters,
}

static EMPTY: Tables = Tables { cursors: Cursors::new(), waiters: Waiters::new() };

impl Consumers {
    /// Whether there is no consumer.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.as_deref().is_none_or(Tables::is_empty)
    }

    #[inline]
    pub(crate) fn tables(&self) -> &Tables {
        self.0.as_deref().unwrap_or(&EMPTY)
    }

    /// Whether there is no memory for consumers.
    #[cfg(test)]
    pub(crate) fn is_unallocated(&self) -> bool {
        self.0.is_none()
    }

    /// Whether any consumer may have left a waker.
    #[inline]
    pub(crate) fn may_sleep(&self) -> bool {
        self.0
            .as_deref()
            .is_some_and(|tables| tables.cursors.any_parked() || tables.waiters.len() > 0)
    }

    /// The tables, allocated on first use.
    #[inline]
    pub(crate) fn tables_mut(&mut self) -> &mut Tables {
        self.0.get_or_insert_default()
    }

    /// Frees the tables once the last consumer has left.
    pub(crate) fn shrink(&mut self) {
        if self.is_empty() {
            self.0 = None;
        } else if let Some(tables) = &mut self.0 {
            tables.cursors.shrink();
        }
    }
}

impl Tables {
    fn is_empty(&self) -> bool {
        self.cursors.len() == 0 && self.waiters.len() == 0
    }
}
