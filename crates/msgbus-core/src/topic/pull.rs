//! Pulling: one cursor for all, and the queue of those who wait for a message.

use std::task::Waker;

use super::{Life, Topic, waiters::Ticket};
use crate::{
    error::{RecvError, SubscribeError},
    model::{Message, Now, Peek, Position, Start, Tick},
    options::BatchLimit,
};

impl Topic {
    /// Whether anything was published after what was pulled, expired or not: known without a clock.
    pub(crate) fn may_be_pulled(&self) -> bool {
        self.pull_next < self.log.next_id()
    }

    /// The size of the oldest payload that nobody has pulled, in bytes.
    pub(crate) fn next_unpulled_size(&mut self, now: Tick) -> Option<usize> {
        self.expire(now);
        self.log.from(self.pull_next, now).next().map(|message| message.payload().len())
    }

    /// Takes the oldest message that nobody has pulled.
    pub(crate) fn take_next(&mut self, now: Tick) -> Option<Message> {
        let more = self.expire(now);
        self.take(now, more)
    }

    /// `skips` says that there may be expired messages in the log.
    fn take(&mut self, now: Tick, skips: bool) -> Option<Message> {
        let message = self.log.from(self.pull_next, now).next().cloned();
        // Past the holes before it, or past all of them: they are not looked at again.
        let next = message.as_ref().map_or(self.log.next_id(), |message| message.id() + 1);
        if skips {
            // Nobody has pulled the expired ones in between, and their removal will not know it.
            self.counters.expired.unpulled += self.log.count_expired(self.pull_next..next, now);
        }
        self.pull_next = next;
        self.counters.pulled += u64::from(message.is_some());
        message
    }

    /// Takes messages until a limit is reached or none is left.
    pub(crate) fn take_batch(&mut self, limit: BatchLimit, now: Tick) -> Vec<Message> {
        let more = self.expire(now);
        let mut messages = Vec::new();
        let mut bytes = 0;
        while messages.len() < limit.events.max(1) && bytes < limit.bytes.max(1) {
            let Some(message) = self.take(now, more) else { break };
            bytes += message.payload().len();
            messages.push(message);
        }
        messages
    }

    /// The messages from a position on, or those that nobody has pulled; they stay where they are.
    pub(crate) fn peek(&mut self, from: Option<Position>, limit: BatchLimit, now: Now) -> Peek {
        self.expire(now.tick);
        let (wanted, restarted) = match from {
            Some(position) => self.resolve(position, now),
            None => (self.pull_next, false),
        };
        let mut bytes = 0;
        let fits = |message: &&Message| {
            let room = bytes < limit.bytes.max(1);
            bytes += message.payload().len();
            room
        };
        let from_there = self.log.from(wanted, now.tick).take(limit.events.max(1));
        let messages: Vec<_> = from_there.take_while(fits).cloned().collect();
        let next_id = messages.first().map_or(self.log.next_id(), Message::id);
        // What nobody pulled in time was not asked for by anybody.
        let missed = from.map_or(0, |_| next_id - wanted);
        let start = Start { next_id, missed, restarted };
        Peek { messages, epoch: self.info.epoch, start }
    }

    /// Joins those who wait.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) fn wait(&mut self) -> Result<Ticket, SubscribeError> {
        if self.life != Life::Open {
            return Err(SubscribeError::Closed);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.audience.waiters.join(ticket);
        Ok(ticket)
    }

    /// Takes messages for one who waits, if it is its turn. What comes back empty is to be tried
    /// again when woken.
    ///
    /// # Errors
    /// When there is nothing to wait for any more.
    pub(crate) fn take_waiting(
        &mut self,
        ticket: Ticket,
        limit: BatchLimit,
        now: Tick,
    ) -> Result<Vec<Message>, RecvError> {
        if self.life == Life::Deleted {
            return Err(RecvError::Deleted);
        }
        if !self.audience.waiters.is_first(ticket) {
            return Ok(Vec::new());
        }
        let messages = self.take_batch(limit, now);
        match self.life {
            Life::Closed if messages.is_empty() => Err(RecvError::Closed),
            _ => Ok(messages),
        }
    }

    /// As [`park`](Self::park), for one who waits to pull.
    #[must_use]
    pub(crate) fn park_waiter(&mut self, ticket: Ticket, waker: &Waker) -> Option<Waker> {
        self.audience.waiters.park(ticket, waker)
    }

    /// Leaves those who wait. To be handled when the lock is released: its own waker, to be dropped,
    /// and the waker of the one whose turn it is now, if there is something for it.
    #[must_use]
    pub(crate) fn leave(&mut self, ticket: Ticket) -> (Option<Waker>, Option<Waker>) {
        let was_first = self.audience.waiters.is_first(ticket);
        let own = self.audience.waiters.leave(ticket);
        let is_something_left = self.life != Life::Open || self.log.has_any_from(self.pull_next);
        let next = if was_first && is_something_left {
            self.audience.waiters.unpark_first()
        } else {
            None
        };
        (own, next)
    }
}
