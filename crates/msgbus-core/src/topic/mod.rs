//! The rules of one topic. No lock and no clock here: callers hold the one and pass the other, so
//! that everything can be tested with invented times.

use std::sync::Arc;

use crate::{
    model::{Headers, Now, Span, Tick, TopicInfo, Wall},
    options::TopicSettings,
    stats::{Counters, Departed},
};

mod budget;
mod consumers;
mod cursors;
mod log;
mod positions;
mod publish;
mod pull;
mod removed;
mod retention;
mod stats;
mod subscribe;
#[cfg(test)]
mod tests;
mod waiters;
mod wakers;

use self::consumers::Audience;
pub(crate) use self::{
    budget::{Budget, Reservation},
    cursors::{CursorKey, Parked},
    log::Log,
    publish::BatchSize,
    removed::Removed,
    waiters::Ticket,
    wakers::Wakes,
};

/// One topic: its log, the cursors over it, and the bounds.
#[derive(Debug)]
pub(crate) struct Topic {
    info: Arc<TopicInfo>,
    settings: TopicSettings,
    /// Of the settings, as it is needed.
    ttl: Span,
    /// Headers of the latest message that had any, shared with the next one if equal.
    headers: Option<Arc<Headers>>,
    life: Life,
    log: Log,
    /// The id of the next message to pull: of those retained, the ones below it were pulled.
    pull_next: u64,
    audience: Audience,
    counters: Counters,
    room: Reservation,
    /// Messages that have left and are to be freed without the lock.
    removed: Removed,
    next_ticket: Ticket,
    /// Whether a publish was ever accepted. Until then the topic exists for its consumers only: it
    /// goes with the last of them, and counts in no bound of the bus.
    was_published: bool,
    /// What the topic itself counts for in `room`, in bytes.
    own_charge: u64,
    last_created: Wall,
    last_publish: Tick,
}

/// Whether a topic still takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// The bus is closed: what is retained may still be read.
    Closed,
    /// The topic is out of the map: whoever still holds it has to look again.
    Deleted,
}

impl Topic {
    /// What a topic counts for in the bound of the bus beyond its name and messages, in bytes.
    const OVERHEAD: u64 = 512;

    pub(crate) fn new(
        info: Arc<TopicInfo>,
        settings: TopicSettings,
        room: Reservation,
        now: Now,
    ) -> Self {
        let own_charge = info.name.as_str().len() as u64 + Self::OVERHEAD;
        Self {
            last_created: now.wall,
            info,
            settings,
            ttl: settings.ttl.into(),
            headers: None,
            life: Life::Open,
            log: Log::default(),
            pull_next: 0,
            audience: Audience::default(),
            counters: Counters::default(),
            room,
            removed: Removed::default(),
            next_ticket: 0,
            was_published: false,
            own_charge,
            last_publish: now.tick,
        }
    }

    pub(crate) fn info(&self) -> &Arc<TopicInfo> {
        &self.info
    }

    /// Whether the topic has left the map: its name may have a new one by now.
    pub(crate) fn is_deleted(&self) -> bool {
        self.life == Life::Deleted
    }

    /// The id of the next message.
    pub(crate) fn next_id(&self) -> u64 {
        self.log.next_id()
    }

    /// Whether a publish was ever accepted.
    pub(crate) fn was_published(&self) -> bool {
        self.was_published
    }

    /// Messages to be freed when the lock is released.
    pub(crate) fn removed(&mut self) -> &mut Removed {
        &mut self.removed
    }

    /// Takes no more messages; what is retained can still be read.
    pub(crate) fn close(&mut self) {
        if self.life == Life::Open {
            self.life = Life::Closed;
        }
    }

    /// Gives the messages up, which are to be dropped when the locks are released. The caller takes
    /// the topic out of the map and wakes the sleepers.
    #[must_use]
    pub(crate) fn delete(&mut self, now: Tick) -> Log {
        self.life = Life::Deleted;
        let tail = self.log.next_id();
        let expired = Departed {
            total: self.log.count_expired(0..tail, now),
            unpulled: self.log.count_expired(self.pull_next..tail, now),
        };
        self.counters.expired += expired;
        self.counters.deleted.total += self.log.len() as u64 - expired.total;
        self.counters.deleted.unpulled += self.log.count_from(self.pull_next) - expired.unpulled;
        let retained = self.log.take_all();
        self.room.trim(self.own_charge);
        retained
    }
}
