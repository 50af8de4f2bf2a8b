//! Publishing: messages get their ids and become visible.

use std::sync::Arc;

use super::{State, Topic};
use crate::{
    error::{LimitReached, PublishError},
    model::{Headers, Message, NewMessage, Now},
};

/// The size of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchSize {
    /// Messages.
    pub(crate) count: usize,
    /// Bytes, as the limits count them.
    pub(crate) bytes: u64,
}

impl BatchSize {
    pub(crate) fn of(messages: &[NewMessage]) -> Self {
        let bytes = messages.iter().map(NewMessage::accounted_size).sum();
        Self { count: messages.len(), bytes }
    }
}

impl Topic {
    /// Appends all messages or none: they get their ids and become visible to everybody in one step.
    /// Returns the id of the first one. Before its first publish the topic calls `admit`, with which the
    /// bus counts it. Afterwards the caller wakes the consumers, see
    /// [`take_wakers`](Self::take_wakers).
    pub(crate) fn append(
        &mut self,
        messages: impl IntoIterator<Item = NewMessage>,
        size: BatchSize,
        now: Now,
        admit: impl FnOnce() -> Result<(), LimitReached>,
    ) -> Result<u64, PublishError> {
        if self.state != State::Open {
            return Err(PublishError::Closed);
        }
        self.expire(now.monotonic);
        self.reserve_or_evict(size, now.monotonic)?;
        if !self.was_published {
            admit()?;
            self.was_published = true;
        }
        let first = self.log.next_id();
        for message in messages {
            self.push(message, now);
        }
        Ok(first)
    }

    #[inline]
    fn push(&mut self, new: NewMessage, now: Now) {
        let created = self.last_created.max(now.wall);
        let ttl = new.ttl.map_or(self.ttl, |ttl| self.ttl.min(ttl.into()));
        let message = Message::new(
            Arc::clone(&self.info),
            self.log.next_id(),
            created,
            // By the clock as it is now, even if it was set back.
            now.wall.after(ttl),
            new.payload,
            if new.headers.is_empty() { new.headers } else { self.share(new.headers) },
        );
        self.log.push(message, now.monotonic.after(ttl), ttl < self.ttl);
        self.counters.published += 1;
        self.last_created = created;
        self.last_publish = now.monotonic;
    }

    /// Most messages of a topic have no headers or equal ones. Equal headers are kept once.
    #[inline(never)]
    fn share(&mut self, headers: Headers) -> Headers {
        if self.headers != headers {
            self.headers = headers;
        }
        self.headers.clone()
    }
}
