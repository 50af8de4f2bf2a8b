//! Retention: which messages leave a topic because it is full or because they have expired, and when the
//! topic itself is no longer in use.

use std::time::Duration;

use super::{BatchSize, State, Topic, groups::Cause, log::Popped};
use crate::{
    error::{LimitReached, PublishError},
    model::{Headers, MonotonicTime},
    options::{Overflow, TopicSettings},
};

impl Topic {
    /// How many expired messages are removed under one lock. Readers skip the remaining ones.
    const EXPIRY_SLICE: usize = if cfg!(test) { 2 } else { 256 };

    /// An unused topic is removed after this many times its TTL, and not before `MIN_IDLE`.
    const IDLE_TTLS: u32 = 10;
    const MIN_IDLE: Duration = Duration::from_secs(600);

    /// Makes an append of this size fit every limit, or refuses it and changes nothing.
    pub(super) fn reserve_or_evict(
        &mut self,
        size: BatchSize,
        now: MonotonicTime,
    ) -> Result<(), PublishError> {
        let TopicSettings { max_messages, max_bytes, .. } = self.settings;
        let BatchSize { count, bytes: added } = size;
        if count > max_messages {
            return Err(PublishError::TooMany { count, limit: max_messages });
        }
        if added > max_bytes {
            return Err(PublishError::TooLarge { size: added, limit: max_bytes });
        }
        if self.durable.is_some() {
            return self.reserve_durable(size, now);
        }
        let minimum = self.own_size() + added;
        let bus_is_full = !self.reservation.reserve(minimum + self.log.bytes());
        let limit_reached = LimitReached::Bytes { limit: self.reservation.limit() };
        if bus_is_full && !self.reservation.reserve(minimum) {
            // Evicting everything in this topic would not be enough.
            return Err(limit_reached.into());
        }
        let held = self.reservation.held();
        let fits = |messages: usize, bytes: u64| {
            messages + count <= max_messages
                && bytes + added <= max_bytes
                && minimum + bytes <= held
        };
        let refusal = if bus_is_full { limit_reached.into() } else { PublishError::TopicFull };
        while !fits(self.log.len(), self.log.bytes()) && self.expire_one(now) {}
        let evictions = self.evictions_needed(fits).ok_or(refusal)?;
        for _ in 0..evictions {
            self.evict_oldest();
        }
        Ok(())
    }

    /// How many of the oldest messages must be evicted before the rest `fits`. `None` if the overflow
    /// policy protects one of them.
    pub(super) fn evictions_needed(&self, fits: impl Fn(usize, u64) -> bool) -> Option<usize> {
        let (mut messages, mut bytes) = (self.log.len(), self.log.bytes());
        let mut oldest = self.log.sizes();
        let first_protected = self.first_protected();
        while !fits(messages, bytes) {
            let (id, size) = oldest.next()?;
            if id >= first_protected {
                return None;
            }
            messages -= 1;
            bytes -= size;
        }
        Some(self.log.len() - messages)
    }

    /// Whether the overflow policy allows the eviction of the oldest message.
    pub(super) fn may_evict_oldest(&self) -> bool {
        self.log.first_id() < self.first_protected()
    }

    /// The id of the first message that the overflow policy protects.
    fn first_protected(&self) -> u64 {
        match self.settings.overflow {
            Overflow::Reject => self.first_needed(),
            Overflow::DropOldest => u64::MAX,
        }
    }

    /// The id of the first message that somebody still needs: a group has not acknowledged it, or it was not pulled. Plain
    /// pulls count if there are no groups, or if there ever was one.
    fn first_needed(&self) -> u64 {
        match &self.groups {
            Some(groups) if self.counters.pulled == 0 => groups.floor(),
            Some(groups) => groups.floor().min(self.pull_next),
            None => self.pull_next,
        }
    }

    pub(super) fn evict_oldest(&mut self) {
        if let Some(Popped { id, message }) = self.log.pop() {
            self.counters.evicted.count(id < self.pull_next);
            self.forget(id, Cause::Evicted);
            self.removed.extend(message);
        }
    }

    /// Removes expired messages, at most a slice of them. Returns whether there may be more.
    #[inline]
    pub(crate) fn expire(&mut self, now: MonotonicTime) -> bool {
        (0..Self::EXPIRY_SLICE).all(|_| self.expire_one(now))
    }

    #[inline]
    pub(super) fn expire_one(&mut self, now: MonotonicTime) -> bool {
        let Some(Popped { id, message }) = self.log.pop_expired(now) else { return false };
        self.counters.expired.count(id < self.pull_next);
        self.forget(id, Cause::Expired);
        self.removed.extend(message);
        true
    }

    /// Removes every expired message, for results that must be exact. Callers that hold a lock first
    /// remove them slice by slice ([`lock_and_expire`]), so that few are left here.
    ///
    /// [`lock_and_expire`]: crate::bus::SharedTopic::lock_and_expire
    pub(super) fn expire_all(&mut self, now: MonotonicTime) {
        while self.expire(now) {}
    }

    /// Removes a slice of expired messages and, once none is left, frees unused memory. Returns how many
    /// were removed, and whether there may be more.
    pub(crate) fn sweep(&mut self, now: MonotonicTime) -> (usize, bool) {
        let before = self.log.len();
        let more = self.expire(now);
        if !more {
            self.log.shrink();
            self.drop_unused_feeds();
            self.consumers.shrink();
            if self.log.is_empty() {
                self.headers = Headers::default();
            }
            self.cool_if_scarce();
            let pending = self.pending_size().bytes;
            self.reservation.trim(self.own_size() + self.log.memory_bytes() + pending);
            self.release();
        }
        (before - self.log.len(), more)
    }

    /// Whether the topic existed only for its consumers and the last of them has left.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state != State::Deleted && !self.was_published && self.consumers.is_empty()
    }

    /// Whether the topic can be removed without losing anything that somebody could notice.
    pub(crate) fn is_idle(&self, now: MonotonicTime) -> bool {
        let idle_time = self
            .settings
            .ttl
            .map_or(Self::MIN_IDLE, |ttl| ttl.saturating_mul(Self::IDLE_TTLS).max(Self::MIN_IDLE));
        self.state == State::Open
            && self.log.is_empty()
            && !self.has_pending()
            && self.consumers.is_empty()
            && !self.groups.as_ref().is_some_and(|groups| groups.is_explicit())
            && now.since(self.last_publish) >= idle_time
    }
}
