//! Those who follow one topic or wait to pull from it. Most topics have nobody, so there is memory for
//! them only from when somebody comes until a sweep finds that all have left.

use std::ops::{Deref, DerefMut};

use super::{cursors::Cursors, waiters::Waiters};

#[derive(Debug, Default)]
pub(crate) struct Audience(Option<Box<Members>>);

#[derive(Debug, Default)]
pub(crate) struct Members {
    pub(crate) cursors: Cursors,
    pub(crate) waiters: Waiters,
}

static NOBODY: Members = Members { cursors: Cursors::new(), waiters: Waiters::new() };

impl Audience {
    /// Whether nobody has come, or a [`shrink`](Self::shrink) has found that all have left.
    pub(crate) fn is_nobody(&self) -> bool {
        self.0.is_none()
    }

    /// Gives the memory of those who have left back, if all have.
    pub(crate) fn shrink(&mut self) {
        if self.cursors.len() == 0 && self.waiters.len() == 0 {
            self.0 = None;
        } else if let Some(members) = &mut self.0 {
            members.cursors.shrink();
        }
    }
}

impl Deref for Audience {
    type Target = Members;

    fn deref(&self) -> &Members {
        self.0.as_deref().unwrap_or(&NOBODY)
    }
}

impl DerefMut for Audience {
    fn deref_mut(&mut self) -> &mut Members {
        self.0.get_or_insert_default()
    }
}
