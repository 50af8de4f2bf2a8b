//! Reads the messages of a derived log that are only in the stores of their topics, for one reader.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::SharedPattern;
use crate::{
    bus::{clock, map::SharedTopic},
    derived::{Pages, Stored},
    model::{Message, TopicInfo},
    options::BatchLimit,
    store::{Read, StoreError},
    topic::{Entry, Unread},
};

/// What a reader has read: a page of each of the latest topics. Consecutive messages of a pattern are often of different
/// topics.
#[derive(Default)]
pub(crate) struct StoredPages {
    /// The latest last.
    pages: VecDeque<TopicPage>,
    reading: Option<(Stored, Arc<SharedTopic>, Read)>,
}

/// What is known of the messages of a topic in a range of ids.
#[derive(Debug)]
struct TopicPage {
    epoch: u64,
    from_id: u64,
    end_id: u64,
    /// Those that are not here are gone.
    messages: VecDeque<Message>,
}

impl std::fmt::Debug for StoredPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reading = self.reading.as_ref().map(|(stored, ..)| stored);
        f.debug_struct("StoredPages")
            .field("pages", &self.pages)
            .field("reading", &reading)
            .finish()
    }
}

impl StoredPages {
    /// The most topics that a reader has pages of.
    const MAX_PAGES: usize = 16;
    /// The most that a page holds. It has at least one message.
    const LIMIT: BatchLimit = BatchLimit { events: 256, bytes: 16 << 10 };

    /// Reads a message that was not found in the pages. When it is ready, they say where the message is.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        pattern: &SharedPattern,
        stored: Option<Stored>,
    ) -> Poll<Result<(), StoreError>> {
        if let Some(stored) = stored {
            self.look_for(pattern, stored);
        }
        let Some((stored, _, reading)) = &mut self.reading else { return Poll::Ready(Ok(())) };
        let read = ready!(reading.as_mut().poll(cx));
        let stored = stored.clone();
        let Some((_, source, _)) = self.reading.take() else { return Poll::Ready(Ok(())) };
        let recovered = read?.into_iter().map(|kept| Message::recovered(&stored.topic, kept));
        let messages: VecDeque<_> = recovered.collect();
        let is_found = messages.front().is_some_and(|message| message.id() == stored.id);
        if !is_found
            && source
                .lock()
                .first_retained(stored.id, clock::monotonic())
                .is_some_and(|entry| entry.id() == stored.id)
        {
            return Poll::Ready(Err(StoreError::Failed));
        }
        let end_id = messages.back().map_or(stored.id, Message::id) + 1;
        self.add(TopicPage { epoch: stored.topic.epoch, from_id: stored.id, end_id, messages });
        Poll::Ready(Ok(()))
    }

    /// Notes what the topic knows of a message, or starts to read it.
    fn look_for(&mut self, pattern: &SharedPattern, stored: Stored) {
        let Stored { topic, id } = &stored;
        let (epoch, from_id) = (topic.epoch, *id);
        let map = pattern.map.upgrade();
        let source = map.and_then(|map| map.find(&topic.name));
        let gone_before = |end_id| TopicPage { epoch, from_id, end_id, messages: VecDeque::new() };
        let Some(source) = source else { return self.add(gone_before(u64::MAX)) };
        let locked = source.lock();
        if locked.is_deleted() || locked.info().epoch != epoch {
            return self.add(gone_before(u64::MAX));
        }
        let page = match locked.first_retained(from_id, clock::monotonic()) {
            None => gone_before(locked.next_id()),
            Some(entry) if entry.id() > from_id => gone_before(entry.id()),
            Some(Entry::Hot(message)) => {
                TopicPage { messages: [message.clone()].into(), ..gone_before(from_id + 1) }
            }
            Some(Entry::Cold(_)) => match locked.read(Unread(from_id), Self::LIMIT) {
                Some(read) => {
                    drop(locked);
                    self.reading = Some((stored, source, read));
                    return;
                }
                None => gone_before(from_id + 1),
            },
        };
        drop(locked);
        self.add(page);
    }

    /// Forgets what was read, when everything has been received.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
    }

    fn add(&mut self, page: TopicPage) {
        self.pages.retain(|known| known.epoch != page.epoch);
        if self.pages.len() == Self::MAX_PAGES {
            self.pages.pop_front();
        }
        self.pages.push_back(page);
    }
}

impl Pages for StoredPages {
    fn find(&mut self, topic: &Arc<TopicInfo>, id: u64) -> Result<Option<Message>, Stored> {
        let known = self.pages.iter_mut().find(|page| page.epoch == topic.epoch);
        let page = known.filter(|page| (page.from_id..page.end_id).contains(&id));
        let Some(page) = page else { return Err(Stored { topic: Arc::clone(topic), id }) };
        while page.messages.front().is_some_and(|message| message.id() < id) {
            page.messages.pop_front();
        }
        Ok(page.messages.front().filter(|message| message.id() == id).cloned())
    }
}
