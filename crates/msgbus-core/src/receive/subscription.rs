//! A subscription: a cursor over a topic's log. It holds no messages.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use futures_core::Stream;

use super::blocking::block_on_until;
use crate::{
    bus::{MessageBus, PageReader, SharedTopic, TopicHandle, TopicRef, clock},
    error::{RecvError, SubscribeError},
    model::{Event, MonotonicTime, StartPosition, TopicInfo, TopicName},
    options::{BatchLimit, SubscribeOptions},
    stats::SubscriptionStats,
    topic::{CursorKey, Page, TakeError, Topic},
};

impl MessageBus {
    /// Subscribes to a topic. From now on the subscription receives every message, or a count of those that it
    /// has missed.
    ///
    /// A topic that does not exist is created. Until something is published to it, it counts neither toward
    /// [`Options::max_topics`](crate::Options::max_topics) nor toward
    /// [`Options::max_bytes`](crate::Options::max_bytes), and it is removed with its last subscription or
    /// waiting pull. The program must limit the number of those.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn subscribe(
        &self,
        topic: &TopicName,
        options: impl Into<SubscribeOptions>,
    ) -> Result<Subscription, SubscribeError> {
        self.topic_ref(topic, &mut None).subscribe(options.into())
    }
}

impl TopicHandle {
    /// Subscribes to the topic, see [`MessageBus::subscribe`].
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn subscribe(
        &mut self,
        options: impl Into<SubscribeOptions>,
    ) -> Result<Subscription, SubscribeError> {
        self.topic_ref().subscribe(options.into())
    }
}

impl TopicRef<'_> {
    fn subscribe(&mut self, mut options: SubscribeOptions) -> Result<Subscription, SubscribeError> {
        let map = self.map();
        let subscribe = |_: &Arc<SharedTopic>, topic: &mut Topic| -> Result<_, SubscribeError> {
            // Under the lock, so that an earlier incarnation of the topic has been removed by now.
            options.from = map.resume(options.from);
            let (key, start) = topic.subscribe(options, clock::now())?;
            Ok((Arc::clone(topic.info()), key, start))
        };
        let (topic, (info, key, start)) = self.with_or_create(subscribe)?;
        Ok(Subscription {
            topic: Arc::clone(topic),
            info,
            key,
            start,
            reader: None,
            has_ended: false,
        })
    }
}

/// A live subscription to one topic.
///
/// It works on any executor ([`recv`](Self::recv), [`recv_batch`](Self::recv_batch), or as a [`Stream`] whose
/// last item is the reason for its end) and on a thread without one ([`recv_blocking`](Self::recv_blocking),
/// [`recv_timeout`](Self::recv_timeout), [`try_recv`](Self::try_recv)). Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    topic: Arc<SharedTopic>,
    info: Arc<TopicInfo>,
    key: CursorKey,
    start: StartPosition,
    /// `None` while the messages that it receives are in memory.
    reader: Option<Box<PageReader>>,
    /// Whether the stream has returned the reason for its end.
    has_ended: bool,
}

impl Subscription {
    /// The name of the topic, or the pattern.
    pub fn name(&self) -> &str {
        self.info.name.as_str()
    }

    /// The epoch of the positions: that of the topic, see [`TopicInfo::epoch`], or that of the order of a pattern.
    pub fn epoch(&self) -> u64 {
        self.info.epoch
    }

    /// Whether it follows a pattern.
    pub fn is_of_pattern(&self) -> bool {
        false
    }

    /// The position at which the subscription started.
    pub fn start(&self) -> StartPosition {
        self.start
    }

    /// How many messages it has received and missed, and how many are pending.
    pub fn stats(&self) -> SubscriptionStats {
        self.topic.lock_and_expire().subscription_stats(self.key, clock::monotonic())
    }

    /// The size of the next payload, in bytes. `None` if the next event is not a message, or if there is none
    /// yet. Takes nothing.
    pub fn next_size(&self) -> Option<usize> {
        let mut topic = self.topic.lock();
        let now = clock::monotonic();
        topic.expire(now);
        topic.next_size(self.key, now)
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// When the subscription has ended, see [`RecvError`].
    ///
    /// # Cancel safety
    /// An event is taken only when the future completes. Dropping it earlier loses nothing.
    pub async fn recv(&mut self) -> Result<Event, RecvError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Waits until there is an event, and appends the available events to `events`: at least one, up to
    /// `limit`.
    ///
    /// # Errors
    /// When the subscription has ended, see [`RecvError`]. Then nothing was appended.
    ///
    /// # Cancel safety
    /// As for [`recv`](Self::recv).
    pub async fn recv_batch(
        &mut self,
        events: &mut Vec<Event>,
        limit: BatchLimit,
    ) -> Result<(), RecvError> {
        poll_fn(|cx| self.poll_recv_batch(cx, events, limit)).await
    }

    /// Polls for a batch: [`recv_batch`](Self::recv_batch) for hand-written futures.
    ///
    /// # Errors
    /// As for [`recv_batch`](Self::recv_batch).
    pub fn poll_recv_batch(
        &mut self,
        cx: &mut Context<'_>,
        events: &mut Vec<Event>,
        limit: BatchLimit,
    ) -> Poll<Result<(), RecvError>> {
        self.poll_with(Some(cx), |topic, key, now, page| {
            take_batch(topic, (key, now, page), events, limit)
        })
    }

    /// Polls for the next event: [`recv`](Self::recv) for hand-written futures.
    ///
    /// # Errors
    /// When the subscription has ended, see [`RecvError`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, RecvError>> {
        self.poll_with(Some(cx), Topic::next_event)
    }

    /// Takes the next event if there is one in memory. Otherwise it may have to be read from the store, which a later call
    /// finds done.
    ///
    /// # Errors
    /// When the subscription has ended, see [`RecvError`].
    pub fn try_recv(&mut self) -> Result<Option<Event>, RecvError> {
        match self.poll_with(None, Topic::next_event) {
            Poll::Ready(event) => event.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Blocks the thread until there is an event. Must not be called on an executor's threads.
    ///
    /// # Errors
    /// When the subscription has ended, see [`RecvError`].
    pub fn recv_blocking(&mut self) -> Result<Event, RecvError> {
        loop {
            // Without a deadline there is always a result.
            if let Some(event) = self.recv_until(None)? {
                return Ok(event);
            }
        }
    }

    /// Blocks the thread until there is an event or the timeout has passed, and then returns `None`.
    ///
    /// # Errors
    /// When the subscription has ended, see [`RecvError`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<Event>, RecvError> {
        self.recv_until(Instant::now().checked_add(timeout))
    }

    fn recv_until(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, RecvError> {
        block_on_until(deadline, |cx| self.poll_recv(cx)).transpose()
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

/// The events until the subscription has ended, and then the reason, once.
impl Stream for Subscription {
    type Item = Result<Event, RecvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let event = self.poll_recv(cx);
        self.has_ended = matches!(event, Poll::Ready(Err(_)));
        event.map(Some)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut topic = self.topic.lock();
        let waker = topic.unsubscribe(self.key, clock::monotonic());
        self.topic.unlock_and_remove_if_abandoned(topic);
        drop(waker);
    }
}
