//! What is done to one topic, whether it is looked up for it or held by a handle.

use std::sync::Arc;

use crate::{
    cell::TopicCell,
    clock::{Now, Tick},
    error::{NoRoom, PublishError, SubscribeError},
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
        let (epoch, id) = self.append([draft], size)?;
        Ok(Published { epoch, id })
    }

    pub(crate) fn put_all(&mut self, drafts: Vec<Draft>) -> Result<PublishedBatch, PublishError> {
        let size = BatchSize::of(&drafts);
        let (epoch, first) = self.append(drafts, size)?;
        Ok(PublishedBatch { epoch, ids: first..first + size.count as u64 })
    }

    /// Appends and wakes; the answer is the epoch and the first id.
    fn append(
        &mut self,
        drafts: impl IntoIterator<Item = Draft>,
        size: BatchSize,
    ) -> Result<(u64, u64), PublishError> {
        let append = |topic: &mut Topic| -> Result<_, PublishError> {
            // The clock is read while the lock is held: deadlines in a log never go back.
            let first = topic.append(drafts, size, Now::read())?;
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
        self.look(|topic| topic.peek(from, limit, Now::read()))
    }

    pub(crate) fn wait(&mut self, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        let (cell, ticket) = self.enter(Topic::wait)?;
        *self.cell = Some(Arc::clone(&cell));
        Ok(Pull::new(cell, ticket, limit))
    }

    pub(crate) fn subscribe(
        &mut self,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        let subscribe = |topic: &mut Topic| -> Result<_, SubscribeError> {
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

    /// Does something with the topic, which is made for it if need be.
    fn enter<T, E: From<NoRoom>>(
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
            let done = act(&mut topic)?;
            drop(topic);
            return Ok((cell, done));
        }
    }
}
