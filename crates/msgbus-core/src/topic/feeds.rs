//! The derived logs that a topic feeds: those of the patterns that match it. Most topics feed none.
//!
//! The bus adds the messages to the logs, under the topic's lock: here are no other locks.

use std::sync::Arc;

use super::Topic;
use crate::{
    bus::SharedPattern,
    derived::Reference,
    model::{Message, MonotonicTime},
};

/// The derived logs that a topic feeds, and what they have not been given yet.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    feeds: Vec<Feed>,
    fresh: Vec<Fresh>,
}

/// A derived log that a topic feeds.
#[derive(Debug)]
struct Feed {
    pattern: Arc<SharedPattern>,
    /// The id of the first message that the log was given when it was published.
    from_id: u64,
}

/// A message that has become visible.
#[derive(Debug)]
pub(crate) struct Fresh {
    message: Message,
    deadline: MonotonicTime,
}

impl Feeds {
    /// Notes a message that becomes visible.
    pub(super) fn note(&mut self, message: &Message, deadline: MonotonicTime) {
        self.fresh.push(Fresh { message: message.clone(), deadline });
    }
}

impl Topic {
    /// Feeds a derived log from now on. Does nothing if it does so already.
    pub(crate) fn attach(&mut self, pattern: &Arc<SharedPattern>) {
        let from_id = self.log.next_id();
        let feeds = &mut self.feeds.get_or_insert_default().feeds;
        if !feeds.iter().any(|feed| Arc::ptr_eq(&feed.pattern, pattern)) {
            feeds.push(Feed { pattern: Arc::clone(pattern), from_id });
        }
    }

    #[cfg(test)]
    pub(crate) fn feeds_any(&self) -> bool {
        self.feeds.is_some()
    }

    /// Whether there are messages for derived logs.
    #[inline]
    pub(crate) fn has_fresh(&self) -> bool {
        self.feeds.as_ref().is_some_and(|feeds| !feeds.fresh.is_empty())
    }

    /// Calls `give` with each log and with the messages that it has not been given.
    pub(crate) fn give_fresh(&mut self, mut give: impl FnMut(&SharedPattern, &[Fresh], bool)) {
        let is_durable = self.is_durable();
        let Some(feeds) = &mut self.feeds else { return };
        for feed in &feeds.feeds {
            give(&feed.pattern, &feeds.fresh, is_durable);
        }
        feeds.fresh.clear();
        // A batch may have been large.
        feeds.fresh.shrink_to(64);
    }

    /// Feeds those logs no longer that are no longer in use.
    pub(super) fn drop_unused_feeds(&mut self) {
        let Some(feeds) = &mut self.feeds else { return };
        feeds.feeds.retain(|feed| !feed.pattern.is_dropped());
        if feeds.feeds.is_empty() {
            self.feeds = None;
        }
    }

    /// References to retained messages that a log was not given when they were published, from an id on, oldest first.
    /// `None` if the topic does not feed the log.
    pub(crate) fn retained_before(
        &self,
        pattern: &Arc<SharedPattern>,
        from_id: u64,
        now: MonotonicTime,
    ) -> Option<impl Iterator<Item = (u64, Reference)>> {
        let mut feeds = self.feeds.as_ref()?.feeds.iter();
        let end = feeds.find(|feed| Arc::ptr_eq(&feed.pattern, pattern))?.from_id;
        let is_durable = self.is_durable();
        let retained = self.log.with_deadlines(from_id, now);
        Some(retained.take_while(move |(entry, _)| entry.id() < end).map(
            move |(entry, deadline)| {
                (entry.id(), Reference::retained(&self.info, entry, deadline, is_durable))
            },
        ))
    }
}

impl Fresh {
    #[inline]
    pub(crate) fn reference(&self, is_durable: bool) -> Reference {
        Reference::new(&self.message, self.deadline, is_durable)
    }
}
