//! Services that live in engines: requests that go to other buses, and those that come from them.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use super::SharedEngine;
use crate::{
    bus::{MessageBus, Op, SharedService, clock},
    engine::{Asked, Availability, EngineError, Urgency},
    model::{NewRequest, RequestError, TopicName},
    receive::PendingRequest,
    requests::{Announced, Origin, Service, Ticket},
};

/// How often a bus is sought for a request. Each failure is that of another bus, or of one whose responders come and go.
const MAX_TRIES: usize = 8;

/// Looks for a bus that takes a request. It ends with an outcome, or with the request queued here.
pub(crate) struct Away(Pin<Box<dyn Future<Output = ()> + Send>>);

impl fmt::Debug for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Away")
    }
}

impl Away {
    /// `None` if there is no engine.
    pub(crate) fn begin(service: &Arc<SharedService>, ticket: Ticket) -> Option<Self> {
        let engine = service.engine()?.clone();
        Some(Self(Box::pin(ask_others(engine, Arc::clone(service), ticket))))
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

async fn ask_others(engine: SharedEngine, service: Arc<SharedService>, ticket: Ticket) {
    let come_back =
        |outcome| service.with(|service| service.come_back(ticket, outcome, clock::monotonic()));
    let mut refusal = RequestError::from(EngineError::Busy);
    let full = RequestError::TooManyRequests { limit: Service::MAX_QUEUED };
    for attempt in 0..MAX_TRIES {
        let urgency = if attempt == 0 { Urgency::IfFree } else { Urgency::Queue };
        // One that can wait here need not wait elsewhere.
        if urgency == Urgency::Queue && service.queue_here(ticket).is_ok() {
            return;
        }
        let outcome = match engine.ask(&service, ticket, urgency).await {
            Ok(Asked::Over(outcome)) => outcome,
            Ok(Asked::Busy) => continue,
            Ok(Asked::Refused(error)) if !(error.is_overload() && refusal.is_overload()) => {
                refusal = error;
                continue;
            }
            // Those who have too much to do are not asked over and over.
            Ok(Asked::Refused(error)) => Err(error),
            Ok(Asked::Full) => Err(full),
            Ok(Asked::Nobody) => Err(RequestError::NoResponder),
            Err(error) => Err(error.into()),
        };
        let is_refusal = outcome.as_ref().is_err_and(RequestError::is_refusal);
        match is_refusal.then(|| service.queue_here(ticket)) {
            Some(Ok(())) => {}
            // It is served here, whatever was found elsewhere.
            Some(Err(full @ RequestError::TooManyRequests { .. })) => come_back(Err(full)),
            _ => come_back(outcome),
        }
        return;
    }
    come_back(Err(refusal));
}

impl SharedEngine {
    async fn ask(
        &self,
        service: &Arc<SharedService>,
        ticket: Ticket,
        urgency: Urgency,
    ) -> Result<Asked, EngineError> {
        self.usage.closing.check()?;
        let from = Arc::clone(service);
        let take = move || from.with(|service| service.send_away(ticket, clock::monotonic()));
        self.engine.request(service.name(), Box::new(take), urgency).await
    }
}

impl SharedService {
    /// Queues a request that is away, if somebody serves here.
    fn queue_here(self: &Arc<Self>, ticket: Ticket) -> Result<(), RequestError> {
        if let Some(responder) =
            self.with(|service| service.queue_here(ticket, clock::monotonic()))?
        {
            responder.wake();
        }
        Ok(())
    }

    /// Tells other buses that the service is served here, if they do not know.
    pub(in crate::bus) fn announce(self: &Arc<Self>) {
        let Some(engine) = self.engine() else { return };
        if let Some(announced) = self.with(Service::announce) {
            let sink = ServiceSink { service: Arc::downgrade(self), announced };
            engine.engine.serve(self.name(), sink);
        }
    }
}

/// A service of this bus, as other buses see it through an engine.
#[derive(Debug)]
pub struct ServiceSink {
    service: Weak<SharedService>,
    announced: Announced,
}

impl ServiceSink {
    /// Whether the service is served here.
    pub fn availability(&self) -> Availability {
        let Some(service) = self.service.upgrade() else { return Availability::Absent };
        service.with(|service| service.availability(clock::monotonic()))
    }

    /// Asks the responders here. Dropping the request takes it back.
    pub fn ask(&self, request: NewRequest) -> PendingRequest {
        match self.service.upgrade() {
            Some(service) => PendingRequest::ask(&service, request, Origin::Elsewhere),
            None => PendingRequest::refused(RequestError::NoResponder),
        }
    }

    /// Whether the service is no longer served here.
    pub fn is_closed(&self) -> bool {
        self.announced.is_over()
    }

    /// Ready when the service is no longer served here: other buses must be told.
    pub async fn closed(&self) {
        poll_fn(|cx| self.announced.poll_over(cx)).await;
    }
}

impl MessageBus {
    /// Whether a request to a service may find a responder. Where other buses must be asked, this says yes.
    pub fn may_be_served(&self, service: &TopicName) -> bool {
        self.is_served(service) || self.engine_of_service(service).is_some()
    }

    /// Whether somebody serves a service, at this bus or at another one with the same engine.
    pub fn is_served_anywhere(&self, service: &TopicName) -> Op<Result<bool, EngineError>> {
        if self.is_served(service) {
            return Op::ready(Ok(true));
        }
        let Some(engine) = self.engine_of_service(service) else { return Op::ready(Ok(false)) };
        let name = service.clone();
        Op::running(async move { engine.call(|engine| engine.is_served(&name)).await })
    }

    fn engine_of_service(&self, service: &TopicName) -> Option<SharedEngine> {
        self.0.engines()?.find(service).cloned()
    }
}
