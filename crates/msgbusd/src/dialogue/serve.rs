//! A service that a client serves: it is given requests, as many as it may have at a time.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use msgbus_core::{BatchLimit, RecvError, ReplyToken, Request, ServePull, TopicName};
use tokio::time::{Instant, Sleep, sleep};

use super::{Client, Contact, Conversation, Dialect, End};
use crate::{
    auth::LiveAuthorization,
    limits::{inflight::Inflight, quota::QuotaPermit},
    service::{error::ServiceError, in_hand::InHand, pull::WaitingPull, requests::Answer},
};

/// The maximum number of bytes that is handed out at once.
const BYTES: usize = 64 << 10;
/// How often a client that has as many requests as it may have is looked at, in case some are over.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The service that a request came from. There is one of it for each request that the client has, and one more.
pub(crate) type Holder = Arc<Origin>;

/// Where a request came from.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) service: TopicName,
    /// The key of its activity.
    pub(super) key: usize,
    /// The client as it was when it began to serve: it answers as that one.
    pub(super) client: Client,
}

impl Origin {
    /// Answers a request that the client was given on this connection. It goes to others if the keys no longer allow that.
    pub(crate) fn reply(&self, token: &ReplyToken, answer: Answer) -> Result<(), ServiceError> {
        let replied = self.client.call().reply(token, answer);
        if !matches!(replied, Ok(()) | Err(ServiceError::ReplyNotWanted)) {
            self.client.worker.bus.hand_back(token);
        }
        replied
    }
}

/// A service that a client serves.
#[derive(Debug)]
pub(super) struct Serve<D: Dialect> {
    pub(super) name: D::Name,
    style: D::Style,
    /// How many requests its client may have at a time.
    max: usize,
    holder: Holder,
    /// In the queue of the responders, while its client may have more.
    waiting: Option<WaitingPull<ServePull>>,
    /// Until a client that has as many as it may have is looked at.
    look: Option<Pin<Box<Sleep>>>,
    authorization: LiveAuthorization,
    _permit: QuotaPermit,
}

impl<D: Dialect> Conversation<D> {
    /// Serves a service, with a name that is not in use. The client may have up to `max` of its requests at a time.
    pub(crate) fn serve(
        &mut self,
        (name, style): (D::Name, D::Style),
        service: TopicName,
        max: usize,
    ) -> Result<(), ServiceError> {
        let client = self.contact.client.clone();
        let (permit, authorization) = client.call().admit_responder(&service)?;
        let waiting = Some(join::<D>(&client, &service, max)?);
        let origin = |key| Arc::new(Origin { service, key, client });
        self.activities.serve(|key| Serve {
            name,
            style,
            max,
            holder: origin(key),
            waiting,
            look: None,
            authorization,
            _permit: permit,
        });
        Ok(())
    }
}

/// Queues for the next requests.
fn join<D: Dialect>(
    client: &Client,
    service: &TopicName,
    max: usize,
) -> Result<WaitingPull<ServePull>, ServiceError> {
    let limit = BatchLimit { events: max.min(D::BATCH), bytes: BYTES };
    client.call().serve(service, limit, Inflight::SMALL_FRAME)
}

impl<D: Dialect> Serve<D> {
    /// How many requests its client has. Some may be over.
    fn in_hand(&self) -> usize {
        Arc::strong_count(&self.holder) - 1
    }

    /// Whether a request that is answered came from here.
    pub(super) fn holds(&self, holder: &Holder) -> bool {
        Arc::ptr_eq(&self.holder, holder)
    }

    /// Whether the client had as many requests as it may have, before this one was answered.
    pub(super) fn was_full(&self, answered: &Holder) -> bool {
        self.holds(answered) && self.in_hand() >= self.max
    }

    /// Sends a batch of requests.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        contact: &mut Contact<D>,
        in_hand: &mut InHand<D::RequestKey, Holder>,
    ) -> Poll<Result<(), End>> {
        if self.authorization.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(End::Revoked));
        }
        if self.poll_free(cx, in_hand).is_pending() {
            // Others may serve meanwhile. It has its turn again when its client has answered, or when one is over.
            self.waiting = None;
            return Poll::Pending;
        }
        let requests = ready!(self.poll_requests(cx))?;
        if requests.is_empty() {
            let is_revoked = self.authorization.is_revoked();
            let end = if is_revoked { End::Revoked } else { End::Over(RecvError::Closed) };
            return Poll::Ready(Err(end));
        }
        for request in requests {
            let name = (&self.name, self.style);
            let key = D::request(contact, name, &request, in_hand.count() + 1);
            in_hand.insert(key, request.into_token(), Arc::clone(&self.holder));
        }
        Poll::Ready(Ok(()))
    }

    /// Ready while the client may have another request. One that is over does not count.
    fn poll_free(
        &mut self,
        cx: &mut Context<'_>,
        in_hand: &mut InHand<D::RequestKey, Holder>,
    ) -> Poll<()> {
        while self.in_hand() >= self.max || in_hand.len() >= D::MAX_IN_HAND {
            let look = self.look.get_or_insert_with(|| Box::pin(sleep(LOOK_AGAIN)));
            ready!(look.as_mut().poll(cx));
            look.as_mut().reset(Instant::now() + LOOK_AGAIN);
            in_hand.forget_over(LOOK_AGAIN);
        }
        Poll::Ready(())
    }

    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Request>, ServiceError>> {
        let mut waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            None => {
                join::<D>(&self.holder.client, &self.holder.service, self.max - self.in_hand())?
            }
        };
        let polled = waiting.poll(cx);
        if polled.is_pending() {
            self.waiting = Some(waiting);
        }
        polled
    }

    /// Leaves the queue of the responders while the client accepts nothing: others may serve meanwhile. Ready when the
    /// keys no longer allow it.
    pub(super) fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.waiting = None;
        self.authorization.poll_revoked(cx)
    }
}
