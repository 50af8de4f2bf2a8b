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
    TopicName, TopicPattern,
};
use tracing::{Level, debug, enabled};

use super::{Call, backpressure::MemoryWait, error::ServiceError};
use crate::{
    auth::{Action, GrantFilter, LiveAuthorization, Permission, Target},
    encode::{
        events::Feed,
        format::{Followed, FrameFormat},
        frame::Frame,
        frame_cache::FrameCache,
    },
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
    /// `None` if it is polled with wakers that work efficiently from other threads.
    waker: Option<Box<RemoteWaker>>,
    memory: MemoryWait,
    /// The id of the next message if none is missed.
    next_id: u64,
    /// The id of the last message that was received.
    last_id: Option<u64>,
    /// Whether the client was told that the engine of the topic does not deliver.
    is_stalled: bool,
    _permit: QuotaPermit,
}

/// One item of the topic, in order.
#[derive(Debug)]
pub(crate) enum Item {
    Frame(Frame),
    /// This many messages were missed.
    Missed(u64),
    Feed(Feed),
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
        let admission = match self.admit_follower(Target::Topic(topic.clone()), options.format) {
            Ok(admission) => admission,
            Err(error) => return Op::ready(Err(error)),
        };
        let subscribing = self.worker.bus.follow(topic, self.subscribe_options(options));
        subscribing.map(move |subscription| Ok(admission.follower(subscription?)))
    }

    /// Subscribes to the topics that match a pattern, as [`follow`](Self::follow) does to one. Of those, the client
    /// receives the messages that it may follow at the time. Await it: it may visit many topics.
    pub(crate) fn follow_pattern(
        &self,
        pattern: &TopicPattern,
        options: FollowOptions,
    ) -> Op<Result<Follower, ServiceError>> {
        let target = Target::Pattern(pattern.clone());
        let admission = match self.admit_follower(target, options.format) {
            Ok(admission) => admission,
            Err(error) => return Op::ready(Err(error)),
        };
        let filter = match (&self.worker.keyring, self.authority()) {
            (Some(keyring), Some(principal)) => {
                Some(GrantFilter::new(keyring, Arc::clone(principal)))
            }
            _ => None,
        };
        let options = self.subscribe_options(options);
        self.worker.bus.follow_pattern(pattern, options).map(move |subscription| {
            let subscription = subscription?;
            Ok(admission.follower(match filter {
                Some(filter) => subscription.filtered(filter),
                None => subscription,
            }))
        })
    }

    /// Follows a topic or a pattern.
    pub(crate) fn follow_target(
        &self,
        target: &Target,
        options: FollowOptions,
    ) -> Op<Result<Follower, ServiceError>> {
        match target {
            Target::Topic(topic) => self.follow(topic, options),
            Target::Pattern(pattern) => self.follow_pattern(pattern, options),
        }
    }

    fn subscribe_options(&self, options: FollowOptions) -> SubscribeOptions {
        let FollowOptions { from, lag, format: _ } = options;
        SubscribeOptions { from, lag, label: Some(self.label()) }
    }

    /// Checks everything that a subscription needs, before there is one.
    fn admit_follower(
        &self,
        target: Target,
        format: FrameFormat,
    ) -> Result<Admission, ServiceError> {
        let permit = self.acquire_subscription(target.permission(Action::Subscribe))?;
        let authorization = self.live_authorization(Action::Subscribe, target);
        let worker = Arc::clone(self.worker);
        Ok(Admission { worker, peer: self.peer, authorization, permit, format })
    }

    pub(super) fn acquire_subscription(
        &self,
        permission: Permission<'_>,
    ) -> Result<QuotaPermit, ServiceError> {
        self.require(permission)?;
        let subscriptions = &self.worker.subscriptions;
        let limit = subscriptions.limit();
        subscriptions.try_acquire(1).ok_or(ServiceError::TooManySubscriptions { limit })
    }
}

/// A client that may follow.
#[derive(Debug)]
struct Admission {
    worker: Arc<Worker>,
    peer: Peer,
    authorization: LiveAuthorization,
    permit: QuotaPermit,
    format: FrameFormat,
}

impl Admission {
    fn follower(self, subscription: Subscription) -> Follower {
        let Self { worker, peer, authorization, permit, format } = self;
        let start = subscription.start();
        debug!(%peer, topic = subscription.name(), from = start.next_id, "subscribe");
        let (epoch, is_pattern) = (subscription.epoch(), subscription.is_of_pattern());
        let window = subscription.window_id().unwrap_or(0);
        let followed = Followed { epoch, window, is_pattern };
        Follower {
            peer,
            authorization,
            cache: worker.frames.cache(followed, format),
            waker: Some(Box::default()),
            memory: MemoryWait::default(),
            // Messages that were removed before the start are reported first, as missed.
            next_id: start.requested_id,
            last_id: None,
            is_stalled: false,
            subscription,
            worker,
            _permit: permit,
        }
    }
}

impl Follower {
    /// Lets other threads deliver messages, instead of waking the task.
    pub(crate) fn deliver_by(&mut self, delivery: Weak<dyn Delivery>) {
        self.waker = Some(Box::new(RemoteWaker::with_delivery(delivery)));
    }

    /// Lets it be woken by the wakers with which it is polled, which work efficiently from other threads.
    pub(crate) fn wake_directly(&mut self) {
        self.waker = None;
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

    /// Where another subscription would go on.
    pub(crate) fn position(&self) -> Position {
        Position::before(self.subscription.epoch(), self.next_id)
    }

    pub(crate) fn last_id(&self) -> Option<u64> {
        self.last_id
    }

    /// Ready when the keys no longer allow it.
    pub(crate) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.authorization.poll_revoked(cx)
    }

    /// What there is to say about the engine of the topic when it is time for a keep-alive: that it does not deliver, as
    /// long as that is so, and once that it does again.
    pub(crate) fn feed(&mut self) -> Option<Feed> {
        match (self.subscription.stalled(), self.is_stalled) {
            (Some(_), _) => {
                self.is_stalled = true;
                Some(Feed::Stalled)
            }
            (None, true) => {
                self.is_stalled = false;
                Some(Feed::Resumed)
            }
            (None, false) => None,
        }
    }

    /// Stops waiting for memory, on behalf of a client that accepts nothing: another waiter has its turn.
    pub(crate) fn stop_waiting_for_memory(&mut self) {
        self.memory = MemoryWait::default();
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
        let Some(waker) = self.waker.as_ref().and_then(|waker| waker.task()) else {
            return Poll::Pending;
        };
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
        let mut receive = |cx: &mut Context<'_>| subscription.poll_recv_batch(cx, events, batch);
        let received = ready!(match waker {
            Some(waker) => waker.poll(cx, receive),
            None => receive(cx),
        });
        // A message may have been published since the check above, with keys that were reloaded meanwhile.
        if self.authorization.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(End::Revoked));
        }
        Poll::Ready(received.map_err(End::Over))
    }

    fn encode(&mut self, events: &[Event], mut give: impl FnMut(Item, u64)) {
        if self.is_stalled && self.subscription.stalled().is_none() {
            self.is_stalled = false;
            give(Item::Feed(Feed::Resumed), self.next_id);
        }
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
