//! The rules of one topic.
//!
//! There is no lock and no clock here. The caller holds the lock and passes the time, so that every rule
//! can be tested with invented times.

use std::sync::Arc;

use crate::{
    model::{Headers, MonotonicTime, Nanos, Now, TopicInfo, WallTime},
    options::TopicSettings,
    stats::{Counters, RemovalCount},
};

mod budget;
mod cold;
mod commit;
mod consumers;
mod cursors;
mod durable;
mod feed;
mod feeds;
mod groups;
mod log;
mod positions;
mod publish;
mod pull;
mod removed;
mod restore;
mod retention;
mod sequence;
mod stats;
mod subscribe;
#[cfg(test)]
mod tests;
mod waiters;
mod wakers;
mod window;

pub(crate) use self::{
    budget::{Budget, Reservation},
    commit::Commit,
    cursors::{Cursor, CursorKey, Cursors, Parked},
    durable::Durable,
    groups::{Burial, DeadLetter, Registration, SetGroup, Settled},
    log::{Entry, Log},
    publish::{Appended, BatchSize},
    pull::{TakeError, Taken, WaitError},
    removed::Removed,
    sequence::Ordinal,
    waiters::{WaiterId, Waiters},
    wakers::Wakers,
    window::{Page, Unread},
};
use self::{consumers::Consumers, durable::PendingMessage, feeds::Feeds, groups::Groups};

/// One topic: its log, the cursors over it, and its limits.
#[derive(Debug)]
pub(crate) struct Topic {
    info: Arc<TopicInfo>,
    settings: TopicSettings,
    /// The topic's TTL in internal units.
    ttl: Nanos,
    /// The latest headers, shared with the next message if its headers are equal.
    headers: Headers,
    state: State,
    log: Log,
    /// The id of the next message to pull. Retained messages with a lower id have been pulled.
    pull_next: u64,
    consumers: Consumers,
    counters: Counters,
    reservation: Reservation,
    /// `None` while the topic has no groups.
    groups: Option<Box<Groups>>,
    /// `None` while the topic is only in memory.
    durable: Option<Box<Durable>>,
    /// `None` while no pattern that is followed matches the topic.
    feeds: Option<Box<Feeds>>,
    /// Messages that have left the log. They are freed after the lock is released.
    removed: Removed,
    next_waiter: WaiterId,
    /// Whether a publish was ever accepted. Until then the topic exists only for its consumers: it is
    /// removed with the last of them and does not count toward the limits of the bus.
    was_published: bool,
    /// The length of the topic's name, in bytes. Small, so that it fits beside the flags.
    name_length: u8,
    last_created: WallTime,
    last_publish: MonotonicTime,
}

/// What a topic still accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The bus is closed. Retained messages can still be read.
    Closed,
    /// The topic has left the map. Whoever still holds it must look the name up again.
    Deleted,
}

impl Topic {
    /// What a topic adds to the size of the bus besides its name and messages, in bytes.
    const OVERHEAD: u64 = 512;

    pub(crate) fn new(
        info: Arc<TopicInfo>,
        settings: TopicSettings,
        reservation: Reservation,
        now: Now,
    ) -> Self {
        // A name has at most 255 bytes.
        let name_length = u8::try_from(info.name.as_str().len()).unwrap_or(u8::MAX);
        Self {
            last_created: now.wall,
            info,
            settings,
            ttl: settings.ttl.into(),
            headers: Headers::default(),
            state: State::Open,
            log: Log::default(),
            pull_next: 0,
            consumers: Consumers::default(),
            counters: Counters::default(),
            reservation,
            groups: None,
            durable: None,
            feeds: None,
            removed: Removed::default(),
            next_waiter: 0,
            was_published: false,
            name_length,
            last_publish: now.monotonic,
        }
    }

    pub(crate) fn info(&self) -> &Arc<TopicInfo> {
        &self.info
    }

    pub(crate) fn settings(&self) -> &TopicSettings {
        &self.settings
    }

    /// The part of `reservation` that the topic itself needs, in bytes.
    fn own_size(&self) -> u64 {
        let groups = self.groups.as_ref().map_or(0, |groups| groups.memory_bytes());
        u64::from(self.name_length) + Self::OVERHEAD + groups
    }

    /// Whether the topic has left the map. A new topic may have its name by now.
    pub(crate) fn is_deleted(&self) -> bool {
        self.state == State::Deleted
    }

    /// The id of the next message.
    pub(crate) fn next_id(&self) -> u64 {
        self.log.next_id()
    }

    /// Whether a publish was ever accepted.
    pub(crate) fn was_published(&self) -> bool {
        self.was_published
    }

    /// The messages to free when the lock is released.
    pub(crate) fn removed(&mut self) -> &mut Removed {
        &mut self.removed
    }

    /// Makes a message visible: it enters the log.
    #[inline]
    fn enter(&mut self, new: PendingMessage) {
        let PendingMessage { message, deadline, is_early } = new;
        if let Some(feeds) = &mut self.feeds {
            feeds.note(&message, deadline);
        }
        self.log.push(message, deadline, is_early);
        self.counters.published += 1;
    }

    /// Accepts no more messages. Retained messages can still be read.
    pub(crate) fn close(&mut self) {
        if self.state == State::Open {
            self.state = State::Closed;
        }
    }

    /// Whether no more messages will become visible.
    fn is_at_end(&self) -> bool {
        self.state != State::Open && !self.has_pending()
    }

    /// Ends the topic and returns its messages, to be dropped after the locks are released. The caller
    /// removes the topic from the map and wakes the consumers.
    #[must_use]
    pub(crate) fn delete(&mut self, now: MonotonicTime) -> Log {
        self.state = State::Deleted;
        let pending = self.drop_pending();
        self.counters.published += pending;
        self.counters.deleted += RemovalCount { total: pending, unpulled: pending };
        let tail = self.log.next_id();
        let expired = RemovalCount {
            total: self.log.count_expired(0..tail, now),
            unpulled: self.log.count_expired(self.pull_next..tail, now),
        };
        self.counters.expired += expired;
        self.counters.deleted.total += self.log.len() as u64 - expired.total;
        self.counters.deleted.unpulled += self.log.count_from(self.pull_next) - expired.unpulled;
        self.groups = None;
        self.feeds = None;
        let retained = self.log.take_all();
        self.reservation.trim(self.own_size());
        retained
    }
}
