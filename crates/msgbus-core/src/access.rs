//! What is done to one topic, whether it is looked up for it or held by a handle.

use std::sync::Arc;

use crate::{
    cell::TopicCell,
    clock::{Now, Tick},
    error::{PublishError, SubscribeError},
    event::Peek,
    map::{Place, TopicMap},
    message::{Draft, Message, Published, PublishedBatch},
    name::TopicName,
    options::{BatchLimit, SubscribeOptions},
    position::Position,
    pull::Pull,
    subscription::Subscription,
    topic::{BatchSize, Topic},
};

/// A topic by its name, and by where it was when it was last used.
pub(crate) struct Access<'a> {
    map: &'a TopicMap,
    name: &'a TopicName,
    cell: &'a mut Option<Arc<TopicCell>>,
}

impl<'a> Access<'a> {
    pub(crate) fn new(
        map: &'a TopicMap,
        name: &'a TopicName,
        cell: &'a mut Option<Arc<TopicCell>>,
    ) -> Self {
        Self { map, name, cell }
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
        let next = self.look(|topic| (topic.info().epoch, topic.next_id()));
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
            let first = topic.append(&mut drafts, size, Now::read(), || map.count_topic())?;
            Ok(((topic.info().epoch, first), topic.take_wakers()))
        };
        let (cell, (appended, wakes)) = self.enter(append)?;
        *self.cell = Some(cell);
        self.map.wakes.wake(wakes);
        Ok(appended)
    }

    pub(crate) fn get(&mut self) -> Option<Message> {
        self.look(|topic| if topic.may_be_pulled() { topic.take_next(Tick::now()) } else { None })?
    }

    pub(crate) fn get_all(&mut self, limit: BatchLimit) -> Vec<Message> {
        self.look(|topic| topic.take_batch(limit, Tick::now())).unwrap_or_default()
    }

    pub(crate) fn peek(&mut self, from: Option<Position>, limit: BatchLimit) -> Option<Peek> {
        let map = self.map;
        self.look(|topic| topic.peek(from.map(|from| map.resume(from)), limit, Now::read()))
    }

    pub(crate) fn wait(&mut self, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        let (cell, ticket) = self.enter(Topic::wait)?;
        *self.cell = Some(Arc::clone(&cell));
        Ok(Pull::new(cell, ticket, limit))
    }

    pub(crate) fn subscribe(
        &mut self,
        mut options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        let map = self.map;
        let subscribe = |topic: &mut Topic| -> Result<_, SubscribeError> {
            // Under the lock: an earlier incarnation of this topic has been removed by now.
            options.from = map.resume(options.from);
            let (key, start) = topic.subscribe(options, Now::read())?;
            Ok((Arc::clone(topic.info()), key, start))
        };
        let (cell, (info, key, start)) = self.enter(subscribe)?;
        *self.cell = Some(Arc::clone(&cell));
        Ok(Subscription::new(cell, info, key, start))
    }

    /// Does something with the topic, if there is one.
    pub(crate) fn look<T>(&mut self, act: impl FnOnce(&mut Topic) -> T) -> Option<T> {
        loop {
            let cell = match self.cell.take() {
                Some(cell) => cell,
                None => self.map.find(self.name)?,
            };
            let mut topic = cell.lock();
            if topic.is_deleted() {
                continue;
            }
            let done = act(&mut topic);
            drop(topic);
            *self.cell = Some(cell);
            return Some(done);
        }
    }

    /// As [`look`](Self::look), after everything expired was removed, a slice under each lock.
    pub(crate) fn look_exactly<T>(&mut self, act: impl FnOnce(&mut Topic) -> T) -> Option<T> {
        while self.look(|topic| topic.expire(Tick::now()))? {}
        self.look(act)
    }

    /// Does something with the topic, which is made for it if need be.
    fn enter<T, E>(
        &mut self,
        act: impl FnOnce(&mut Topic) -> Result<T, E>,
    ) -> Result<(Arc<TopicCell>, T), E> {
        loop {
            let cell = match self.cell.take() {
                Some(cell) => cell,
                None => match self.map.place(self.name) {
                    Place::Taken(cell) => cell,
                    Place::Free(place) => return place.create(act),
                },
            };
            let mut topic = cell.lock();
            if topic.is_deleted() {
                continue;
            }
            let done = act(&mut topic);
            drop(topic);
            return match done {
                Ok(done) => Ok((cell, done)),
                Err(error) => {
                    // The topic is there all the same: the next try need not look it up.
                    *self.cell = Some(cell);
                    Err(error)
                }
            };
        }
    }
}
