//! Reads cold messages for one reader of a topic.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{locked_topic::LockedTopic, map::SharedTopic};
use crate::{
    store::{Read, StoreError},
    topic::{Page, TakeError, Topic, Unread},
};

/// The messages that a reader has read from the store and not taken yet, and the read that is in progress.
#[derive(Default)]
pub(crate) struct PageReader {
    page: Page,
    reading: Option<(Unread, Read)>,
}

impl std::fmt::Debug for PageReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reading = self.reading.as_ref().map(|(unread, _)| unread);
        f.debug_struct("PageReader").field("page", &self.page).field("reading", &reading).finish()
    }
}

impl PageReader {
    /// Whether it holds nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.page.is_empty() && self.reading.is_none()
    }

    /// Calls `take` under the topic's lock. Reads what it needs without the lock, and calls it again. Returns the lock
    /// under which `take` has succeeded.
    ///
    /// # Errors
    /// Those of `take`, and when the store cannot be read.
    pub(crate) fn poll_take<'t, T, E: From<StoreError>>(
        &mut self,
        cx: &mut Context<'_>,
        topic: &'t SharedTopic,
        mut take: impl FnMut(&mut Topic, &mut Page) -> Result<T, TakeError<E>>,
    ) -> Poll<Result<(LockedTopic<'t>, T), E>> {
        let mut just_read = None;
        loop {
            if let Some((unread, reading)) = &mut self.reading {
                let read = ready!(reading.as_mut().poll(cx));
                just_read = Some(*unread);
                self.reading = None;
                let info = Arc::clone(topic.lock().info());
                self.page = Page::new(&info, read?);
            }
            let mut locked = topic.lock();
            let unread = match take(&mut locked, &mut self.page) {
                Ok(taken) => return Poll::Ready(Ok((locked, taken))),
                Err(TakeError::Over(end)) => return Poll::Ready(Err(end)),
                Err(TakeError::Unread(unread)) => unread,
            };
            // The store was asked for this very message.
            let is_lost = just_read == Some(unread);
            let Some(read) = locked.read(unread, Page::LIMIT).filter(|_| !is_lost) else {
                return Poll::Ready(Err(StoreError::Failed.into()));
            };
            self.reading = Some((unread, read));
        }
    }
}
