//! One subscription as a door serves it: its authorisation, its back-pressure and the encodings that it
//! shares with others. What is done with the frames is up to the door.

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
    encode::frame_cache::{Frame, FrameCache, FrameFormat},
    limits::quota::QuotaPermit,
    net::peer::Peer,
    net::wake_queue::{Delivery, Relay},
    worker::Worker,
};

/// What is taken out of the topic at once: a client that stops reading pins no more than this.
const BATCH: BatchLimit = BatchLimit { events: 64, bytes: 64 << 10 };

thread_local! {
    /// Room for one batch, lent to whichever follower is polled: none allocates for a delivery.
    static EVENTS: Cell<Vec<Event>> = const { Cell::new(Vec::new()) };
}

/// One subscription of one client.
#[derive(Debug)]
pub(crate) struct Follower {
    app: Arc<Worker>,
    peer: Peer,
    subscription: Subscription,
    authorization: LiveAuthorization,
    cache: Arc<FrameCache>,
    relay: Relay,
    memory: MemoryWait,
    /// The id that comes next if nothing is missed.
    next_id: u64,
    /// The id of the last message that was taken.
    last_id: Option<u64>,
    _permit: QuotaPermit,
}

/// What comes next in the topic.
#[derive(Debug)]
pub(crate) enum Item {
    Frame(Frame),
    /// This many messages have left the topic.
    Missed(u64),
}

/// Why nothing more comes.
#[derive(Debug)]
pub(crate) enum End {
    /// The keys no longer allow it.
    Revoked,
    /// The subscription is over.
    Over(RecvError),
}

/// How a topic is followed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FollowOptions {
    pub(crate) from: Position,
    pub(crate) lag: LagPolicy,
    pub(crate) format: FrameFormat,
}

impl Call<'_> {
    /// Subscribes to a topic. When it is ready the position is fixed: whatever the door says before the first message,
    /// nothing is lost in between.
    pub(crate) fn follow(
        &self,
        topic: &TopicName,
        options: FollowOptions,
    ) -> Op<Result<Follower, ServiceError>> {
        let permit = match self.acquire_subscription(topic) {
            Ok(permit) => permit,
            Err(error) => return Op::ready(Err(error)),
        };
        let FollowOptions { from, lag, format } = options;
        let authorization = self.live_authorization(Action::Subscribe, topic);
        let (worker, peer) = (Arc::clone(self.worker), self.peer);
        let options = SubscribeOptions { from, lag, label: Some(self.label()) };
        self.worker.bus.follow(topic, options).map(move |subscription| {
            let subscription = subscription?;
            debug!(%peer, topic = %subscription.topic().name, from = subscription.start().next_id, "subscribe");
            Ok(Follower::new(worker, peer, subscription, format, authorization, permit))
        })
    }

    fn acquire_subscription(&self, topic: &TopicName) -> Result<QuotaPermit, ServiceError> {
        self.authorize(Action::Subscribe, topic)?;
        let subscriptions = &self.worker.subscriptions;
        let limit = subscriptions.limit();
        subscriptions.take(1).ok_or(ServiceError::TooManySubscriptions { limit })
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
        Self {
            peer,
            authorization,
            cache: worker.frames.cache(subscription.topic().epoch, format),
            relay: Relay::default(),
            memory: MemoryWait::default(),
            // What had left before the start comes first, as missed.
            next_id: start.requested_id,
            last_id: None,
            subscription,
            app: worker,
            _permit: permit,
        }
    }

    /// Lets other threads take messages and write them, instead of waking the task.
    pub(crate) fn deliver_by(&mut self, delivery: Weak<dyn Delivery>) {
        self.relay = Relay::with_delivery(delivery);
    }

    pub(crate) fn app(&self) -> &Arc<Worker> {
        &self.app
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

    /// Takes a batch out of the topic and gives each of it to `give`, with the id that comes next after it.
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

    /// The same on behalf of the task that has polled last: that one is woken when there is more.
    pub(crate) fn poll_batch_for_task(
        &mut self,
        give: impl FnMut(Item, u64),
    ) -> Poll<Result<(), End>> {
        // Without a task it has not been polled, and there is nobody to deliver for.
        let Some(waker) = self.relay.task() else { return Poll::Pending };
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
        let Self { app, memory, relay, subscription, .. } = self;
        let batch = ready!(memory.poll_receive(cx, app, subscription, BATCH));
        let received = ready!(relay.poll(cx, |cx| subscription.poll_recv_batch(cx, events, batch)));
        // It may have been published since the keys were looked at above.
        if self.authorization.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(End::Revoked));
        }
        Poll::Ready(received.map_err(End::Over))
    }

    fn encode(&mut self, events: &[Event], mut give: impl FnMut(Item, u64)) {
        for event in events {
            let item = match event {
                Event::Message(message) => {
                    self.next_id = message.id() + 1;
                    self.last_id = Some(message.id());
                    Item::Frame(self.cache.frame(message, &self.app.inflight))
                }
                Event::Missed { count, next_id } => {
                    self.next_id = *next_id;
                    Item::Missed(*count)
                }
            };
            give(item, self.next_id);
        }
    }

    /// Logs what the client has received. The counters take the topic's lock: not for a line that nobody
    /// reads.
    pub(crate) fn log_end(&self, end: &dyn fmt::Debug) {
        if !enabled!(Level::DEBUG) {
            return;
        }
        let stats = self.subscription.stats();
        debug!(
            peer = %self.peer,
            topic = %self.subscription.topic().name,
            received = stats.received,
            missed = stats.missed,
            ?end,
            "unsubscribe"
        );
    }
}
