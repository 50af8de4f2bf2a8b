//! The window of a topic that lives in an engine: the engine numbers its messages.
//!
//! The log is contiguous: it has every message of the topic from its first id on. What the window does not have, readers
//! get from the engine, so nothing that leaves it is lost.

use std::sync::Arc;

use super::{BatchSize, Reservation, Topic, durable::PendingMessage, log::Log, sequence::Ordinal};
use crate::{
    model::{Message, Now, TopicInfo, WallTime},
    options::{Overflow, TopicSettings},
    store::RecoveredMessage,
};

impl Topic {
    /// A window whose first message has this or a higher id.
    pub(crate) fn window(
        info: Arc<TopicInfo>,
        settings: TopicSettings,
        reservation: Reservation,
        next_id: u64,
        now: Now,
    ) -> Self {
        let settings = TopicSettings {
            max_bytes: settings.max_bytes.min(settings.memory_bytes),
            overflow: Overflow::DropOldest,
            ..settings
        };
        let mut topic = Self::new(info, settings, reservation, now);
        topic.was_published = true;
        topic.log = Log::starting_at(next_id, Ordinal::default());
        topic
    }

    /// Appends the next message of the engine. One that has no room empties the window.
    pub(crate) fn feed(&mut self, kept: RecoveredMessage, now: Now) {
        // It has that already.
        if kept.id < self.log.next_id() {
            return;
        }
        self.expire(now.monotonic);
        let message = Message::recovered(&self.info, kept);
        let size = BatchSize { count: 1, bytes: message.accounted_size() };
        if self.reserve_or_evict(size, now.monotonic).is_err() {
            self.begin_at(message.id() + 1);
            return;
        }
        let left = match message.expires_at() {
            WallTime::NEVER => self.ttl,
            expires => self.ttl.min(expires.since(now.wall)),
        };
        self.log.skip_to(message.id());
        self.last_created = self.last_created.max(message.created_at());
        self.last_publish = now.monotonic;
        let deadline = now.monotonic.after(left);
        self.enter(PendingMessage { message, deadline, is_early: left < self.ttl });
    }

    /// Empties the window: from now on it has the messages from this id on. A cursor that was before it gets
    /// [`Event::Missed`](crate::Event::Missed), which says that it has to look behind the window.
    pub(crate) fn begin_at(&mut self, next_id: u64) {
        while !self.log.is_empty() {
            self.evict_oldest();
        }
        self.log.leave_out(next_id);
    }

    /// The id of the oldest message, or of the next one.
    pub(crate) fn first_id(&self) -> u64 {
        self.log.first_id()
    }
}
