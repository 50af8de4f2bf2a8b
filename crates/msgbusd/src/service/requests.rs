//! Requests to services and their replies.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use msgbus_core::{
    BatchLimit, NewRequest, PendingRequest, PublishError, Reply, ReplyToken, Request, RequestError,
    ServePull, ServiceStats, TopicName, format_duration, store::StoreError,
};
use tracing::debug;

use super::{
    Call,
    error::ServiceError,
    pull::{QueuedPull, WaitingPull},
    topics::may_inspect,
};
use crate::{
    auth::{Action, LiveAuthorization, Permission, Principal, Target},
    limits::quota::QuotaPermit,
    net::peer::Peer,
    state::App,
};

/// An admitted request. The client's rate has been charged for one message.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    call: &'a Call<'a>,
    service: &'a TopicName,
}

impl Call<'_> {
    /// Admits a request to a service, before its payload is read. A service without responders is refused here, unless
    /// there may be some at other servers.
    pub(crate) fn ask<'a>(&'a self, service: &'a TopicName) -> Result<Asking<'a>, ServiceError> {
        self.charge()?;
        self.authorize(Action::Request, service)?;
        if !self.worker.bus.may_be_served(service) {
            self.worker.bus.count_refused(service);
            return Err(ServiceError::NoResponder { service: service.clone() });
        }
        Ok(Asking { call: self, service })
    }

    /// Refuses a service that nobody serves, here or at another server.
    pub(crate) async fn check_served(&self, service: &TopicName) -> Result<(), ServiceError> {
        self.authorize(Action::Request, service)?;
        let is_served = self.worker.bus.is_served_anywhere(service).await;
        if is_served.map_err(StoreError::from)? {
            return Ok(());
        }
        Err(ServiceError::NoResponder { service: service.clone() })
    }

    /// Waits for the next requests of a service, in the order in which responders began to wait.
    pub(crate) fn serve(
        &self,
        service: &TopicName,
        limit: BatchLimit,
        small: usize,
    ) -> Result<WaitingPull<ServePull>, ServiceError> {
        self.authorize(Action::Serve, service)?;
        let pull = self.worker.bus.serve(service, limit);
        let pull = pull.map_err(|error| refusal(error, service))?;
        Ok(self.waiting(Action::Serve, service, pull, limit, small))
    }

    /// Admits a responder that stays, which counts as a subscription.
    pub(crate) fn admit_responder(
        &self,
        service: &TopicName,
    ) -> Result<(QuotaPermit, LiveAuthorization), ServiceError> {
        let permission = Permission::Topic(Action::Serve, service);
        let permit = self.acquire_subscription(permission)?;
        let target = Target::Topic(service.clone());
        Ok((permit, self.live_authorization(Action::Serve, target)))
    }

    /// The service of a request that the client may answer. Says nothing about services to those who have no token.
    pub(crate) fn may_reply(&self, token: &ReplyToken) -> Result<TopicName, ServiceError> {
        let service =
            self.worker.bus.service_of(token).map_err(|_| ServiceError::ReplyNotWanted)?;
        self.authorize(Action::Serve, &service)?;
        Ok(service)
    }

    /// Answers a request.
    pub(crate) fn reply(&self, token: &ReplyToken, answer: Answer) -> Result<(), ServiceError> {
        let (bus, service) = (&self.worker.bus, self.may_reply(token)?);
        debug!(peer = %self.peer, %service, answer = answer.verb(), "reply");
        let replied = match answer {
            Answer::Reply(reply) => bus.reply(token, Ok(reply)),
            Answer::Failure(reason) => bus.reply(token, Err(reason)),
            Answer::Decline => {
                bus.hand_back(token);
                Ok(())
            }
        };
        replied.map_err(|_| ServiceError::ReplyNotWanted)
    }
}

/// What a responder says to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Reply),
    /// With its reason, see [`failure`](Self::failure).
    Failure(Box<str>),
    /// Another responder gets the request, if its requester allows that; else it fails.
    Decline,
}

impl Answer {
    /// The maximum length of a reason, in bytes. The rest is cut off.
    const MAX_REASON: usize = 1024;

    pub(crate) fn failure(reason: &str) -> Self {
        let mut end = reason.len().min(Self::MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        Self::Failure(reason[..end].into())
    }

    fn verb(&self) -> &'static str {
        match self {
            Self::Reply(_) => "reply",
            Self::Failure(_) => "failure",
            Self::Decline => "decline",
        }
    }
}

/// How long the requester of a request still waits, in whole milliseconds.
pub(crate) fn time_left(request: &Request) -> String {
    let left = request.time_left();
    format_duration(Duration::from_millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)))
}

impl Asking<'_> {
    /// Asks. It checks the authorization, because receiving the payload may have taken long.
    pub(crate) fn send(self, request: NewRequest) -> Result<Asked, ServiceError> {
        let Self { call, service } = self;
        call.authorize(Action::Request, service)?;
        debug!(peer = %call.peer, %service, "request");
        let pending = call.worker.bus.request(service, request);
        Ok(Asked { service: service.clone(), pending })
    }
}

/// A request that waits for its reply. Dropping it takes the request back.
#[derive(Debug)]
pub(crate) struct Asked {
    service: TopicName,
    pending: PendingRequest,
}

impl Future for Asked {
    type Output = Result<Reply, ServiceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = ready!(Pin::new(&mut self.pending).poll(cx));
        Poll::Ready(outcome.map_err(|error| refusal(error, &self.service)))
    }
}

fn refusal(error: RequestError, service: &TopicName) -> ServiceError {
    match error {
        RequestError::NoResponder => ServiceError::NoResponder { service: service.clone() },
        RequestError::TooManyRequests { limit } => ServiceError::TooManyRequests { limit },
        RequestError::LimitReached(limit) => ServiceError::Publish(limit.into()),
        RequestError::TooManyServices { limit } => ServiceError::TooManyServices { limit },
        RequestError::Failed { reason } => ServiceError::ResponderFailed { reason },
        RequestError::ResponderGone => ServiceError::ResponderGone,
        RequestError::TimedOut => ServiceError::RequestTimeout,
        RequestError::Engine(error) => StoreError::from(error).into(),
        // The bus is closed.
        _ => ServiceError::Publish(PublishError::Closed),
    }
}

/// The services that may be inspected.
pub(crate) fn services(app: &App, principal: Option<&Principal>) -> Vec<ServiceStats> {
    let mut services = app.bus.services();
    services.retain(|service| may_inspect(principal, &service.name));
    services
}

impl QueuedPull for ServePull {
    type Item = Request;

    fn next_size(&self) -> Option<usize> {
        self.next_size()
    }

    fn is_committing(&self) -> bool {
        false
    }

    fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        may_take: impl FnMut() -> bool,
    ) -> Poll<Result<Vec<Request>, ServiceError>> {
        // Only a closed bus is an error. It has no requests any more.
        self.poll_allowed(cx, may_take).map(|requests| Ok(requests.unwrap_or_default()))
    }

    fn trace(peer: Peer, requests: &[Request]) {
        for request in requests {
            debug!(%peer, service = %request.service(), "serve");
        }
    }
}
