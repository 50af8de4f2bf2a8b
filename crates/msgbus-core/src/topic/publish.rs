//! Publishing: messages get their numbers and become visible.

use std::sync::Arc;

use super::{Life, Topic};
use crate::{
    error::{NoRoom, PublishError},
    model::{Draft, Headers, Message, Now},
};

/// How much is to be appended at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchSize {
    /// In messages.
    pub(crate) count: usize,
    /// In bytes, as the bounds count them.
    pub(crate) charge: u64,
}

impl BatchSize {
    pub(crate) fn of(drafts: &[Draft]) -> Self {
        Self { count: drafts.len(), charge: drafts.iter().map(Draft::charge).sum() }
    }
}

impl Topic {
    /// Appends messages, all or none: numbers them and makes them visible to everybody in one step.
    /// The answer is the id of the first. The first publish ever is to be `admitted` by the bus. The caller then wakes [`take_wakers`](Self::take_wakers).
    pub(crate) fn append(
        &mut self,
        drafts: impl IntoIterator<Item = Draft>,
        size: BatchSize,
        now: Now,
        admitted: impl FnOnce() -> Result<(), NoRoom>,
    ) -> Result<u64, PublishError> {
        if self.life != Life::Open {
            return Err(PublishError::Closed);
        }
        self.expire(now.tick);
        self.make_room(size, now.tick)?;
        if !self.was_published {
            admitted()?;
            self.was_published = true;
        }
        let first = self.log.next_id();
        for draft in drafts {
            self.push(draft, now);
        }
        Ok(first)
    }

    #[inline]
    fn push(&mut self, draft: Draft, now: Now) {
        let created = self.last_created.max(now.wall);
        let ttl = draft.ttl.map_or(self.ttl, |asked| self.ttl.min(asked.into()));
        let message = Message::new(
            Arc::clone(&self.info),
            self.log.next_id(),
            created,
            // Of the clock as it is, which may have been set back.
            now.wall.after(ttl),
            draft.payload,
            draft.headers.map(|headers| self.share(headers)),
        );
        self.log.push(message, now.tick.after(ttl), ttl < self.ttl);
        self.counters.published += 1;
        self.last_created = created;
        self.last_publish = now.tick;
    }

    /// Most messages of a topic have the same headers.
    fn share(&mut self, headers: Arc<Headers>) -> Arc<Headers> {
        match &self.headers {
            Some(last) if *last == headers => Arc::clone(last),
            _ => Arc::clone(self.headers.insert(headers)),
        }
    }
}
