//! Pulling: one cursor shared by everybody, and the queue of pulls that wait.

use std::task::Waker;

use super::{State, Topic, waiters::WaiterId};
use crate::{
    error::{RecvError, SubscribeError},
    model::{Event, Message, MonotonicTime, Now, Peek, Position},
    options::BatchLimit,
};

impl Topic {
    /// Whether a message was published that nobody has pulled. It may have expired: this needs no clock.
    pub(crate) fn has_unpulled(&self) -> bool {
        self.pull_next < self.log.next_id()
    }

    /// The size of the oldest payload that nobody has pulled, in bytes.
    pub(crate) fn next_unpulled_size(&mut self, now: MonotonicTime) -> Option<usize> {
        self.expire(now);
        self.log.from(self.pull_next, now).next().map(|message| message.payload().len())
    }

    /// Takes the oldest message that nobody has pulled.
    pub(crate) fn take_next(&mut self, now: MonotonicTime) -> Option<Message> {
        let more_expired = self.expire(now);
        self.take(now, more_expired)
    }

    /// `more_expired` says whether the log may still hold expired messages.
    fn take(&mut self, now: MonotonicTime, more_expired: bool) -> Option<Message> {
        let message = self.log.from(self.pull_next, now).next().cloned();
        // The cursor moves past the holes, so that they are not looked at again.
        let next = message.as_ref().map_or(self.log.next_id(), |message| message.id() + 1);
        if more_expired {
            // Nobody has pulled the expired messages in between. When they are removed, they will be
            // below the cursor.
            self.counters.expired.unpulled += self.log.count_expired(self.pull_next..next, now);
        }
        self.pull_next = next;
        self.counters.pulled += u64::from(message.is_some());
        message
    }

    /// Takes messages until a limit is reached or none is left.
    pub(crate) fn take_batch(&mut self, limit: BatchLimit, now: MonotonicTime) -> Vec<Message> {
        let more_expired = self.expire(now);
        let mut messages = Vec::new();
        let mut bytes = 0;
        while messages.len() < limit.events.max(1) && bytes < limit.bytes.max(1) {
            let Some(message) = self.take(now, more_expired) else { break };
            bytes += message.payload().len();
            messages.push(message);
        }
        messages
    }

    /// Returns the messages from a position on, or those that nobody has pulled, without taking them.
    pub(crate) fn peek(&mut self, from: Option<Position>, limit: BatchLimit, now: Now) -> Peek {
        self.expire(now.monotonic);
        let (wanted, restarted) = match from {
            Some(position) => self.resolve(position, now),
            None => (self.pull_next, false),
        };
        let mut bytes = 0;
        let fits = |message: &&Message| {
            let fits = bytes < limit.bytes.max(1);
            bytes += message.payload().len();
            fits
        };
        let from_there = self.log.from(wanted, now.monotonic).take(limit.events.max(1));
        let mut events = Vec::new();
        let (mut first_id, mut next) = (None, None);
        for message in from_there.take_while(fits) {
            let (id, ordinal) = (message.id(), self.log.ordinal(message.id()));
            first_id.get_or_insert(id);
            // Without a position nobody asked for the messages that left before they were pulled.
            let count = next.filter(|_| from.is_some()).map_or(0, |next| ordinal.since(next));
            if count > 0 {
                events.push(Event::Missed { count, next_id: id });
            }
            events.push(Event::Message(message.clone()));
            next = Some(ordinal.next());
        }
        let first_id = first_id.unwrap_or(self.log.next_id());
        let start = self.start_position(from.map_or(first_id, |_| wanted), first_id, restarted);
        Peek { events, epoch: self.info.epoch, start }
    }

    /// Joins the queue of waiting pulls.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) fn wait(&mut self) -> Result<WaiterId, SubscribeError> {
        if self.state != State::Open {
            return Err(SubscribeError::Closed);
        }
        let waiter = self.next_waiter;
        self.next_waiter += 1;
        self.consumers.tables_mut().waiters.join(waiter);
        Ok(waiter)
    }

    /// Takes messages for a waiting pull if it is first in the queue. After an empty result the caller parks
    /// and tries again when woken.
    ///
    /// # Errors
    /// When no message can come any more.
    pub(crate) fn poll_pull(
        &mut self,
        waiter: WaiterId,
        limit: BatchLimit,
        now: MonotonicTime,
    ) -> Result<Vec<Message>, RecvError> {
        if self.state == State::Deleted {
            return Err(RecvError::Deleted);
        }
        if !self.consumers.tables().waiters.is_first(waiter) {
            return Ok(Vec::new());
        }
        let messages = self.take_batch(limit, now);
        match self.state {
            State::Closed if messages.is_empty() => Err(RecvError::Closed),
            _ => Ok(messages),
        }
    }

    /// Stores the waker of a waiting pull. Returns the waker that it replaces, to be dropped after the lock
    /// is released.
    #[must_use]
    pub(crate) fn park_waiter(&mut self, waiter: WaiterId, waker: &Waker) -> Option<Waker> {
        self.consumers.tables_mut().waiters.park(waiter, waker)
    }

    /// Leaves the queue. Returns two wakers to handle after the lock is released: its own, to be dropped,
    /// and that of the pull that is first now, to be woken, if there is something for it.
    #[must_use]
    pub(crate) fn cancel_wait(&mut self, waiter: WaiterId) -> (Option<Waker>, Option<Waker>) {
        let waiters = &mut self.consumers.tables_mut().waiters;
        let was_first = waiters.is_first(waiter);
        let own = waiters.leave(waiter);
        let has_work = self.state != State::Open || self.log.has_any_from(self.pull_next);
        let next = if was_first && has_work { waiters.unpark_first() } else { None };
        (own, next)
    }
}
