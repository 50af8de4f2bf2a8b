//! What is done to one topic, whether it is looked up for it or held by a handle.

use std::sync::Arc;

use super::{
    clock,
    map::{Place, SharedTopic, TopicMap},
    wake_queue,
};
use crate::{
    error::PublishError,
    model::{Draft, Message, Peek, Position, Published, PublishedBatch, TopicName},
    options::BatchLimit,
    topic::{BatchSize, Topic},
};

/// A topic by its name, and by where it was when it was last used.
pub(crate) struct TopicRef<'a> {
    map: &'a TopicMap,
    name: &'a TopicName,
    topic: &'a mut Option<Arc<SharedTopic>>,
}

impl<'a> TopicRef<'a> {
    pub(crate) fn new(
        map: &'a TopicMap,
        name: &'a TopicName,
        topic: &'a mut Option<Arc<SharedTopic>>,
    ) -> Self {
        Self { map, name, topic }
    }

    pub(crate) fn put(&mut self, draft: Draft) -> Result<Published, PublishError> {
        let size = BatchSize { count: 1, charge: draft.charge() };
        let (epoch, id) = self.append(Some(draft), size)?;
        Ok(Published { epoch, id })
    }

    pub(crate) fn put_all(&mut self, drafts: Vec<Draft>) -> Result<PublishedBatch, PublishError> {
        if drafts.is_empty() {
            return self.put_nothing();
        }
        let size = BatchSize::of(&drafts);
        let (epoch, first) = self.append(drafts, size)?;
        Ok(PublishedBatch { epoch, ids: first..first + size.count as u64 })
    }

    /// Where the next message would go. Creates no topic: where there is none, that is epoch 0.
    fn put_nothing(&mut self) -> Result<PublishedBatch, PublishError> {
        if self.map.is_closed() {
            return Err(PublishError::Closed);
        }
        let next = self.with_existing(|topic| (topic.info().epoch, topic.next_id()));
        let (epoch, next_id) = next.unwrap_or_default();
        Ok(PublishedBatch { epoch, ids: next_id..next_id })
    }

    /// Appends and wakes; the answer is the epoch and the first id.
    fn append(
        &mut self,
        drafts: impl IntoIterator<Item = Draft>,
        size: BatchSize,
    ) -> Result<(u64, u64), PublishError> {
        // Those that are refused are dropped here, without a lock.
        let mut drafts = drafts.into_iter();
        let map = self.map;
        let append = |topic: &mut Topic| -> Result<_, PublishError> {
            // The clock is read while the lock is held: deadlines in a log never go back.
            let first = topic.append(&mut drafts, size, clock::now(), || map.count_topic())?;
            Ok(((topic.info().epoch, first), topic.take_wakers(wake_queue::spare)))
        };
        let (_, (appended, wakes)) = self.with_or_create(append)?;
        self.map.wakes.wake(wakes);
        Ok(appended)
    }

    pub(crate) fn get(&mut self) -> Option<Message> {
        self.with_existing(|topic| {
            if topic.may_be_pulled() { topic.take_next(clock::monotonic()) } else { None }
        })?
    }

    pub(crate) fn get_all(&mut self, limit: BatchLimit) -> Vec<Message> {
        self.with_existing(|topic| topic.take_batch(limit, clock::monotonic())).unwrap_or_default()
    }

    pub(crate) fn peek(&mut self, from: Option<Position>, limit: BatchLimit) -> Option<Peek> {
        let map = self.map;
        self.with_existing(|topic| {
            topic.peek(from.map(|from| map.resume(from)), limit, clock::now())
        })
    }

    pub(crate) fn map(&self) -> &'a TopicMap {
        self.map
    }

    /// Does something with the topic, if there is one.
    pub(crate) fn with_existing<T>(&mut self, act: impl FnOnce(&mut Topic) -> T) -> Option<T> {
        loop {
            let topic = match self.topic.take() {
                Some(topic) => topic,
                None => self.map.find(self.name)?,
            };
            let mut locked = topic.lock();
            if locked.is_deleted() {
                continue;
            }
            let done = act(&mut locked);
            drop(locked);
            *self.topic = Some(topic);
            return Some(done);
        }
    }

    /// As [`with_existing`](Self::with_existing), after everything expired was removed, a slice under each lock.
    pub(crate) fn with_exact<T>(&mut self, act: impl FnOnce(&mut Topic) -> T) -> Option<T> {
        while self.with_existing(|topic| topic.expire(clock::monotonic()))? {}
        self.with_existing(act)
    }

    /// Does something with the topic, which is made for it if need be. The answer has the topic beside it, for
    /// those who keep it.
    pub(crate) fn with_or_create<T, E>(
        &mut self,
        act: impl FnOnce(&mut Topic) -> Result<T, E>,
    ) -> Result<(&Arc<SharedTopic>, T), E> {
        loop {
            let topic = match self.topic.take() {
                Some(topic) => topic,
                None => match self.map.place(self.name) {
                    Place::Taken(topic) => topic,
                    Place::Free(place) => {
                        let (topic, done) = place.create(act)?;
                        return Ok((self.topic.insert(topic), done));
                    }
                },
            };
            let mut locked = topic.lock();
            if locked.is_deleted() {
                continue;
            }
            let done = act(&mut locked);
            drop(locked);
            // Also after an error: the next try need not look it up.
            let topic = self.topic.insert(topic);
            return done.map(|done| (&*topic, done));
        }
    }
}
