//! One subscription as a door serves it: with its authorization, its back-pressure and the frames that it shares with
//! other subscriptions. The door decides what to do with the frames.

use std::{
    cell::Cell,
    fmt,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

use msgbus_core::{
    BatchLimit, Event, LagPolicy, Op, Position, RecvError, SubscribeOptions, Subscription,
    TopicName,
};
use tracing::{Level, debug, enabled};

use super::{Call, backpressure::MemoryWait, error::ServiceError};
use crate::{
    auth::{Action, LiveAuthorization},
    encode::frame_cache::{Followed, Frame, FrameCache, FrameFormat},
    limits::quota::QuotaPermit,
    net::peer::Peer,
    net::wake_queue::{Delivery, RemoteWaker},
    worker::Worker,
};

/// The maximum that is taken out of the topic at once. A client that stops reading keeps no more than this in memory.
const BATCH: BatchLimit = BatchLimit { events: 64, bytes: 64 << 10 };

thread_local! {
    /// A buffer for one batch. The follower that is polled uses it, so a delivery does not allocate.
    static EVENTS: Cell<Vec<Event>> = const { Cell::new(Vec::new()) };
}

/// One subscription of one client.
#[derive(Debug)]
pub(crate) struct Follower {
    worker: Arc<Worker>,
    peer: Peer,
    subscription: Subscription,
    authorization: LiveAuthorization,
    cache: Arc<FrameCache>,
    waker: RemoteWaker,
    memory: MemoryWait,
    /// The id of the next message if none is missed.
    next_id: u64,
    /// The id of the last message that was received.
    last_id: Option<u64>,
    _permit: QuotaPermit,
}

/// One item of the topic, in order.
#[derive(Debug)]
pub(crate) enum Item {
    Frame(Frame),
    /// This many messages were missed.
    Missed(u64),
}

/// Why a subscription ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The keys no longer allow it.
    Revoked,
    /// The bus ended the subscription.
    Over(RecvError),
}

/// Options for following a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FollowOptions {
    pub(crate) from: Position,
    pub(crate) lag: LagPolicy,
    pub(crate) format: FrameFormat,
}

impl Call<'_> {
    /// Subscribes to a topic. When this is ready, the position is fixed: no message is lost while the door sends its
    /// response.
    pub(crate) fn follow(
        &self,
        topic: &TopicName,
        options: FollowOptions,
    ) -> Op<Result<Follower, ServiceError>> {
        let permit = match self.acquire_subscription(Action::Subscribe, topic) {
            Ok(permit) => permit,
            Err(error) => return Op::ready(Err(error)),
        };
        let FollowOptions { from, lag, format } = options;
        let authorization = self.live_authorization(Action::Subscribe, topic);
        let (worker, peer) = (Arc::clone(self.worker), self.peer);
        let options = SubscribeOptions { from, lag, label: Some(self.label()) };
        self.worker.bus.follow(topic, options).map(move |subscription| {
            let subscription = subscription?;
            debug!(%peer, topic = subscription.name(), from = subscription.start().next_id, "subscribe");
            Ok(Follower::new(worker, peer, subscription, format, authorization, permit))
        })
    }

    pub(super) fn acquire_subscription(
        &self,
        action: Action,
        topic: &TopicName,
    ) -> Result<QuotaPermit, ServiceError> {
        self.authorize(action, topic)?;
        let subscriptions = &self.worker.subscriptions;
        let limit = subscriptions.limit();
        subscriptions.try_acquire(1).ok_or(ServiceError::TooManySubscriptions { limit })
    }
}

impl Follower {
    fn new(
        worker: Arc<Worker>,
        peer: Peer,
        subscription: Subscription,
        format: FrameFormat,
        authorization: LiveAuthorization,
        permit: QuotaPermit,
    ) -> Self {
        let start = subscription.start();
        let (epoch, is_pattern) = (subscription.epoch(), subscription.is_of_pattern());
        let followed = Followed { epoch, is_pattern };
        Self {
            peer,
            authorization,
            cache: worker.frames.cache(followed, format),
            waker: RemoteWaker::default(),
            memory: MemoryWait::default(),
            // Messages that were removed before the start are reported first, as missed.
            next_id: start.requested_id,
            last_id: None,
            subscription,
            worker,
            _permit: permit,
        }
    }

    /// Lets other threads deliver messages, instead of waking the task.
    pub(crate) fn deliver_by(&mut self, delivery: Weak<dyn Delivery>) {
        self.waker = RemoteWaker::with_delivery(delivery);
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    pub(crate) fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    pub(crate) fn last_id(&self) -> Option<u64> {
        self.last_id
    }

    /// Ready when the keys no longer allow it.
    pub(crate) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.authorization.poll_revoked(cx)
    }

    /// Receives a batch from the topic and passes each item to `give`, with the next id after it.
    pub(crate) fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        give: impl FnMut(Item, u64),
    ) -> Poll<Result<(), End>> {
        let mut events = EVENTS.take();
        let polled = self.poll_events(cx, &mut events);
        if let Poll::Ready(Ok(())) = polled {
            self.encode(&events, give);
        }
        events.clear();
        EVENTS.set(events);
        polled
    }

    /// Like [`poll_batch`](Self::poll_batch), on behalf of the task that polled last: when there is more, that task is
    /// woken.
    pub(crate) fn poll_batch_for_task(
        &mut self,
        give: impl FnMut(Item, u64),
    ) -> Poll<Result<(), End>> {
        // Without a waker, no task has polled yet, and there is none to deliver for.
        let Some(waker) = self.waker.task() else { return Poll::Pending };
        self.poll_batch(&mut Context::from_waker(&waker), give)
    }

    fn poll_events(
        &mut self,
        cx: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> Poll<Result<(), End>> {
        if self.authorization.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(End::Revoked));
        }
        let Self { worker, memory, waker, subscription, .. } = self;
        let batch = ready!(memory.poll_receive(cx, worker, subscription, BATCH));
        let received = ready!(waker.poll(cx, |cx| subscription.poll_recv_batch(cx, events, batch)));
        // A message may have been published since the check above, with keys that were reloaded meanwhile.
        if self.authorization.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(End::Revoked));
        }
        Poll::Ready(received.map_err(End::Over))
    }

    fn encode(&mut self, events: &[Event], mut give: impl FnMut(Item, u64)) {
        for event in events {
            let item = match event {
                Event::Message { id, message } => {
                    self.next_id = id + 1;
                    self.last_id = Some(*id);
                    Item::Frame(self.cache.frame(*id, message, &self.worker.inflight))
                }
                Event::Missed { count, next_id } => {
                    self.next_id = *next_id;
                    Item::Missed(*count)
                }
            };
            give(item, self.next_id);
        }
    }

    /// Logs how many messages the client received. Reading the counters takes the topic's lock, so they are read only
    /// if the line is logged.
    pub(crate) fn log_end(&self, end: &dyn fmt::Debug) {
        if !enabled!(Level::DEBUG) {
            return;
        }
        let stats = self.subscription.stats();
        debug!(
            peer = %self.peer,
            topic = self.subscription.name(),
            received = stats.received,
            missed = stats.missed,
            ?end,
            "unsubscribe"
        );
    }
}
