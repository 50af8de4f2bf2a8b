//! The cursor of a subscription to one topic.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use crate::{
    bus::{PageReader, SharedTopic, TopicRef, clock},
    error::{RecvError, SubscribeError},
    model::{Event, MonotonicTime, StartPosition, TopicInfo},
    options::{BatchLimit, SubscribeOptions},
    stats::SubscriptionStats,
    topic::{CursorKey, Page, TakeError, Topic},
};

/// A cursor over a topic's log. Dropping it unsubscribes.
#[derive(Debug)]
pub(super) struct TopicCursor {
    topic: Arc<SharedTopic>,
    pub(super) info: Arc<TopicInfo>,
    key: CursorKey,
    /// `None` while the messages that it receives are in memory.
    reader: Option<Box<PageReader>>,
}

impl TopicCursor {
    pub(super) fn new(
        topic: &mut TopicRef<'_>,
        mut options: SubscribeOptions,
    ) -> Result<(Self, StartPosition), SubscribeError> {
        let map = topic.map();
        let subscribe = |_: &Arc<SharedTopic>, topic: &mut Topic| -> Result<_, SubscribeError> {
            // Under the lock, so that an earlier incarnation of the topic has been removed by now.
            options.from = map.resume(options.from);
            let (key, start) = topic.subscribe(options, clock::now())?;
            Ok((Arc::clone(topic.info()), key, start))
        };
        let (topic, (info, key, start)) = topic.with_or_create(subscribe)?;
        Ok((Self { topic: Arc::clone(topic), info, key, reader: None }, start))
    }

    /// The cursor of a topic that was subscribed to.
    pub(super) fn joined(topic: Arc<SharedTopic>, info: Arc<TopicInfo>, key: CursorKey) -> Self {
        Self { topic, info, key, reader: None }
    }

    pub(super) fn stats(&self) -> SubscriptionStats {
        self.topic.lock_and_expire().subscription_stats(self.key, clock::monotonic())
    }

    pub(super) fn next_size(&self) -> Option<usize> {
        let mut topic = self.topic.lock();
        let now = clock::monotonic();
        topic.expire(now);
        topic.next_size(self.key, now)
    }

    /// Takes the next event.
    pub(super) fn poll_event(
        &mut self,
        cx: Option<&mut Context<'_>>,
    ) -> Poll<Result<Event, RecvError>> {
        self.poll_with(cx, Topic::next_event)
    }

    /// Takes the events that there are, up to a limit.
    pub(super) fn poll_batch(
        &mut self,
        cx: Option<&mut Context<'_>>,
        events: &mut Vec<Event>,
        limit: BatchLimit,
    ) -> Poll<Result<(), RecvError>> {
        self.poll_with(cx, |topic, key, now, page| {
            take_batch(topic, (key, now, page), events, limit)
        })
    }

    /// Calls `take` under the topic's lock. If it finds nothing, parks the task of `cx` under the same lock,
    /// so that no publish can fall in between.
    fn poll_with<T>(
        &mut self,
        cx: Option<&mut Context<'_>>,
        mut take: impl FnMut(
            &mut Topic,
            CursorKey,
            MonotonicTime,
            &mut Page,
        ) -> Result<Option<T>, TakeError>,
    ) -> Poll<Result<T, RecvError>> {
        if self.reader.is_some() {
            return self.poll_cold(cx, take);
        }
        let mut topic = self.topic.lock();
        let mut taken = Ok(None);
        if !topic.is_caught_up(self.key) {
            let now = clock::monotonic();
            topic.expire(now);
            taken = take(&mut topic, self.key, now, &mut Page::default());
        }
        match taken {
            Ok(Some(taken)) => Poll::Ready(Ok(taken)),
            Ok(None) => {
                let replaced = cx.and_then(|cx| topic.park(self.key, cx.waker()));
                drop(topic);
                drop(replaced);
                Poll::Pending
            }
            Err(TakeError::Over(end)) => Poll::Ready(Err(end)),
            Err(TakeError::Unread(_)) => {
                drop(topic);
                self.poll_cold(cx, take)
            }
        }
    }

    /// Like [`poll_with`](Self::poll_with), while the next messages are only in the store.
    #[inline(never)]
    fn poll_cold<T>(
        &mut self,
        cx: Option<&mut Context<'_>>,
        mut take: impl FnMut(
            &mut Topic,
            CursorKey,
            MonotonicTime,
            &mut Page,
        ) -> Result<Option<T>, TakeError>,
    ) -> Poll<Result<T, RecvError>> {
        let key = self.key;
        let mut no_task = Context::from_waker(Waker::noop());
        let has_task = cx.is_some();
        let cx = cx.unwrap_or(&mut no_task);
        let reader = self.reader.get_or_insert_default();
        let polled = reader.poll_take(cx, &self.topic, |topic, page| {
            let now = clock::monotonic();
            topic.expire(now);
            take(topic, key, now, page)
        });
        let (mut topic, taken) = ready!(polled)?;
        if let Some(taken) = taken {
            drop(topic);
            if reader.is_idle() {
                self.reader = None;
            }
            return Poll::Ready(Ok(taken));
        }
        let replaced = if has_task { topic.park(key, cx.waker()) } else { None };
        drop(topic);
        drop(replaced);
        self.reader = None;
        Poll::Pending
    }
}

/// Takes events up to the limit. An error after some events is left to the next call, which finds it again.
fn take_batch(
    topic: &mut Topic,
    (key, now, page): (CursorKey, MonotonicTime, &mut Page),
    events: &mut Vec<Event>,
    limit: BatchLimit,
) -> Result<Option<()>, TakeError> {
    let before = events.len();
    let mut bytes = 0;
    while events.len() - before < limit.events.max(1) && bytes < limit.bytes.max(1) {
        match topic.next_event(key, now, page) {
            Ok(Some(event)) => {
                if let Event::Message { message, .. } = &event {
                    bytes += message.payload().len();
                }
                events.push(event);
            }
            Err(end) if events.len() == before => return Err(end),
            Ok(None) | Err(_) => break,
        }
    }
    Ok((events.len() > before).then_some(()))
}

impl Drop for TopicCursor {
    fn drop(&mut self) {
        let mut topic = self.topic.lock();
        let waker = topic.unsubscribe(self.key, clock::monotonic());
        self.topic.unlock_and_remove_if_abandoned(topic);
        drop(waker);
    }
}
