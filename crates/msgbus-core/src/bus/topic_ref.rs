//! The operations on one topic, for [`MessageBus`](super::MessageBus) and
//! [`TopicHandle`](super::TopicHandle). This is the only layer between them and the locked topic.

use std::{future::poll_fn, sync::Arc};

use super::{
    clock,
    map::{Entry, SharedTopic, TopicMap},
    op::Op,
    page_reader::PageReader,
    patterns, wake_queue,
};
use crate::{
    error::{PublishError, RecvError},
    model::{Message, NewMessage, Peek, Position, Published, PublishedBatch, TopicName},
    options::BatchLimit,
    store::{Durability, StoreError},
    topic::{Appended, BatchSize, Page, TakeError, Taken, Topic, Wakers},
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

    pub(crate) fn name(&self) -> &'a TopicName {
        self.name
    }

    /// Whether the topic is in the map. Then the next use finds it without a look-up.
    pub(super) fn find_location(&mut self) -> bool {
        if self.location.is_none() {
            *self.location = self.map.find(self.name);
        }
        self.location.is_some()
    }

    /// The topic, if it was found when it was last used.
    pub(super) fn location(&self) -> Option<&Arc<SharedTopic>> {
        self.location.as_ref()
    }

    #[inline]
    pub(crate) fn publish(&mut self, message: NewMessage) -> Op<Result<Published, PublishError>> {
        if let Some(engine) = self.engine() {
            let published = engine.publish(self.name, vec![message]);
            return published.map(|published| {
                published.map(|PublishedBatch { epoch, ids, durability }| Published {
                    epoch,
                    id: ids.start,
                    durability,
                })
            });
        }
        let size = BatchSize { count: 1, bytes: message.accounted_size() };
        match self.append(Some(message), size) {
            Ok((topic, epoch, durability, Appended { first_id: id, commit })) => {
                Op::after(commit, topic, Published { epoch, id, durability })
            }
            Err(error) => Op::ready(Err(error)),
        }
    }

    pub(crate) fn publish_batch(
        &mut self,
        messages: Vec<NewMessage>,
    ) -> Op<Result<PublishedBatch, PublishError>> {
        if messages.is_empty() {
            return Op::ready(self.put_empty());
        }
        if let Some(engine) = self.engine() {
            return engine.publish(self.name, messages);
        }
        let size = BatchSize::of(&messages);
        match self.append(messages, size) {
            Ok((topic, epoch, durability, Appended { first_id, commit })) => {
                let ids = first_id..first_id + size.count as u64;
                Op::after(commit, topic, PublishedBatch { epoch, ids, durability })
            }
            Err(error) => Op::ready(Err(error)),
        }
    }

    /// Returns the id of the next message. Creates no topic: without one the epoch is 0.
    fn put_empty(&mut self) -> Result<PublishedBatch, PublishError> {
        if self.map.is_closed() {
            return Err(PublishError::Closed);
        }
        let next =
            self.with_existing(|topic| (topic.info().epoch, topic.next_id(), topic.durability()));
        let (epoch, next_id, durability) = next.unwrap_or_default();
        Ok(PublishedBatch { epoch, ids: next_id..next_id, durability })
    }

    /// Appends and wakes. Also returns the topic, its epoch, and what the messages survive.
    fn append(
        &mut self,
        messages: impl IntoIterator<Item = NewMessage>,
        size: BatchSize,
    ) -> Result<(&Arc<SharedTopic>, u64, Durability, Appended), PublishError> {
        // Refused messages are dropped here, after the lock is released.
        let mut messages = messages.into_iter();
        let map = self.map;
        let append = |shared: &Arc<SharedTopic>, topic: &mut Topic| -> Result<_, PublishError> {
            let mut is_admitted = false;
            // The clock is read under the lock, so that deadlines in a log never go back.
            let appended = topic.append(&mut messages, size, clock::now(), |topic| {
                map.admit_topic()?;
                is_admitted = true;
                map.keep(shared, topic)
            });
            if appended.is_err() && is_admitted {
                map.dismiss_topic();
            }
            let appended = appended?;
            let wakers = match appended.commit {
                None => {
                    let mut wakers = topic.take_wakers(wake_queue::spare);
                    patterns::feed(topic, &mut wakers);
                    wakers
                }
                // Nothing is visible yet.
                Some(_) => Wakers::default(),
            };
            Ok((topic.info().epoch, topic.durability(), appended, wakers))
        };
        let (topic, (epoch, durability, appended, wakers)) = self.with_or_create(append)?;
        map.wake_queue.wake(wakers);
        Ok((topic, epoch, durability, appended))
    }

    pub(crate) fn get(&mut self) -> Result<Option<Message>, StoreError> {
        if let Some(engine) = self.engine() {
            return Ok(engine.pull(self.name, BatchLimit::ONE).wait()?.pop());
        }
        let taken = self.with_existing(|topic| {
            if !topic.has_unpulled() {
                return Ok(None);
            }
            if topic.is_durable() {
                return Err(());
            }
            Ok(topic.take_next(clock::monotonic()))
        });
        match taken {
            Some(Ok(message)) => Ok(message),
            None => Ok(None),
            Some(Err(())) => Ok(self.pull(BatchLimit::ONE).wait()?.pop()),
        }
    }

    pub(crate) fn pull(&mut self, limit: BatchLimit) -> Op<Result<Vec<Message>, StoreError>> {
        if let Some(engine) = self.engine() {
            return engine.pull(self.name, limit);
        }
        let taken = self.with_existing(|topic| {
            topic.take_batch(limit, clock::monotonic(), &mut Page::default())
        });
        let Some(topic) = &*self.location else { return Op::ready(Ok(Vec::new())) };
        match taken {
            Some(Ok(Taken { messages, commit })) => Op::after(commit, topic, messages),
            Some(Err(TakeError::Unread(_))) => Op::running(pull_cold(Arc::clone(topic), limit)),
            Some(Err(TakeError::Over(end))) => Op::ready(Err(store_error(end))),
            None => Op::ready(Ok(Vec::new())),
        }
    }

    pub(crate) fn peek(
        &mut self,
        from: Option<Position>,
        limit: BatchLimit,
    ) -> Op<Result<Option<Peek>, StoreError>> {
        if let Some(engine) = self.engine() {
            return engine.peek(self.name, from, limit);
        }
        let from = from.map(|from| self.map.resume(from));
        let peek =
            self.with_existing(|topic| topic.peek(from, limit, clock::now(), &mut Page::default()));
        match (peek, &*self.location) {
            (Some(Err(_)), Some(topic)) => Op::running(peek_cold(Arc::clone(topic), from, limit)),
            (peek, _) => Op::ready(Ok(peek.and_then(Result::ok))),
        }
    }

    pub(crate) fn next_size(&mut self, from: Option<Position>) -> Option<usize> {
        let from = from.map(|from| self.map.resume(from));
        self.with_existing(|topic| match from {
            Some(from) => topic.size_from(from, clock::now()),
            None => topic.next_unpulled_size(clock::monotonic()),
        })?
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
        act: impl FnOnce(&Arc<SharedTopic>, &mut Topic) -> Result<T, E>,
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
            let result = act(&topic, &mut locked);
            drop(locked);
            // The location is kept after an error too: the next attempt needs no look-up.
            let topic = self.location.insert(topic);
            return result.map(|result| (&*topic, result));
        }
    }
}

/// Reads the next messages, and takes them.
async fn pull_cold(topic: Arc<SharedTopic>, limit: BatchLimit) -> Result<Vec<Message>, StoreError> {
    let take =
        |topic: &mut Topic, page: &mut Page| topic.take_batch(limit, clock::monotonic(), page);
    let Taken { messages, commit } = read_and_take(&topic, take).await.map_err(store_error)?;
    if let Some(commit) = commit {
        poll_fn(|cx| commit.poll(cx)).await?;
    }
    Ok(messages)
}

async fn peek_cold(
    topic: Arc<SharedTopic>,
    from: Option<Position>,
    limit: BatchLimit,
) -> Result<Option<Peek>, StoreError> {
    let peek =
        |topic: &mut Topic, page: &mut Page| Ok(topic.peek(from, limit, clock::now(), page)?);
    read_and_take(&topic, peek).await.map_err(store_error).map(Some)
}

/// Calls `take` with the messages that it needs from the store.
pub(super) async fn read_and_take<T, E: From<StoreError>>(
    topic: &SharedTopic,
    mut take: impl FnMut(&mut Topic, &mut Page) -> Result<T, TakeError<E>>,
) -> Result<T, E> {
    let mut reader = PageReader::default();
    poll_fn(|cx| reader.poll_take(cx, topic, &mut take).map_ok(|(_, taken)| taken)).await
}

/// A topic that has ended has no messages: only its store fails.
fn store_error(end: RecvError) -> StoreError {
    match end {
        RecvError::Store(error) => error,
        _ => StoreError::Closed,
    }
}
