//! A subscription: a cursor over the log of a topic, or over the derived log of a pattern. It holds no messages.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_core::Stream;

use super::{
    blocking::block_on_until,
    engine_cursor::EngineCursor,
    pattern_cursor::{PatternCursor, TopicFilter},
    topic_cursor::TopicCursor,
};
use crate::{
    bus::{MessageBus, Op, SharedPattern, TopicHandle, TopicRef},
    engine::EngineError,
    error::{RecvError, SubscribeError},
    model::{Event, StartPosition, TopicName},
    options::{BatchLimit, SubscribeOptions},
    stats::SubscriptionStats,
    topic::CursorKey,
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
    fn subscribe(&mut self, options: SubscribeOptions) -> Result<Subscription, SubscribeError> {
        self.follow(options).wait()
    }

    pub(crate) fn follow(
        &mut self,
        options: SubscribeOptions,
    ) -> Op<Result<Subscription, SubscribeError>> {
        if let Some(engine) = self.engine() {
            let subscribed = EngineCursor::subscribe(engine, self.map(), self.name(), options);
            return subscribed.map(|subscribed| {
                let (cursor, start) = subscribed?;
                Ok(Subscription::new(Followed::Engine(Box::new(cursor)), start))
            });
        }
        let subscribed = TopicCursor::new(self, options);
        Op::ready(
            subscribed.map(|(cursor, start)| Subscription::new(Followed::Topic(cursor), start)),
        )
    }
}

/// A live subscription to one topic, or to all topics that match a pattern.
///
/// It works on any executor ([`recv`](Self::recv), [`recv_batch`](Self::recv_batch), or as a [`Stream`] whose
/// last item is the reason for its end) and on a thread without one ([`recv_blocking`](Self::recv_blocking),
/// [`recv_timeout`](Self::recv_timeout), [`try_recv`](Self::try_recv)). Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    followed: Followed,
    start: StartPosition,
    /// Whether the stream has returned the reason for its end.
    has_ended: bool,
}

#[derive(Debug)]
enum Followed {
    Topic(TopicCursor),
    /// Boxed, so that a subscription to a topic is small.
    Pattern(Box<PatternCursor>),
    /// Boxed for the same reason.
    Engine(Box<EngineCursor>),
}

impl Subscription {
    fn new(followed: Followed, start: StartPosition) -> Self {
        Self { followed, start, has_ended: false }
    }

    pub(crate) fn of_pattern(
        pattern: Arc<SharedPattern>,
        key: CursorKey,
        start: StartPosition,
    ) -> Self {
        Self::new(Followed::Pattern(Box::new(PatternCursor::new(pattern, key))), start)
    }

    /// Leaves out the messages of topics that the filter does not allow. They count as neither received nor missed. Only a
    /// subscription to a pattern has use for a filter: for one to a topic this does nothing.
    #[must_use]
    pub fn filtered(mut self, filter: impl TopicFilter + 'static) -> Self {
        if let Followed::Pattern(cursor) = &mut self.followed {
            cursor.set_filter(Box::new(filter));
        }
        self
    }

    /// The name of the topic, or the pattern.
    pub fn name(&self) -> &str {
        match &self.followed {
            Followed::Topic(cursor) => cursor.info.name.as_str(),
            Followed::Engine(cursor) => cursor.info.name.as_str(),
            Followed::Pattern(cursor) => cursor.name(),
        }
    }

    /// The epoch of the positions: that of the topic, see [`TopicInfo::epoch`](crate::TopicInfo::epoch), or that of the
    /// order of a pattern.
    pub fn epoch(&self) -> u64 {
        match &self.followed {
            Followed::Topic(cursor) => cursor.info.epoch,
            Followed::Engine(cursor) => cursor.info.epoch,
            Followed::Pattern(cursor) => cursor.epoch(),
        }
    }

    /// Whether it follows a pattern.
    pub fn is_of_pattern(&self) -> bool {
        matches!(self.followed, Followed::Pattern(_))
    }

    /// Identifies the window of a topic that lives in an engine among all windows of this process. Topics of an engine may
    /// have the same epoch. `None` for other subscriptions.
    pub fn window_id(&self) -> Option<u64> {
        match &self.followed {
            Followed::Engine(cursor) => Some(cursor.window_id()),
            Followed::Topic(_) | Followed::Pattern(_) => None,
        }
    }

    /// Why the engine of the topic does not deliver. The subscription goes on when it does again. `None` if it delivers,
    /// and for topics that do not live in an engine.
    pub fn stalled(&self) -> Option<EngineError> {
        match &self.followed {
            Followed::Engine(cursor) => cursor.stalled(),
            Followed::Topic(_) | Followed::Pattern(_) => None,
        }
    }

    /// The position at which the subscription started.
    pub fn start(&self) -> StartPosition {
        self.start
    }

    /// How many messages it has received and missed, and how many are pending.
    pub fn stats(&self) -> SubscriptionStats {
        match &self.followed {
            Followed::Topic(cursor) => cursor.stats(),
            Followed::Engine(cursor) => cursor.stats(),
            Followed::Pattern(cursor) => cursor.stats(),
        }
    }

    /// The size of the next payload, in bytes. `None` if the next event is not a message, or if there is none
    /// yet. Takes nothing.
    pub fn next_size(&self) -> Option<usize> {
        match &self.followed {
            Followed::Topic(cursor) => cursor.next_size(),
            Followed::Engine(cursor) => cursor.next_size(),
            Followed::Pattern(cursor) => cursor.next_size(),
        }
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
        match &mut self.followed {
            Followed::Topic(cursor) => cursor.poll_batch(Some(cx), events, limit),
            Followed::Engine(cursor) => cursor.poll_batch(Some(cx), events, limit),
            Followed::Pattern(cursor) => cursor.poll_batch(cx, events, limit),
        }
    }

    /// Polls for the next event: [`recv`](Self::recv) for hand-written futures.
    ///
    /// # Errors
    /// When the subscription has ended, see [`RecvError`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, RecvError>> {
        self.poll_event(Some(cx))
    }

    /// Takes the next event if there is one in memory. Otherwise it may have to be read from the store, which a later call
    /// finds done.
    ///
    /// # Errors
    /// When the subscription has ended, see [`RecvError`].
    pub fn try_recv(&mut self) -> Result<Option<Event>, RecvError> {
        match self.poll_event(None) {
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

    fn poll_event(&mut self, cx: Option<&mut Context<'_>>) -> Poll<Result<Event, RecvError>> {
        match &mut self.followed {
            Followed::Topic(cursor) => cursor.poll_event(cx),
            Followed::Engine(cursor) => cursor.poll_event(cx),
            Followed::Pattern(cursor) => cursor.poll_event(cx),
        }
    }

    fn recv_until(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, RecvError> {
        block_on_until(deadline, |cx| self.poll_recv(cx)).transpose()
    }
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
