//! Subscribing: cursors that move over the log, each at its own pace.

use std::task::Waker;

use super::{
    Page, State, TakeError, Topic,
    cursors::{Cursor, CursorKey},
    stats::unreported_missed,
};
use crate::{
    error::{RecvError, SubscribeError},
    model::{Event, MonotonicTime, Now, StartPosition},
    options::{LagPolicy, SubscribeOptions},
};

impl Topic {
    /// Adds a cursor at a position.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) fn subscribe(
        &mut self,
        options: SubscribeOptions,
        now: Now,
    ) -> Result<(CursorKey, StartPosition), SubscribeError> {
        if self.state != State::Open {
            return Err(SubscribeError::Closed);
        }
        self.expire(now.monotonic);
        let SubscribeOptions { from, lag, label } = options;
        let (wanted, restarted) = self.resolve(from, now);
        let next = self.log.ordinal(wanted.max(self.first_unexpired_from(0, now.monotonic)));
        // `wanted` may be an id that no message has.
        let next_id = self.log.id(next);
        let cursor = Cursor::new(self.log.ordinal(wanted), (next, next_id), lag, label);
        let key = self.consumers.tables_mut().cursors.insert(cursor);
        Ok((key, self.start_position(wanted, next_id, restarted)))
    }

    /// Describes a start at the message `next_id` that was requested at the id `wanted`.
    pub(super) fn start_position(
        &self,
        wanted: u64,
        next_id: u64,
        restarted: bool,
    ) -> StartPosition {
        let missed = self.log.ordinal(next_id).since(self.log.ordinal(wanted));
        StartPosition { requested_id: wanted, next_id, missed, is_uncounted: false, restarted }
    }

    /// Whether there is nothing for a cursor, not even an end. This needs no clock.
    pub(crate) fn is_caught_up(&self, key: CursorKey) -> bool {
        let cursor = self.consumers.tables().cursors.get(key);
        self.state == State::Open && cursor.next_id == self.log.next_id() && cursor.pending_gap == 0
    }

    /// The size of the payload that a cursor receives next, in bytes. `None` if the next event is a gap or
    /// an end, or if there is none yet. The caller has called [`expire`](Self::expire) under the same lock.
    pub(crate) fn next_size(&mut self, key: CursorKey, now: MonotonicTime) -> Option<usize> {
        let cursor = self.consumers.tables().cursors.get(key);
        let entry = self.log.first_from(cursor.next_id, now)?;
        let is_next = cursor.pending_gap == 0 && self.log.ordinal(entry.id()) == cursor.next;
        is_next.then(|| entry.payload_size())
    }

    /// Moves a cursor past the next event: a message or a gap. The caller has called
    /// [`expire`](Self::expire) under the same lock.
    ///
    /// # Errors
    /// When the subscription has ended: every later call returns the same error. Or when the message has to be read.
    pub(crate) fn next_event(
        &mut self,
        key: CursorKey,
        now: MonotonicTime,
        page: &mut Page,
    ) -> Result<Option<Event>, TakeError> {
        if self.state == State::Deleted {
            return Err(TakeError::Over(RecvError::Deleted));
        }
        let cursor = self.consumers.tables_mut().cursors.get_mut(key);
        let pending_gap = std::mem::take(&mut cursor.pending_gap);
        if pending_gap > 0 {
            self.counters.missed += pending_gap;
            return Ok(Some(Event::Missed {
                count: pending_gap,
                next_id: self.log.id(cursor.next),
            }));
        }
        let entry = self.log.first_from(cursor.next_id, now);
        let next_id = entry.map_or(self.log.next_id(), |entry| entry.id());
        if next_id != cursor.next_id {
            // Either messages were missed or ids left out.
            let reached = self.log.ordinal(next_id);
            let count = reached.since(cursor.next);
            if count > 0 && cursor.lag == LagPolicy::Disconnect {
                return Err(TakeError::Over(RecvError::Lagged { missed: count }));
            }
            (cursor.next, cursor.next_id) = (reached, next_id);
            if count > 0 {
                self.counters.missed += count;
                return Ok(Some(Event::Missed { count, next_id }));
            }
        }
        match entry {
            Some(entry) => {
                let message = page.message(entry)?;
                cursor.next = cursor.next.next();
                cursor.next_id += 1;
                cursor.received += 1;
                self.counters.delivered += 1;
                Ok(Some(Event::Message { id: next_id, message }))
            }
            None if self.is_at_end() => Err(TakeError::Over(RecvError::Closed)),
            None => Ok(None),
        }
    }

    /// Stores the waker of a cursor that has nothing to receive. Returns the waker that it replaces, to be
    /// dropped after the lock is released.
    #[must_use]
    pub(crate) fn park(&mut self, key: CursorKey, waker: &Waker) -> Option<Waker> {
        self.consumers.tables_mut().cursors.park(key, waker)
    }

    /// Removes a cursor. Returns its waker, to be dropped after the lock is released.
    #[must_use]
    pub(crate) fn unsubscribe(&mut self, key: CursorKey, now: MonotonicTime) -> Option<Waker> {
        let more_expired = self.expire(now);
        let cursors = &mut self.consumers.tables_mut().cursors;
        let cursor = cursors.get(key);
        self.counters.missed += unreported_missed(&mut self.log, cursor);
        if more_expired {
            self.counters.missed += self.log.count_expired(cursor.next_id..self.log.next_id(), now);
        }
        cursors.remove(key)
    }
}
