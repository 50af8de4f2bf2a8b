//! Requests to services and their responders, as futures and blocking.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::blocking::block_on_until;
use crate::{
    bus::{Away, SharedService, clock},
    model::{Headers, NewRequest, Reply, ReplyNotWanted, ReplyToken, RequestError, TopicName},
    options::BatchLimit,
    requests::{Handed, Origin, Placed, Service, Ticket},
    topic::WaiterId,
};

/// A request that waits for its reply: a future. Dropping it takes the request back, or its responder learns at its reply
/// that nobody wants it.
///
/// # Panics
/// When polled again after it was ready.
#[derive(Debug)]
#[must_use = "a request that is dropped is taken back"]
pub struct PendingRequest {
    state: State,
    deadline: Instant,
}

#[derive(Debug)]
enum State {
    Over(RequestError),
    Asked { service: Arc<SharedService>, ticket: Ticket, search: Search },
    Taken,
}

/// Whether a responder is sought at other buses.
#[derive(Debug)]
enum Search {
    Idle,
    Wanted,
    Running(Away),
}

impl PendingRequest {
    pub(crate) fn refused(error: RequestError) -> Self {
        Self { state: State::Over(error), deadline: Instant::now() }
    }

    pub(crate) fn ask(service: &Arc<SharedService>, request: NewRequest, origin: Origin) -> Self {
        let deadline = Instant::now() + request.timeout;
        let asked = service.with(|service| service.ask(request, origin, clock::monotonic()));
        let Placed { ticket, responder, seeks_others } = match asked {
            Ok(placed) => placed,
            Err(error) => return Self::refused(error),
        };
        if let Some(responder) = responder {
            responder.wake();
        }
        let service = Arc::clone(service);
        let search = if seeks_others { Search::Wanted } else { Search::Idle };
        Self { state: State::Asked { service, ticket, search }, deadline }
    }

    /// Blocks the thread until there is a reply, or the timeout of the request has passed.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn wait(mut self) -> Result<Reply, RequestError> {
        let outcome = block_on_until(Some(self.deadline), |cx| Pin::new(&mut self).poll(cx));
        outcome.unwrap_or_else(|| match std::mem::replace(&mut self.state, State::Taken) {
            State::Asked { service, ticket, .. } => {
                service.with(|service| service.time_out(ticket, clock::monotonic()))
            }
            State::Over(error) => Err(error),
            State::Taken => Err(RequestError::TimedOut),
        })
    }
}

impl Future for PendingRequest {
    type Output = Result<Reply, RequestError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.state {
            State::Over(error) => Err(error.clone()),
            State::Asked { service, ticket, search } => {
                let outcome = ready!(poll_asked(service, *ticket, search, cx));
                if outcome.is_err() {
                    service.forget_if_unused();
                }
                outcome
            }
            State::Taken => panic!("polled after it was ready"),
        };
        self.state = State::Taken;
        Poll::Ready(outcome)
    }
}

fn poll_asked(
    service: &Arc<SharedService>,
    ticket: Ticket,
    search: &mut Search,
    cx: &mut Context<'_>,
) -> Poll<Result<Reply, RequestError>> {
    loop {
        if matches!(search, Search::Wanted) {
            *search = Away::begin(service, ticket).map_or(Search::Idle, Search::Running);
        }
        if let Search::Running(away) = search
            && away.poll(cx).is_ready()
        {
            *search = Search::Idle;
        }
        let (outcome, is_elsewhere) = service.with(|service| {
            (service.poll_outcome(ticket, cx.waker()), service.is_elsewhere(ticket))
        });
        if outcome.is_ready() {
            *search = Search::Idle;
            return outcome;
        }
        // Those who served here have left.
        if !(is_elsewhere && matches!(search, Search::Idle)) {
            return Poll::Pending;
        }
        *search = Search::Wanted;
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        if let State::Asked { service, ticket, search } = &mut self.state {
            *search = Search::Idle;
            service.with(|service| service.give_up(*ticket, clock::monotonic()));
            service.forget_if_unused();
        }
    }
}

/// A responder that waits for requests: a future of at least one, up to a limit. Responders are served in the order in
/// which they began to wait. Dropping it leaves the requests to the next one. Once completed, it stays pending.
#[derive(Debug)]
#[must_use = "a responder gets requests when it is polled"]
pub struct ServePull {
    service: Arc<SharedService>,
    /// `None` once completed.
    responder: Option<WaiterId>,
    limit: BatchLimit,
}

impl ServePull {
    pub(crate) fn new(service: Arc<SharedService>, responder: WaiterId, limit: BatchLimit) -> Self {
        Self { service, responder: Some(responder), limit }
    }

    /// The size of the payload of the next request, in bytes. `None` if none waits. Takes nothing.
    pub fn next_size(&self) -> Option<usize> {
        self.service.with(|service| service.next_size())
    }

    /// Polls for requests as the future does, for a caller that may lose its permission. `may_take` is called under the
    /// lock of the service. If it returns `false`, nothing is taken and the result is empty.
    ///
    /// # Errors
    /// [`RequestError::Closed`] when the bus is closed.
    pub fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        mut may_take: impl FnMut() -> bool,
    ) -> Poll<Result<Vec<Request>, RequestError>> {
        let Some(responder) = self.responder else { return Poll::Pending };
        let (limit, waker) = (self.limit, cx.waker());
        let take = |service: &mut Service| {
            let is_allowed = service.next_size().is_none() || may_take();
            is_allowed.then(|| service.poll_take(responder, limit, clock::monotonic(), waker))
        };
        let Some(taken) = self.service.with(take) else { return Poll::Ready(Ok(Vec::new())) };
        let Poll::Ready((handed, next)) = taken else { return Poll::Pending };
        self.responder = None;
        if let Some(next) = next {
            next.wake();
        }
        if handed.is_empty() {
            return Poll::Ready(Err(RequestError::Closed));
        }
        let service = &self.service;
        let requests = handed.into_iter().map(|handed| Request::new(Arc::clone(service), handed));
        Poll::Ready(Ok(requests.collect()))
    }

    /// Blocks the thread until there is a request.
    ///
    /// # Errors
    /// [`RequestError::Closed`] when the bus is closed.
    pub fn wait(mut self) -> Result<Vec<Request>, RequestError> {
        let requests = block_on_until(None, |cx| Pin::new(&mut self).poll(cx));
        requests.unwrap_or(Err(RequestError::Closed))
    }

    /// Blocks the thread until there is a request or the timeout has passed; then there is none.
    ///
    /// # Errors
    /// [`RequestError::Closed`] when the bus is closed.
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Vec<Request>, RequestError> {
        let deadline = Instant::now().checked_add(timeout);
        block_on_until(deadline, |cx| Pin::new(&mut self).poll(cx)).unwrap_or(Ok(Vec::new()))
    }
}

impl Future for ServePull {
    type Output = Result<Vec<Request>, RequestError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_allowed(cx, || true)
    }
}

impl Drop for ServePull {
    fn drop(&mut self) {
        if let Some(responder) = self.responder {
            let leave = |service: &mut Service| service.leave(responder, clock::monotonic());
            if let Some(next) = self.service.with(leave) {
                next.wake();
            }
        }
    }
}

/// A request that a responder has. If it is dropped without a reply, it fails at once, or goes to another responder if its
/// requester allows that.
#[derive(Debug)]
#[must_use = "a request that is dropped fails"]
pub struct Request {
    service: Arc<SharedService>,
    handed: Handed,
    is_answered: bool,
}

impl Request {
    fn new(service: Arc<SharedService>, handed: Handed) -> Self {
        Self { service, handed, is_answered: false }
    }

    /// The service.
    pub fn service(&self) -> &TopicName {
        self.service.name()
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.handed.payload
    }

    /// The headers.
    pub fn headers(&self) -> &Headers {
        &self.handed.headers
    }

    /// How long the requester still waits, from when the responder got the request.
    pub fn time_left(&self) -> Duration {
        self.handed.left
    }

    /// The token with which it can be answered elsewhere. It then ends by time unless it is.
    pub fn into_token(mut self) -> ReplyToken {
        self.is_answered = true;
        self.token()
    }

    /// The token with which it can be answered.
    pub fn token(&self) -> ReplyToken {
        self.service.token(self.handed.key)
    }

    /// Gives the request to another responder, as if this one had not taken it.
    pub fn put_back(mut self) {
        self.is_answered = true;
        let parts = (self.handed.payload.clone(), self.handed.headers.clone());
        let key = self.handed.key;
        let put_back = |service: &mut Service| service.put_back(key, parts, clock::monotonic());
        if let Some(next) = self.service.with(put_back) {
            next.wake();
        }
    }

    /// Answers the requester.
    ///
    /// # Errors
    /// When the requester has left or its time is over.
    pub fn reply(mut self, reply: impl Into<Reply>) -> Result<(), ReplyNotWanted> {
        self.is_answered = true;
        self.service.reply(&self.token(), Ok(reply.into()))
    }

    /// Tells the requester that the request has failed, and why.
    ///
    /// # Errors
    /// As for [`reply`](Self::reply).
    pub fn fail(mut self, reason: &str) -> Result<(), ReplyNotWanted> {
        self.is_answered = true;
        self.service.reply(&self.token(), Err(reason.into()))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.is_answered {
            self.service.hand_back(&self.token());
        }
    }
}
