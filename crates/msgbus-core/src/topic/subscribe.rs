//! Subscribing: cursors over the log, each at its own message.

use std::task::Waker;

use super::{
    Life, Topic,
    cursors::{Cursor, CursorKey},
    stats::unnoticed,
};
use crate::{
    error::{RecvError, SubscribeError},
    model::{Event, Message, Now, Start, Tick},
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
    ) -> Result<(CursorKey, Start), SubscribeError> {
        if self.life != Life::Open {
            return Err(SubscribeError::Closed);
        }
        self.expire(now.tick);
        let SubscribeOptions { from, lag, label } = options;
        let (wanted, restarted) = self.resolve(from, now);
        let next = wanted.max(self.first_live_from(0, now.tick));
        let key = self.audience.cursors.insert(Cursor::new(wanted, next, lag, label));
        Ok((key, Start { next_id: next, missed: next - wanted, restarted }))
    }

    /// Whether there is nothing for a cursor, not even an end: known without a clock.
    pub(crate) fn is_caught_up(&self, key: CursorKey) -> bool {
        let cursor = self.audience.cursors.get(key);
        self.life == Life::Open && cursor.next == self.log.next_id() && cursor.untold == 0
    }

    /// The size of the payload that a cursor comes to next, in bytes; `None` when that is a gap, an end, or
    /// nothing yet. The caller has called [`expire`](Self::expire) under the same lock.
    pub(crate) fn next_size(&mut self, key: CursorKey, now: Tick) -> Option<usize> {
        let cursor = self.audience.cursors.get(key);
        let message = self.log.from(cursor.next, now).next()?;
        let is_next = cursor.untold == 0 && message.id() == cursor.next;
        is_next.then(|| message.payload().len())
    }

    /// Moves a cursor over the next thing there is for it: a message, or a gap. The caller has
    /// called [`expire`](Self::expire) under the same lock.
    ///
    /// # Errors
    /// When the subscription is over; it is so at every later call.
    pub(crate) fn next_event(
        &mut self,
        key: CursorKey,
        now: Tick,
    ) -> Result<Option<Event>, RecvError> {
        if self.life == Life::Deleted {
            return Err(RecvError::Deleted);
        }
        let cursor = self.audience.cursors.get_mut(key);
        let untold = std::mem::take(&mut cursor.untold);
        if untold > 0 {
            self.counters.missed += untold;
            return Ok(Some(Event::Missed(untold)));
        }
        let message = self.log.from(cursor.next, now).next();
        let reached = message.map_or(self.log.next_id(), Message::id);
        let missed = reached - cursor.next;
        if missed > 0 {
            if cursor.lag == LagPolicy::Disconnect {
                return Err(RecvError::Lagged { missed });
            }
            cursor.next = reached;
            self.counters.missed += missed;
            return Ok(Some(Event::Missed(missed)));
        }
        match message {
            Some(message) => {
                cursor.next = reached + 1;
                cursor.received += 1;
                self.counters.delivered += 1;
                Ok(Some(Event::Message(message.clone())))
            }
            None if self.life == Life::Closed => Err(RecvError::Closed),
            None => Ok(None),
        }
    }

    /// Remembers whom to wake when there is something for this cursor. To be dropped when the lock
    /// is released: a waker that this replaces.
    #[must_use]
    pub(crate) fn park(&mut self, key: CursorKey, waker: &Waker) -> Option<Waker> {
        self.audience.cursors.park(key, waker)
    }

    /// Removes a cursor. To be dropped when the lock is released: its waker.
    #[must_use]
    pub(crate) fn unsubscribe(&mut self, key: CursorKey, now: Tick) -> Option<Waker> {
        let more = self.expire(now);
        let cursor = self.audience.cursors.get(key);
        self.counters.missed += unnoticed(&mut self.log, cursor);
        if more {
            self.counters.missed += self.log.count_expired(cursor.next..self.log.next_id(), now);
        }
        self.audience.cursors.remove(key)
    }
}
