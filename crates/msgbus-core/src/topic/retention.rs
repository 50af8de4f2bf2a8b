//! Retention: which messages leave a topic, because it has to take new ones or because their time is over,
//! and when the topic itself is of no more use.

use std::time::Duration;

use super::{BatchSize, Life, Topic};
use crate::{
    error::{NoRoom, PublishError},
    model::Tick,
    options::{Overflow, TopicSettings},
};

impl Topic {
    /// How many expired messages are removed under one lock. Those that are left are skipped by
    /// whoever reads.
    const EXPIRY_SLICE: usize = if cfg!(test) { 2 } else { 256 };
    /// A topic without use is forgotten after this many times its ttl, but not before the next.
    const IDLE_TTLS: u32 = 10;
    const SHORTEST_IDLE: Duration = Duration::from_secs(600);

    /// Sees to it that so much fits every bound, or refuses it and changes nothing.
    pub(super) fn make_room(&mut self, size: BatchSize, now: Tick) -> Result<(), PublishError> {
        let TopicSettings { max_messages, max_bytes, .. } = self.settings;
        let BatchSize { count, charge } = size;
        if count > max_messages {
            return Err(PublishError::TooMany { count, limit: max_messages });
        }
        if charge > max_bytes {
            return Err(PublishError::TooLarge { size: charge, limit: max_bytes });
        }
        let least = self.own_charge + charge;
        let bus_is_full = !self.room.reserve(least + self.log.bytes());
        let no_room = NoRoom::Bytes { limit: self.room.limit() };
        if bus_is_full && !self.room.reserve(least) {
            // Giving up everything of its own would not be enough.
            return Err(no_room.into());
        }
        let held = self.room.held();
        let fits = |messages: usize, bytes: u64| {
            messages + count <= max_messages && bytes + charge <= max_bytes && least + bytes <= held
        };
        let refusal = if bus_is_full { no_room.into() } else { PublishError::TopicFull };
        while !fits(self.log.len(), self.log.bytes()) && self.expire_one(now) {}
        let leaving = self.leaving_until(fits).ok_or(refusal)?;
        for _ in 0..leaving {
            self.evict_oldest();
        }
        Ok(())
    }

    /// How many of the oldest messages have to leave until the rest `fits`; `None` when the policy
    /// does not let so many go.
    fn leaving_until(&self, fits: impl Fn(usize, u64) -> bool) -> Option<usize> {
        let (mut messages, mut bytes) = (self.log.len(), self.log.bytes());
        let mut oldest = self.log.iter();
        while !fits(messages, bytes) {
            let message = oldest.next()?;
            let was_pulled = message.id() < self.pull_next;
            if self.settings.overflow == Overflow::Reject && !was_pulled {
                return None;
            }
            messages -= 1;
            bytes -= message.charge();
        }
        Some(self.log.len() - messages)
    }

    fn evict_oldest(&mut self) {
        if let Some(oldest) = self.log.pop() {
            self.counters.evicted.count(oldest.id() < self.pull_next);
            self.removed.push(oldest);
        }
    }

    /// Removes messages whose time is over, at most a slice of them. Says whether there may be more.
    #[inline]
    pub(crate) fn expire(&mut self, now: Tick) -> bool {
        (0..Self::EXPIRY_SLICE).all(|_| self.expire_one(now))
    }

    #[inline]
    fn expire_one(&mut self, now: Tick) -> bool {
        let Some(message) = self.log.pop_expired(now) else { return false };
        self.counters.expired.count(message.id() < self.pull_next);
        self.removed.push(message);
        true
    }

    /// Removes every message whose time is over: for what has to be exact. Callers with a lock go
    /// through [`lock_expired`](crate::cell::TopicCell::lock_expired), so that few are left here.
    pub(super) fn expire_all(&mut self, now: Tick) {
        while self.expire(now) {}
    }

    /// Gives memory back. Says how many messages have expired, and whether more may have.
    pub(crate) fn sweep(&mut self, now: Tick) -> (usize, bool) {
        let before = self.log.len();
        let more = self.expire(now);
        if !more {
            self.log.shrink();
            self.audience.shrink();
            if self.log.is_empty() {
                self.headers = None;
            }
            self.room.trim(self.own_charge + self.log.bytes());
        }
        (before - self.log.len(), more)
    }

    /// Whether the topic was made for consumers only and all have left.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.life != Life::Deleted && !self.was_published && self.has_no_consumers()
    }

    fn has_no_consumers(&self) -> bool {
        self.audience.cursors.len() == 0 && self.audience.waiters.len() == 0
    }

    /// Whether nothing would be lost, and nobody would notice, if the topic were forgotten.
    pub(crate) fn is_idle(&self, now: Tick) -> bool {
        let patience = self.settings.ttl.map_or(Self::SHORTEST_IDLE, |ttl| {
            ttl.saturating_mul(Self::IDLE_TTLS).max(Self::SHORTEST_IDLE)
        });
        self.life == Life::Open
            && self.log.is_empty()
            && self.has_no_consumers()
            && now.since(self.last_publish) >= patience
    }
}
