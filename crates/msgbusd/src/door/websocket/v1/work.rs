//! A subscription that works for a group: it is pushed leases, as many as it has credit for.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use msgbus_core::{
    BatchLimit, GroupName, LeaseOptions, LeasePull, Leased, TopicName, TopicWatch,
    json::{self, PayloadForm},
    store::StoreError,
};
use tokio::time::{Sleep, sleep};
use tracing::debug;

use super::{
    Client,
    follow::{End, begin_message},
    identifier::Label,
    output::Output,
};
use crate::{
    auth::LiveAuthorization,
    limits::{inflight::Inflight, quota::QuotaPermit},
    service::{error::ServiceError, pull::WaitingPull},
};

/// The maximum that is leased at once.
const BATCH: BatchLimit = BatchLimit { events: 64, bytes: 64 << 10 };
/// The size of an encoded message that is not copied, in bytes.
const LARGE: usize = 16 << 10;
/// After how long it tries again when no more can be leased for the moment.
const RETRY: Duration = Duration::from_secs(1);

/// One subscription with leases.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) sid: Label,
    client: Client,
    job: Job,
    /// How many messages may be leased.
    credit: usize,
    /// In the queue of the group, while there is credit.
    pull: Option<WaitingPull<LeasePull>>,
    /// Until it tries again.
    retry: Option<Pin<Box<Sleep>>>,
    /// The topic, of which nothing is leased after it was deleted, even if there is a new one.
    watch: TopicWatch,
    authorization: LiveAuthorization,
    _permit: QuotaPermit,
}

/// What is leased, and how.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) topic: TopicName,
    pub(super) group: GroupName,
    pub(super) options: LeaseOptions,
    pub(super) form: PayloadForm,
}

impl Work {
    /// The highest credit.
    pub(super) const MAX_CREDIT: usize = 10_000;

    pub(super) fn new(
        sid: Label,
        client: &Client,
        job: Job,
        credit: usize,
    ) -> Result<Self, ServiceError> {
        let call = client.call();
        let (permit, authorization) = call.admit_worker(&job.topic)?;
        let watch = call.watch(&job.topic, job.options.from)?;
        let mut work = Self {
            sid,
            client: client.clone(),
            job,
            credit,
            pull: None,
            retry: None,
            watch,
            authorization,
            _permit: permit,
        };
        // Without credit, this only checks whether the group can be joined.
        let pull = work.join()?;
        work.pull = (credit > 0).then_some(pull);
        Ok(work)
    }

    /// Adds credit, up to the limit. Returns what it has now.
    pub(super) fn add_credit(&mut self, credit: usize) -> usize {
        self.credit = (self.credit + credit).min(Self::MAX_CREDIT);
        self.credit
    }

    /// Queues for the next messages.
    fn join(&self) -> Result<WaitingPull<LeasePull>, ServiceError> {
        let Job { topic, group, options, .. } = &self.job;
        let events = self.credit.clamp(1, BATCH.events);
        let options = LeaseOptions { limit: BatchLimit { events, ..BATCH }, ..options.clone() };
        let topic = (&self.watch, topic);
        self.client.call().lease_wait_watched(topic, group, &options, Inflight::SMALL_FRAME)
    }

    /// Leases a batch of messages, and sends them.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        output: &mut Output<'_>,
    ) -> Poll<Result<(), End>> {
        if self.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(End::Revoked));
        }
        if self.credit == 0 || self.poll_retry(cx).is_pending() {
            return self.watch.poll_deleted(cx).map(|()| Err(End::Deleted));
        }
        let leased = match ready!(self.poll_leased(cx)) {
            Ok(leased) => leased,
            Err(error) => return Poll::Ready(self.fail(&error)),
        };
        if leased.is_empty() {
            return Poll::Ready(Err(self.end()));
        }
        self.credit -= leased.len().min(self.credit);
        for leased in &leased {
            self.write(leased, output);
        }
        Poll::Ready(Ok(()))
    }

    /// Leases a batch, which is empty when no message can come any more.
    fn poll_leased(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Leased>, ServiceError>> {
        let mut pull = match self.pull.take() {
            Some(pull) => pull,
            None => self.join()?,
        };
        let polled = pull.poll(cx);
        if polled.is_pending() {
            self.pull = Some(pull);
        }
        polled
    }

    fn poll_retry(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(retry) = &mut self.retry {
            ready!(retry.as_mut().poll(cx));
            self.retry = None;
        }
        Poll::Ready(())
    }

    /// Leaves the queue of the group while the client accepts no messages: only the first in the queue is woken, and
    /// others may work meanwhile. Leases that the store has not kept yet go to this client.
    pub(super) fn hold_back(&mut self) {
        self.pull = self.pull.take().filter(WaitingPull::is_committing);
    }

    /// Decides what follows from an error: tries again in a while if that may help.
    fn fail(&mut self, error: &ServiceError) -> Result<(), End> {
        if self.watch.is_deleted() {
            return Err(End::Deleted);
        }
        let code = error.code();
        self.client.worker.metrics.refusal(code);
        debug!(peer = %self.client.peer, topic = %self.job.topic, code = code.word(), "no lease");
        match error {
            ServiceError::TooManyGroups { .. }
            | ServiceError::Store(StoreError::Busy | StoreError::Full) => {
                self.retry = Some(Box::pin(sleep(RETRY)));
                Ok(())
            }
            ServiceError::Store(StoreError::Engine(error)) if error.is_temporary() => {
                self.retry = Some(Box::pin(sleep(RETRY)));
                Ok(())
            }
            error => Err(End::of(error)),
        }
    }

    /// Why no message can come any more.
    fn end(&self) -> End {
        if self.authorization.is_revoked() {
            End::Revoked
        } else if self.client.worker.tasks.stop.is_draining() {
            End::Closed
        } else {
            End::Deleted
        }
    }

    /// Ready when the keys no longer allow it.
    pub(super) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.authorization.poll_revoked(cx)
    }

    fn write(&self, leased: &Leased, output: &mut Output<'_>) {
        let message = &leased.message;
        let text = output.text();
        begin_message(text, &self.sid, message.id());
        text.push(b',');
        json::write_lease(text, leased);
        text.extend_from_slice(br#","message":"#);
        if json::size_hint(message) < LARGE {
            json::write_message_as(text, message, self.job.form);
        } else {
            let mut object = Vec::with_capacity(json::size_hint(message));
            json::write_message_as(&mut object, message, self.job.form);
            output.push(self.client.worker.inflight.track_response(object.into()));
        }
        output.text().push(b'}');
        output.end_line();
    }
}

impl End {
    pub(super) fn of(error: &ServiceError) -> Self {
        match error {
            ServiceError::Store(StoreError::Closed) => Self::Closed,
            ServiceError::NotGranted { .. }
            | ServiceError::KeyNeeded { .. }
            | ServiceError::WrongKey => Self::Revoked,
            ServiceError::Store(StoreError::Engine(_)) => Self::EngineFailed,
            _ => Self::StoreFailed,
        }
    }
}
