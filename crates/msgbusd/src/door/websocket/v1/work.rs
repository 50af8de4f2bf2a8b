//! A subscription that works for a group: it is pushed leases, as many as it has credit for.

use std::task::{Context, Poll};

use msgbus_core::{
    BatchLimit, GroupName, LeaseOptions, LeasePull, Leased, TopicName,
    json::{self, PayloadForm},
};

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
        let mut work = Self {
            sid,
            client: client.clone(),
            job,
            credit,
            pull: None,
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
        self.client.call().lease_wait(topic, group, &options, Inflight::SMALL_FRAME)
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
        if self.credit == 0 {
            return Poll::Pending;
        }
        let mut pull = match self.pull.take() {
            Some(pull) => pull,
            None => self.join().map_err(|error| End::of(&error))?,
        };
        let Poll::Ready(leased) = pull.poll(cx) else {
            self.pull = Some(pull);
            return Poll::Pending;
        };
        let leased = leased.map_err(|error| End::of(&error))?;
        if leased.is_empty() {
            return Poll::Ready(Err(self.end(&pull)));
        }
        self.credit -= leased.len().min(self.credit);
        for leased in &leased {
            self.write(leased, output);
        }
        Poll::Ready(Ok(()))
    }

    /// Why no message can come any more.
    fn end(&self, pull: &WaitingPull<LeasePull>) -> End {
        if pull.is_revoked() {
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
    fn of(error: &ServiceError) -> Self {
        match error {
            ServiceError::Store(msgbus_core::store::StoreError::Closed) => Self::Closed,
            ServiceError::NotGranted { .. }
            | ServiceError::KeyNeeded { .. }
            | ServiceError::WrongKey => Self::Revoked,
            _ => Self::StoreFailed,
        }
    }
}
