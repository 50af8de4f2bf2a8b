//! Pulling: one cursor shared by everybody, and the queue of pulls that wait.

use std::{sync::Arc, task::Waker};

use super::{Groups, Page, State, Topic, Unread, commit::Commit, log::Entry, waiters::WaiterId};
use crate::{
    error::RecvError,
    model::{Event, GroupName, Message, MonotonicTime, Now, Peek, Position},
    options::BatchLimit,
    store::StoreError,
};

/// Why a pull cannot wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitError {
    Closed,
    /// Pulls of as many groups wait as a topic may have.
    TooManyGroups {
        /// The limit, in groups.
        limit: usize,
    },
}

/// Messages that were taken.
#[derive(Debug)]
pub(crate) struct Taken<T = Message> {
    pub(crate) messages: Vec<T>,
    /// Tells when a crash cannot bring the messages back. Only then somebody may see them. `None` if it already cannot.
    pub(crate) commit: Option<Arc<Commit>>,
}

impl<T> Default for Taken<T> {
    fn default() -> Self {
        Self { messages: Vec::new(), commit: None }
    }
}

/// Why nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakeError<E = RecvError> {
    /// The next message has to be read first.
    Unread(Unread),
    /// No message can come any more, or the store does not accept what was taken.
    Over(E),
}

impl<E> From<Unread> for TakeError<E> {
    fn from(unread: Unread) -> Self {
        Self::Unread(unread)
    }
}

impl From<StoreError> for TakeError {
    fn from(error: StoreError) -> Self {
        Self::Over(error.into())
    }
}

impl Topic {
    /// Whether a message was published that nobody has pulled. It may have expired: this needs no clock.
    pub(crate) fn has_unpulled(&self) -> bool {
        self.pull_next < self.log.next_id()
    }

    /// The size of the oldest payload that nobody has pulled, in bytes.
    pub(crate) fn next_unpulled_size(&mut self, now: MonotonicTime) -> Option<usize> {
        self.expire(now);
        self.log.first_from(self.pull_next, now).map(|entry| entry.payload_size())
    }

    /// The size of the first payload from a position on, in bytes.
    pub(crate) fn size_from(&mut self, from: Position, now: Now) -> Option<usize> {
        self.expire(now.monotonic);
        let (wanted, _) = self.resolve(from, now);
        self.log.first_from(wanted, now.monotonic).map(|entry| entry.payload_size())
    }

    /// Takes the oldest message that nobody has pulled, of a topic that is not durable.
    pub(crate) fn take_next(&mut self, now: MonotonicTime) -> Option<Message> {
        let more_expired = self.expire(now);
        // No message is cold.
        self.take(now, more_expired, &mut Page::default()).unwrap_or_default()
    }

    /// `more_expired` says whether the log may still hold expired messages.
    #[inline]
    fn take(
        &mut self,
        now: MonotonicTime,
        more_expired: bool,
        page: &mut Page,
    ) -> Result<Option<Message>, Unread> {
        let message = match self.log.first_from(self.pull_next, now) {
            Some(entry) => Some(page.message(entry)?),
            None => None,
        };
        // The cursor moves past the holes, so that they are not looked at again.
        let next = message.as_ref().map_or(self.log.next_id(), |message| message.id() + 1);
        if more_expired {
            // Nobody has pulled the expired messages in between. When they are removed, they will be
            // below the cursor.
            self.counters.expired.unpulled += self.log.count_expired(self.pull_next..next, now);
        }
        self.pull_next = next;
        self.counters.pulled += u64::from(message.is_some());
        Ok(message)
    }

    /// Takes messages until a limit is reached or none is left.
    ///
    /// # Errors
    /// When the first message has to be read, or the store does not accept the new position. Nothing is taken then.
    pub(crate) fn take_batch(
        &mut self,
        limit: BatchLimit,
        now: MonotonicTime,
        page: &mut Page,
    ) -> Result<Taken, TakeError> {
        if self.durable.is_some() {
            // So that a pull that is put back has counted nothing but its messages.
            self.expire_all(now);
        }
        let from = self.pull_next;
        let messages = self.take_messages(limit, now, page)?;
        let commit = match messages.len() {
            0 => None,
            count => self.store_pull(from, count as u64)?,
        };
        Ok(Taken { messages, commit })
    }

    fn take_messages(
        &mut self,
        limit: BatchLimit,
        now: MonotonicTime,
        page: &mut Page,
    ) -> Result<Vec<Message>, Unread> {
        let more_expired = self.expire(now);
        let mut messages = Vec::new();
        let mut bytes = 0;
        while messages.len() < limit.events.max(1) && bytes < limit.bytes.max(1) {
            match self.take(now, more_expired, page) {
                Ok(Some(message)) => {
                    bytes += message.payload().len();
                    messages.push(message);
                }
                Err(unread) if messages.is_empty() => return Err(unread),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(messages)
    }

    /// Returns the messages from a position on, or those that nobody has pulled, without taking them.
    ///
    /// # Errors
    /// When the first message has to be read.
    pub(crate) fn peek(
        &mut self,
        from: Option<Position>,
        limit: BatchLimit,
        now: Now,
        page: &mut Page,
    ) -> Result<Peek, Unread> {
        self.expire(now.monotonic);
        let (wanted, restarted) = match from {
            Some(position) => self.resolve(position, now),
            None => (self.pull_next, false),
        };
        let mut bytes = 0;
        let fits = |entry: &Entry<'_>| {
            let fits = bytes < limit.bytes.max(1);
            bytes += entry.payload_size();
            fits
        };
        let from_there = self.log.from(wanted, now.monotonic).take(limit.events.max(1));
        let mut events = Vec::new();
        let (mut first_id, mut next) = (None, None);
        for entry in from_there.take_while(fits) {
            let (id, ordinal) = (entry.id(), self.log.ordinal(entry.id()));
            let message = match page.message(entry) {
                Ok(message) => message,
                Err(unread) if first_id.is_none() => return Err(unread),
                Err(_) => break,
            };
            first_id.get_or_insert(id);
            // Without a position nobody asked for the messages that left before they were pulled.
            let count = next.filter(|_| from.is_some()).map_or(0, |next| ordinal.since(next));
            if count > 0 {
                events.push(Event::Missed { count, next_id: id });
            }
            events.push(Event::Message { id, message });
            next = Some(ordinal.next());
        }
        let first_id = first_id.unwrap_or(self.log.next_id());
        let start = self.start_position(from.map_or(first_id, |_| wanted), first_id, restarted);
        Ok(Peek { events, epoch: self.info.epoch, start })
    }

    /// Joins the queue of the waiting pulls of a group, or of plain pulls.
    ///
    /// # Errors
    /// When the bus is closed, or pulls of too many groups wait.
    pub(crate) fn wait(&mut self, group: Option<&GroupName>) -> Result<WaiterId, WaitError> {
        if self.state != State::Open {
            return Err(WaitError::Closed);
        }
        let waiter = self.next_waiter;
        let queue = self
            .consumers
            .tables_mut()
            .queue_mut(group)
            .ok_or(WaitError::TooManyGroups { limit: Groups::MAX })?;
        queue.join(waiter);
        self.next_waiter += 1;
        Ok(waiter)
    }

    /// Begins to wait for the end of the topic. A watcher keeps the topic, and gets no messages.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) fn watch(&mut self) -> Result<WaiterId, WaitError> {
        if self.state != State::Open {
            return Err(WaitError::Closed);
        }
        let watcher = self.next_waiter;
        self.consumers.tables_mut().watchers.join(watcher);
        self.next_waiter += 1;
        Ok(watcher)
    }

    /// Stores the waker of a watcher. Returns the waker that it replaces, to be dropped after the lock is released.
    #[must_use]
    pub(crate) fn park_watcher(&mut self, watcher: WaiterId, waker: &Waker) -> Option<Waker> {
        self.consumers.tables_mut().watchers.park(watcher, waker)
    }

    /// Ends a watch. Returns its waker, to be dropped after the lock is released.
    #[must_use]
    pub(crate) fn unwatch(&mut self, watcher: WaiterId) -> Option<Waker> {
        self.consumers.tables_mut().watchers.leave(watcher)
    }

    /// Takes messages for a waiting pull if it is first in the queue. After an empty result the caller parks
    /// and tries again when woken.
    ///
    /// # Errors
    /// When no message can come any more, and as for [`take_batch`](Self::take_batch).
    pub(crate) fn poll_pull(
        &mut self,
        waiter: WaiterId,
        limit: BatchLimit,
        now: MonotonicTime,
        page: &mut Page,
    ) -> Result<Taken, TakeError> {
        if self.state == State::Deleted {
            return Err(TakeError::Over(RecvError::Deleted));
        }
        if !self.consumers.tables().waiters.is_first(waiter) {
            return Ok(Taken::default());
        }
        let taken = self.take_batch(limit, now, page)?;
        if taken.messages.is_empty() && self.is_at_end() {
            return Err(TakeError::Over(RecvError::Closed));
        }
        Ok(taken)
    }

    /// Stores the waker of a waiting pull. Returns the waker that it replaces, to be dropped after the lock
    /// is released.
    #[must_use]
    pub(crate) fn park_waiter(
        &mut self,
        group: Option<&GroupName>,
        waiter: WaiterId,
        waker: &Waker,
    ) -> Option<Waker> {
        self.consumers.existing_queue(group)?.park(waiter, waker)
    }

    /// Leaves the queue. Returns two wakers to handle after the lock is released: its own, to be dropped,
    /// and that of the pull that is first now, to be woken, if there is something for it.
    #[must_use]
    pub(crate) fn cancel_wait(
        &mut self,
        group: Option<&GroupName>,
        waiter: WaiterId,
    ) -> (Option<Waker>, Option<Waker>) {
        let has_work = self.state != State::Open
            || match group {
                Some(group) => self.has_work_for(group),
                None => self.log.has_any_from(self.pull_next),
            };
        let Some(waiters) = self.consumers.existing_queue(group) else { return (None, None) };
        let was_first = waiters.is_first(waiter);
        let own = waiters.leave(waiter);
        let next = if was_first && has_work { waiters.unpark_first() } else { None };
        self.consumers.drop_empty_queue(group);
        (own, next)
    }
}
