//! The operations on one topic, for [`MessageBus`](super::MessageBus) and
//! [`TopicHandle`](super::TopicHandle). This is the only layer between them and the locked topic.

use std::sync::Arc;

use super::{
    clock,
    map::{Entry, SharedTopic, TopicMap},
    wake_queue,
};
use crate::{
    error::PublishError,
    model::{Message, NewMessage, Peek, Position, Published, PublishedBatch, TopicName},
    options::BatchLimit,
    topic::{BatchSize, Topic},
};

/// A topic by its name, together with its location when it was last used.
pub(crate) struct TopicRef<'a> {
    map: &'a TopicMap,
    name: &'a TopicName,
    location: &'a mut Option<Arc<SharedTopic>>,
}

impl<'a> TopicRef<'a> {
    pub(crate) fn new(
        map: &'a TopicMap,
        name: &'a TopicName,
        location: &'a mut Option<Arc<SharedTopic>>,
    ) -> Self {
        Self { map, name, location }
    }

    pub(crate) fn map(&self) -> &'a TopicMap {
        self.map
    }

    pub(crate) fn put(&mut self, message: NewMessage) -> Result<Published, PublishError> {
        let size = BatchSize { count: 1, bytes: message.accounted_size() };
        let (epoch, id) = self.append(Some(message), size)?;
        Ok(Published { epoch, id })
    }

    pub(crate) fn put_batch(
        &mut self,
        messages: Vec<NewMessage>,
    ) -> Result<PublishedBatch, PublishError> {
        if messages.is_empty() {
            return self.put_empty();
        }
        let size = BatchSize::of(&messages);
        let (epoch, first) = self.append(messages, size)?;
        Ok(PublishedBatch { epoch, ids: first..first + size.count as u64 })
    }

    /// Returns the id of the next message. Creates no topic: without one the epoch is 0.
    fn put_empty(&mut self) -> Result<PublishedBatch, PublishError> {
        if self.map.is_closed() {
            return Err(PublishError::Closed);
        }
        let next = self.with_existing(|topic| (topic.info().epoch, topic.next_id()));
        let (epoch, next_id) = next.unwrap_or_default();
        Ok(PublishedBatch { epoch, ids: next_id..next_id })
    }

    /// Appends and wakes. Returns the epoch and the first id.
    fn append(
        &mut self,
        messages: impl IntoIterator<Item = NewMessage>,
        size: BatchSize,
    ) -> Result<(u64, u64), PublishError> {
        // Refused messages are dropped here, after the lock is released.
        let mut messages = messages.into_iter();
        let map = self.map;
        let append = |topic: &mut Topic| -> Result<_, PublishError> {
            // The clock is read under the lock, so that deadlines in a log never go back.
            let first = topic.append(&mut messages, size, clock::now(), || map.admit_topic())?;
            Ok(((topic.info().epoch, first), topic.take_wakers(wake_queue::spare)))
        };
        let (_, (appended, wakers)) = self.with_or_create(append)?;
        self.map.wake_queue.wake(wakers);
        Ok(appended)
    }

    pub(crate) fn get(&mut self) -> Option<Message> {
        self.with_existing(|topic| {
            if topic.has_unpulled() { topic.take_next(clock::monotonic()) } else { None }
        })?
    }

    pub(crate) fn get_batch(&mut self, limit: BatchLimit) -> Vec<Message> {
        self.with_existing(|topic| topic.take_batch(limit, clock::monotonic())).unwrap_or_default()
    }

    pub(crate) fn peek(&mut self, from: Option<Position>, limit: BatchLimit) -> Option<Peek> {
        let map = self.map;
        self.with_existing(|topic| {
            topic.peek(from.map(|from| map.resume(from)), limit, clock::now())
        })
    }

    /// Locks the topic and calls `act`, if there is a topic.
    pub(crate) fn with_existing<T>(&mut self, act: impl FnOnce(&mut Topic) -> T) -> Option<T> {
        loop {
            let topic = match self.location.take() {
                Some(topic) => topic,
                None => self.map.find(self.name)?,
            };
            let mut locked = topic.lock();
            if locked.is_deleted() {
                continue;
            }
            let result = act(&mut locked);
            drop(locked);
            *self.location = Some(topic);
            return Some(result);
        }
    }

    /// Like [`with_existing`](Self::with_existing), after all expired messages were removed, a slice under
    /// each lock.
    pub(crate) fn with_expired_removed<T>(
        &mut self,
        act: impl FnOnce(&mut Topic) -> T,
    ) -> Option<T> {
        while self.with_existing(|topic| topic.expire(clock::monotonic()))? {}
        self.with_existing(act)
    }

    /// Locks the topic and calls `act`. Creates the topic if there is none, unless `act` fails. Returns the
    /// result together with the topic.
    pub(crate) fn with_or_create<T, E>(
        &mut self,
        act: impl FnOnce(&mut Topic) -> Result<T, E>,
    ) -> Result<(&Arc<SharedTopic>, T), E> {
        loop {
            let topic = match self.location.take() {
                Some(topic) => topic,
                None => match self.map.entry(self.name) {
                    Entry::Occupied(topic) => topic,
                    Entry::Vacant(entry) => {
                        let (topic, result) = entry.create(act)?;
                        return Ok((self.location.insert(topic), result));
                    }
                },
            };
            let mut locked = topic.lock();
            if locked.is_deleted() {
                continue;
            }
            let result = act(&mut locked);
            drop(locked);
            // The location is kept after an error too: the next attempt needs no look-up.
            let topic = self.location.insert(topic);
            return result.map(|result| (&*topic, result));
        }
    }
}
