//! A subscription that works for a group: it is pushed leases, as many as it has credit for.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use msgbus_core::{
    BatchLimit, GroupName, LeaseOptions, LeasePull, Leased, RecvError, TopicName, TopicWatch,
    store::StoreError,
};
use tokio::time::{Sleep, sleep};
use tracing::debug;

use super::{Client, Contact, Dialect, End};
use crate::{
    auth::LiveAuthorization,
    limits::{inflight::Inflight, quota::QuotaPermit},
    service::{error::ServiceError, pull::WaitingPull},
};

/// The maximum that is leased at once.
const BATCH: BatchLimit = BatchLimit { events: 64, bytes: 64 << 10 };
/// After how long it tries again when no more can be leased for the moment.
const RETRY: Duration = Duration::from_secs(1);

/// One subscription with leases.
#[derive(Debug)]
pub(crate) struct Lease<D: Dialect> {
    pub(super) name: D::Name,
    style: D::Style,
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
pub(crate) struct Job {
    pub(crate) topic: TopicName,
    pub(crate) group: GroupName,
    pub(crate) options: LeaseOptions,
}

impl<D: Dialect> Lease<D> {
    /// The highest credit.
    pub(crate) const MAX_CREDIT: usize = 10_000;

    pub(crate) fn new(
        (name, style): (D::Name, D::Style),
        client: &Client,
        job: Job,
        credit: usize,
    ) -> Result<Self, ServiceError> {
        let call = client.call();
        let (permit, authorization) = call.admit_worker(&job.topic)?;
        let watch = call.watch(&job.topic, job.options.from)?;
        let mut lease = Self {
            name,
            style,
            job,
            credit,
            pull: None,
            retry: None,
            watch,
            authorization,
            _permit: permit,
        };
        // Without credit, this only checks whether the group can be joined.
        let pull = lease.join(client)?;
        lease.pull = (credit > 0).then_some(pull);
        Ok(lease)
    }

    /// Adds credit, up to the limit. Returns what it has now.
    pub(crate) fn add_credit(&mut self, credit: usize) -> usize {
        self.credit = (self.credit + credit).min(Self::MAX_CREDIT);
        self.credit
    }

    /// Queues for the next messages.
    fn join(&self, client: &Client) -> Result<WaitingPull<LeasePull>, ServiceError> {
        let Job { topic, group, options } = &self.job;
        let events = self.credit.clamp(1, BATCH.events);
        let options = LeaseOptions { limit: BatchLimit { events, ..BATCH }, ..options.clone() };
        let topic = (&self.watch, topic);
        client.call().lease_wait_watched(topic, group, &options, Inflight::SMALL_FRAME)
    }

    /// Leases a batch of messages, and sends them.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        contact: &mut Contact<D>,
    ) -> Poll<Result<(), End>> {
        let client = &contact.client;
        if self.authorization.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(End::Revoked));
        }
        if self.credit == 0 || self.poll_retry(cx).is_pending() {
            return self.watch.poll_deleted(cx).map(|()| Err(End::Over(RecvError::Deleted)));
        }
        let leased = match ready!(self.poll_leased(cx, client)) {
            Ok(leased) => leased,
            Err(error) => return Poll::Ready(self.fail(client, error)),
        };
        if leased.is_empty() {
            return Poll::Ready(Err(self.end(client)));
        }
        self.credit -= leased.len().min(self.credit);
        for leased in &leased {
            D::leased(contact, (&self.name, self.style), leased);
        }
        Poll::Ready(Ok(()))
    }

    /// Leases a batch, which is empty when no message can come any more.
    fn poll_leased(
        &mut self,
        cx: &mut Context<'_>,
        client: &Client,
    ) -> Poll<Result<Vec<Leased>, ServiceError>> {
        let mut pull = match self.pull.take() {
            Some(pull) => pull,
            None => self.join(client)?,
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
    /// others may work meanwhile. Leases that the store has not kept yet go to this client. Ready when the keys no longer
    /// allow it.
    pub(super) fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.pull = self.pull.take().filter(WaitingPull::is_committing);
        self.authorization.poll_revoked(cx)
    }

    /// Decides what follows from an error: tries again in a while if that may help.
    fn fail(&mut self, client: &Client, error: ServiceError) -> Result<(), End> {
        if self.watch.is_deleted() {
            return Err(End::Over(RecvError::Deleted));
        }
        let code = error.code();
        client.worker.metrics.refusal(code);
        debug!(peer = %client.peer, topic = %self.job.topic, code = code.word(), "no lease");
        let is_temporary = match &error {
            ServiceError::TooManyGroups { .. }
            | ServiceError::Store(StoreError::Busy | StoreError::Full) => true,
            ServiceError::Store(StoreError::Engine(error)) => error.is_temporary(),
            _ => false,
        };
        if !is_temporary {
            return Err(error.into());
        }
        self.retry = Some(Box::pin(sleep(RETRY)));
        Ok(())
    }

    /// Why no message can come any more.
    fn end(&self, client: &Client) -> End {
        if self.authorization.is_revoked() {
            End::Revoked
        } else if client.worker.tasks.stop.is_draining() {
            End::Over(RecvError::Closed)
        } else {
            End::Over(RecvError::Deleted)
        }
    }
}
