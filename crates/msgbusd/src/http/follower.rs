//! One subscription as a door serves it: its authorisation, its back-pressure and the encodings that it
//! shares with others. What is done with the frames is up to the door.

use std::{
    cell::Cell,
    fmt,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

use msgbus_core::{BatchLimit, Event, RecvError, Subscription};
use tracing::{Level, debug, enabled};

use super::room::Patience;
use crate::{
    bound::Hold,
    frames::{Form, Frame, Ring},
    keys::Permit,
    peer::Peer,
    wake::{Delivery, Relay},
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
pub(super) struct Follower {
    app: Arc<Worker>,
    peer: Peer,
    subscription: Subscription,
    permit: Permit,
    ring: Arc<Ring>,
    relay: Relay,
    room: Patience,
    /// The id that comes next if nothing is missed.
    next_id: u64,
    /// The id of the last message that was taken.
    last_id: Option<u64>,
    _seat: Hold,
}

/// What comes next in the topic.
#[derive(Debug)]
pub(super) enum Item {
    Frame(Frame),
    /// This many messages have left the topic.
    Missed(u64),
}

/// Why nothing more comes.
#[derive(Debug)]
pub(super) enum End {
    /// The keys no longer allow it.
    Revoked,
    /// The subscription is over.
    Over(RecvError),
}

impl Follower {
    pub(super) fn new(
        app: &Arc<Worker>,
        peer: Peer,
        subscription: Subscription,
        form: Form,
        permit: Permit,
        seat: Hold,
    ) -> Self {
        let start = subscription.start();
        Self {
            app: Arc::clone(app),
            peer,
            permit,
            ring: app.frames.ring(subscription.topic().epoch, form),
            relay: Relay::default(),
            room: Patience::default(),
            // What had left before the start comes first, as missed.
            next_id: start.requested_id,
            last_id: None,
            subscription,
            _seat: seat,
        }
    }

    /// Lets other threads take messages and write them, instead of waking the task.
    pub(super) fn deliver_by(&mut self, delivery: Weak<dyn Delivery>) {
        self.relay = Relay::with_delivery(delivery);
    }

    pub(super) fn app(&self) -> &Arc<Worker> {
        &self.app
    }

    pub(super) fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id
    }

    pub(super) fn last_id(&self) -> Option<u64> {
        self.last_id
    }

    /// Ready when the keys no longer allow it.
    pub(super) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.permit.poll_revoked(cx)
    }

    /// Takes a batch out of the topic and gives each of it to `give`, with the id that comes next after it.
    pub(super) fn poll_batch(
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
    pub(super) fn poll_batch_for_task(
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
        if self.permit.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(End::Revoked));
        }
        let Self { app, room, relay, subscription, .. } = self;
        let batch = ready!(room.poll_receive(cx, app, subscription, BATCH));
        let received = ready!(relay.poll(cx, |cx| subscription.poll_recv_batch(cx, events, batch)));
        // It may have been published since the keys were looked at above.
        if self.permit.poll_revoked(cx).is_ready() {
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
                    Item::Frame(self.ring.frame(message, &self.app.inflight))
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
    pub(super) fn log_end(&self, end: &dyn fmt::Debug) {
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
            "Unsubscribe"
        );
    }
}
