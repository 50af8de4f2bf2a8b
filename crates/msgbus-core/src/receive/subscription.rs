//! A subscription: a cursor of its own over a topic's log, and a wake-up. It holds no message that
//! it has not handed out.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_core::Stream;

use super::blocking::block_until;
use crate::{
    bus::{MessageBus, SharedTopic, TopicHandle, TopicRef, clock},
    error::{RecvError, SubscribeError},
    model::{Event, Start, Tick, TopicInfo, TopicName},
    options::{BatchLimit, SubscribeOptions},
    stats::SubscriptionStats,
    topic::{CursorKey, Topic},
};

impl MessageBus {
    /// Subscribes to a topic. From the return on, nothing that is published escapes the subscription
    /// unannounced.
    ///
    /// A topic that does not exist is created, but as long as nothing is published to it, it counts neither
    /// for [`Options::max_topics`] nor for [`Options::max_bytes`], and goes with the last who subscribes or
    /// waits. The number of these topics is that of the subscriptions and waiting pulls, which the program
    /// has to bound.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn subscribe(
        &self,
        topic: &TopicName,
        options: impl Into<SubscribeOptions>,
    ) -> Result<Subscription, SubscribeError> {
        self.at(topic, &mut None).subscribe(options.into())
    }
}

impl TopicHandle {
    /// Subscribes to the topic, as [`MessageBus::subscribe`](crate::MessageBus::subscribe) does.
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
        let subscribe = |topic: &mut Topic| -> Result<_, SubscribeError> {
            // Under the lock: an earlier incarnation of this topic has been removed by now.
            options.from = map.resume(options.from);
            let (key, start) = topic.subscribe(options, clock::now())?;
            Ok((Arc::clone(topic.info()), key, start))
        };
        let (topic, (info, key, start)) = self.with_or_create(subscribe)?;
        Ok(Subscription::new(Arc::clone(topic), info, key, start))
    }
}

/// A live subscription to one topic.
///
/// It can be used from any executor ([`recv`](Self::recv), [`recv_batch`](Self::recv_batch), or as
/// a [`Stream`] whose last item is the reason of its end), and from a thread without one
/// ([`recv_blocking`](Self::recv_blocking), [`recv_timeout`](Self::recv_timeout),
/// [`try_recv`](Self::try_recv)). Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    topic: Arc<SharedTopic>,
    info: Arc<TopicInfo>,
    key: CursorKey,
    start: Start,
    /// Whether the stream has given out the reason of its end.
    has_ended: bool,
}

impl Subscription {
    pub(crate) fn new(
        topic: Arc<SharedTopic>,
        info: Arc<TopicInfo>,
        key: CursorKey,
        start: Start,
    ) -> Self {
        Self { topic, info, key, start, has_ended: false }
    }

    /// The topic subscribed to.
    pub fn topic(&self) -> &Arc<TopicInfo> {
        &self.info
    }

    /// Where the subscription started.
    pub fn start(&self) -> Start {
        self.start
    }

    /// What it has received, missed and still before it.
    pub fn stats(&self) -> SubscriptionStats {
        self.topic.lock_expired().subscription_stats(self.key, clock::monotonic())
    }

    /// The size of the payload that comes next, in bytes; `None` when the next event is no message, or
    /// there is none yet. Takes nothing.
    pub fn next_size(&self) -> Option<usize> {
        let mut topic = self.topic.lock();
        let now = clock::monotonic();
        topic.expire(now);
        topic.next_size(self.key, now)
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// When the subscription is over, see [`RecvError`].
    ///
    /// # Cancel safety
    /// An event is taken only when the future completes: dropping it early loses nothing.
    pub async fn recv(&mut self) -> Result<Event, RecvError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Waits until there is an event, and appends what there is to `events`, up to `limit`, but at
    /// least one.
    ///
    /// # Errors
    /// When the subscription is over, see [`RecvError`]. Then nothing was appended.
    ///
    /// # Cancel safety
    /// As [`recv`](Self::recv).
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
    /// As [`recv_batch`](Self::recv_batch).
    pub fn poll_recv_batch(
        &mut self,
        cx: &mut Context<'_>,
        events: &mut Vec<Event>,
        limit: BatchLimit,
    ) -> Poll<Result<(), RecvError>> {
        self.poll_with(Some(cx), |topic, key, now| take_batch(topic, key, now, events, limit))
    }

    /// Polls for the next event: [`recv`](Self::recv) for hand-written futures.
    ///
    /// # Errors
    /// When the subscription is over, see [`RecvError`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, RecvError>> {
        self.poll_with(Some(cx), Topic::next_event)
    }

    /// Takes the next event if there is one.
    ///
    /// # Errors
    /// When the subscription is over, see [`RecvError`].
    pub fn try_recv(&mut self) -> Result<Option<Event>, RecvError> {
        match self.poll_with(None, Topic::next_event) {
            Poll::Ready(event) => event.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Blocks the thread until there is an event. Not for use on an executor's threads.
    ///
    /// # Errors
    /// When the subscription is over, see [`RecvError`].
    pub fn recv_blocking(&mut self) -> Result<Event, RecvError> {
        loop {
            // Without a deadline there is always an answer.
            if let Some(event) = self.recv_until(None)? {
                return Ok(event);
            }
        }
    }

    /// Blocks the thread until there is an event, or for this long: then the answer is `None`.
    ///
    /// # Errors
    /// When the subscription is over, see [`RecvError`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<Event>, RecvError> {
        self.recv_until(Instant::now().checked_add(timeout))
    }

    fn recv_until(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, RecvError> {
        block_until(deadline, |cx| self.poll_recv(cx)).transpose()
    }

    /// Runs `take` under the topic's lock. When it finds nothing, the task of `cx` is woken when
    /// there is something: it is parked under the same lock, so no publish falls between.
    fn poll_with<T>(
        &mut self,
        cx: Option<&mut Context<'_>>,
        take: impl FnOnce(&mut Topic, CursorKey, Tick) -> Result<Option<T>, RecvError>,
    ) -> Poll<Result<T, RecvError>> {
        let mut topic = self.topic.lock();
        let mut taken = None;
        if !topic.is_caught_up(self.key) {
            let now = clock::monotonic();
            topic.expire(now);
            taken = take(&mut topic, self.key, now).transpose();
        }
        match taken {
            Some(taken) => Poll::Ready(taken),
            None => {
                let replaced = cx.and_then(|cx| topic.park(self.key, cx.waker()));
                drop(topic);
                drop(replaced);
                Poll::Pending
            }
        }
    }
}

/// Takes events up to the limit. An error behind some events waits for the next call, which finds
/// it again.
fn take_batch(
    topic: &mut Topic,
    key: CursorKey,
    now: Tick,
    events: &mut Vec<Event>,
    limit: BatchLimit,
) -> Result<Option<()>, RecvError> {
    let before = events.len();
    let mut bytes = 0;
    while events.len() - before < limit.events.max(1) && bytes < limit.bytes.max(1) {
        match topic.next_event(key, now) {
            Ok(Some(event)) => {
                if let Event::Message(message) = &event {
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

/// The events until the subscription is over, and then why it is, once.
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
        self.topic.unlock_and_forget_abandoned(topic);
        drop(waker);
    }
}
