//! Publishing: messages get their ids and become visible.

use std::sync::Arc;

use super::{
    State, Topic,
    commit::Commit,
    durable::{Durable, PendingMessage},
};
use crate::{
    error::PublishError,
    model::{Headers, Message, NewMessage, Now},
};

/// The size of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

/// What an append returns.
#[derive(Debug)]
pub(crate) struct Appended {
    /// The id of the first message.
    pub(crate) first_id: u64,
    /// Tells when the messages are kept and visible. `None` if they are.
    pub(crate) commit: Option<Arc<Commit>>,
}

impl Topic {
    /// Appends all messages or none: they get their ids and become visible to everybody in one step, at once or when
    /// the store has kept them. Before its first publish the topic calls `admit`, with which the bus counts it
    /// and decides whether it is durable. Afterwards the caller wakes the consumers, see
    /// [`take_wakers`](Self::take_wakers).
    pub(crate) fn append(
        &mut self,
        messages: impl IntoIterator<Item = NewMessage>,
        size: BatchSize,
        now: Now,
        admit: impl FnOnce(&Self) -> Result<Option<Box<Durable>>, PublishError>,
    ) -> Result<Appended, PublishError> {
        if self.state != State::Open {
            return Err(PublishError::Closed);
        }
        self.expire(now.monotonic);
        self.reserve_or_evict(size, now.monotonic)?;
        if !self.was_published {
            self.durable = admit(self)?;
        }
        if self.durable.is_some() {
            return self.append_durable(messages, size, now);
        }
        self.was_published = true;
        let first_id = self.log.next_id();
        for message in messages {
            let message = self.make(message, self.log.next_id(), now);
            self.enter(message);
        }
        Ok(Appended { first_id, commit: None })
    }

    #[inline(never)]
    fn append_durable(
        &mut self,
        messages: impl IntoIterator<Item = NewMessage>,
        size: BatchSize,
        now: Now,
    ) -> Result<Appended, PublishError> {
        let first_id = self.append_id();
        let ids = first_id..;
        let messages = ids.zip(messages).map(|(id, message)| self.make(message, id, now)).collect();
        let commit = self.store_messages(messages, size).inspect_err(|_| {
            if !self.was_published {
                self.durable = None;
            }
        })?;
        self.was_published = true;
        Ok(Appended { first_id, commit: Some(commit) })
    }

    /// Makes a message, with its deadline, that gets this id.
    #[inline]
    fn make(&mut self, new: NewMessage, id: u64, now: Now) -> PendingMessage {
        let created = self.last_created.max(now.wall);
        let ttl = new.ttl.map_or(self.ttl, |ttl| self.ttl.min(ttl.into()));
        let message = Message::new(
            Arc::clone(&self.info),
            id,
            created,
            // By the clock as it is now, even if it was set back.
            now.wall.after(ttl),
            new.payload,
            if new.headers.is_empty() { new.headers } else { self.share(new.headers) },
        );
        self.last_created = created;
        self.last_publish = now.monotonic;
        PendingMessage { message, deadline: now.monotonic.after(ttl), is_early: ttl < self.ttl }
    }

    /// Most messages of a topic have no headers or equal ones. Equal headers are kept once.
    #[inline(never)]
    pub(super) fn share(&mut self, headers: Headers) -> Headers {
        if self.headers != headers {
            self.headers = headers;
        }
        self.headers.clone()
    }
}
