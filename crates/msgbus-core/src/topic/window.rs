//! The window: the part of a durable topic that is in memory. Older messages are cold. Readers get them from the store,
//! page by page and without the topic's lock, until they have reached the window.

use std::{collections::VecDeque, sync::Arc};

use super::{BatchSize, Topic, log::Entry};
use crate::{
    error::{LimitReached, PublishError},
    model::{Message, MonotonicTime, TopicInfo},
    options::{BatchLimit, Overflow, TopicSettings},
    store::{Read, RecoveredMessage},
};

/// Cold messages that one reader has read, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Page(VecDeque<Message>);

/// A message is cold, and not in the page of the reader: it has to be read from this id on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unread(pub(crate) u64);

impl Page {
    /// The most that one page holds.
    pub(crate) const LIMIT: BatchLimit = BatchLimit { events: 1024, bytes: 128 << 10 };

    pub(crate) fn new(info: &Arc<TopicInfo>, messages: Vec<RecoveredMessage>) -> Self {
        Self(messages.into_iter().map(|kept| Message::recovered(info, kept)).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes a message out of the page, and those before it.
    fn take(&mut self, id: u64) -> Option<Message> {
        while self.0.front()?.id() < id {
            self.0.pop_front();
        }
        if self.0.front()?.id() == id { self.0.pop_front() } else { None }
    }

    /// The message of an entry of the log.
    pub(super) fn message(&mut self, entry: Entry<'_>) -> Result<Message, Unread> {
        match entry {
            Entry::Hot(message) => Ok(message.clone()),
            Entry::Cold(left) => self.take(left.id).ok_or(Unread(left.id)),
        }
    }
}

impl Topic {
    /// Starts to read cold messages.
    pub(crate) fn read(&self, Unread(from_id): Unread, limit: BatchLimit) -> Option<Read> {
        Some(self.durable.as_ref()?.store().read(from_id, limit))
    }

    /// Whether a durable topic can make an append of this size fit every limit when it is committed. It evicts nothing
    /// before that: what the store refuses must not cost a message that it has kept.
    #[inline(never)]
    pub(super) fn reserve_durable(
        &mut self,
        size: BatchSize,
        now: MonotonicTime,
    ) -> Result<(), PublishError> {
        let pending = self.pending_size();
        let (count, added) = (pending.count + size.count, pending.bytes + size.bytes);
        let (max_messages, max_bytes) = (self.settings.max_messages, self.settings.max_bytes);
        let fits = |messages: usize, bytes: u64| {
            messages + count <= max_messages && bytes + added <= max_bytes
        };
        while !fits(self.log.len(), self.log.bytes()) && self.expire_one(now) {}
        if self.settings.overflow == Overflow::Reject && self.evictions_needed(fits).is_none() {
            return Err(PublishError::TopicFull);
        }
        let others = self.own_size() + added;
        while !self.reservation.reserve(others + self.log.memory_bytes()) {
            if !self.cool_one() {
                let limit = self.reservation.limit();
                return Err(LimitReached::Bytes { limit }.into());
            }
        }
        Ok(())
    }

    /// Makes the committed messages of a durable topic fit its own limits, and those in memory fit its share. For lack of
    /// memory none is lost: what leases need beyond the limit of the bus, the next publish does not get.
    pub(super) fn enforce_limits(&mut self, now: MonotonicTime) {
        self.enforce_size(now);
        while self.log.hot_bytes() > self.settings.memory_bytes && self.cool_one() {}
        let others = self.own_size() + self.pending_size().bytes;
        while !self.reservation.reserve(others + self.log.memory_bytes()) {
            if !self.cool_one() {
                self.reservation.reserve_beyond(others + self.log.memory_bytes());
            }
        }
    }

    /// Makes the messages of a topic after a restart fit its own limits. What was kept may take more memory than the bus
    /// allows now; it must not be lost for that.
    pub(super) fn enforce_limits_of_restored(&mut self, now: MonotonicTime) {
        self.enforce_size(now);
        self.reservation.reserve_beyond(self.own_size() + self.log.memory_bytes());
    }

    /// Evicts what does not fit, unless the overflow policy protects it: a group that has begun earlier since the append
    /// may need it, or the limits were higher before a restart.
    fn enforce_size(&mut self, now: MonotonicTime) {
        let TopicSettings { max_messages, max_bytes, .. } = self.settings;
        let fits = |messages: usize, bytes: u64| messages <= max_messages && bytes <= max_bytes;
        while !fits(self.log.len(), self.log.bytes()) && self.expire_one(now) {}
        while !fits(self.log.len(), self.log.bytes()) && self.may_evict_oldest() {
            self.evict_oldest();
        }
    }

    /// Gives memory back when the bus has little left, so that other topics can have it.
    pub(super) fn cool_if_scarce(&mut self) {
        /// Messages that are cooled under one lock.
        const SLICE: usize = 4096;
        if self.durable.is_some() && self.reservation.is_scarce() {
            let _ = (0..SLICE).all(|_| self.cool_one());
        }
    }

    /// Makes the oldest message in memory cold. Returns `false` if there is none.
    fn cool_one(&mut self) -> bool {
        let cooled = self.log.cool();
        let has_cooled = cooled.is_some();
        self.removed.extend(cooled);
        has_cooled
    }
}
