//! A locked topic.

use std::{
    mem::take,
    ops::{Deref, DerefMut},
};

use parking_lot::MutexGuard;

use crate::topic::{Removed, Topic};

/// A locked topic. Messages that leave it are freed after the lock is released.
#[derive(Debug)]
pub(crate) struct LockedTopic<'a> {
    // Fields are dropped in this order: the lock first, then the messages.
    topic: MutexGuard<'a, Topic>,
    removed: Option<Removed>,
}

impl<'a> LockedTopic<'a> {
    #[inline]
    pub(crate) fn new(topic: MutexGuard<'a, Topic>) -> Self {
        Self { topic, removed: None }
    }
}

impl Deref for LockedTopic<'_> {
    type Target = Topic;

    #[inline]
    fn deref(&self) -> &Topic {
        &self.topic
    }
}

impl DerefMut for LockedTopic<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Topic {
        &mut self.topic
    }
}

impl Drop for LockedTopic<'_> {
    #[inline]
    fn drop(&mut self) {
        let removed = self.topic.removed();
        if !removed.is_empty() {
            self.removed = Some(take(removed));
        }
    }
}
