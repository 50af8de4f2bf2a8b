//! Services, and the requests to them.

use std::{sync::Arc, time::Duration};

use msgbus_core::{
    RequestError, TopicName,
    engine::{Asked, Availability, EngineError, ServiceSink, TakeRequest, Urgency},
};
use tokio::{
    task::yield_now,
    time::{sleep, timeout},
};

use super::MemoryEngine;

impl MemoryEngine {
    /// Other buses find a service, until it is no longer served there.
    pub(super) fn announce(&self, service: &TopicName, sink: ServiceSink) {
        let (engine, service, sink) = (self.clone(), service.clone(), Arc::new(sink));
        engine.lock().services.entry(service.clone()).or_default().push(Arc::clone(&sink));
        tokio::spawn(async move {
            sink.closed().await;
            let mut inner = engine.lock();
            let sinks = inner.services.entry(service).or_default();
            sinks.retain(|other| !Arc::ptr_eq(other, &sink));
        });
    }

    /// Any bus that serves a service: one where a responder waits, or else one where there is room.
    pub(super) fn find(
        &self,
        service: &TopicName,
    ) -> Result<Option<Arc<ServiceSink>>, EngineError> {
        let mut inner = self.lock();
        if let Some(error) = inner.faults.error {
            return Err(error);
        }
        let mut sinks = inner.services.get(service).cloned().unwrap_or_default();
        inner.random.shuffle(&mut sinks);
        let wanted = [Availability::Free, Availability::Busy, Availability::Full];
        let mut found = wanted.iter().filter_map(|wanted| {
            sinks.iter().find(|sink| sink.availability() == *wanted).map(Arc::clone)
        });
        Ok(found.next())
    }

    pub(super) async fn ask(
        self,
        service: TopicName,
        take: TakeRequest,
        urgency: Urgency,
    ) -> Result<Asked, EngineError> {
        let (delays, is_lost, is_answer_lost) = {
            let mut inner = self.lock();
            let faults = inner.faults;
            let delays = inner.random.u32(0..=faults.delays);
            (delays, inner.happens(faults.lost_requests), inner.happens(faults.lost_answers))
        };
        for _ in 0..delays {
            yield_now().await;
        }
        let Some(sink) = self.find(&service)? else { return Ok(Asked::Nobody) };
        if urgency == Urgency::IfFree && sink.availability() != Availability::Free {
            return Ok(Asked::Busy);
        }
        if sink.availability() == Availability::Full {
            return Ok(Asked::Full);
        }
        // An engine whose tasks run elsewhere may still take when this is dropped.
        let taken = tokio::spawn(async move { take() }).await;
        let Some(request) = taken.map_err(|_| EngineError::Closed)? else {
            return Ok(Asked::Busy);
        };
        let (_, _, wait, _) = request.clone().into_parts();
        if is_lost {
            return Ok(nothing(wait).await);
        }
        let outcome = timeout(wait, sink.ask(request)).await;
        match outcome {
            Ok(_) if is_answer_lost => Ok(nothing(wait).await),
            Ok(outcome) => Ok(outcome.into()),
            Err(_) => Ok(Asked::Over(Err(RequestError::TimedOut))),
        }
    }
}

/// Nothing comes.
async fn nothing(wait: Duration) -> Asked {
    sleep(wait).await;
    Asked::Over(Err(RequestError::TimedOut))
}
