//! Leasing messages for the workers of a group, and settling the leases.

use std::task::{Context, Poll};

use chrono::{DateTime, Utc};
use msgbus_core::{
    BatchLimit, GroupName, LeaseError, LeaseOptions, LeasePull, LeaseToken, Leased, Peek, Position,
    SettledBatch, Settlement, TopicName, TopicWatch,
};
use tokio::task::yield_now;
use tracing::debug;

use super::{
    Call, backpressure,
    error::ServiceError,
    pull::{QueuedPull, WaitingPull},
};
use crate::{
    auth::{Action, LiveAuthorization, Target},
    code::Code,
    limits::quota::QuotaPermit,
    net::{peer::Peer, wake_queue},
};

/// The number of leases that are settled before the task yields to other requests.
const SETTLED_AT_ONCE: usize = 1024;
/// How much of a text that is not a token is repeated in the answer, in characters.
const MAX_REPEATED: usize = 100;

/// The outcome of settling many leases.
#[derive(Debug)]
pub(crate) struct SettledLeases {
    /// The numbers of those that were not settled, in no order, and why.
    pub(crate) unsettled: Vec<(usize, Code)>,
    /// When the first of those ends that were extended.
    pub(crate) expires: Option<DateTime<Utc>>,
}

impl Call<'_> {
    /// Leases the next messages for a group, or none if there are none, and waits until a crash cannot take the leases
    /// back. `small` is the size, in bytes, up to which a response does not count as in flight.
    pub(crate) async fn lease(
        &self,
        topic: &TopicName,
        group: &GroupName,
        options: &LeaseOptions,
        small: usize,
    ) -> Result<Vec<Leased>, ServiceError> {
        self.authorize(Action::Pull, topic)?;
        let Self { worker, peer, .. } = self;
        let next_size = || worker.bus.next_lease_size(topic, group);
        let limit = backpressure::admit_next(&worker.inflight, options.limit, small, next_size);
        let limit = limit.ok_or(ServiceError::TooMuchInFlight)?;
        let _reserved = self.reserve_for_engine(topic, limit).await?;
        let options = LeaseOptions { limit, holder: Some(self.label()), ..*options };
        let leased = wake_queue::wait(worker.bus.lease(topic, group, options)).await?;
        trace(*peer, &leased);
        Ok(leased)
    }

    /// Queues for the next messages of a group. It queues even if there are messages, because other pulls may have waited
    /// longer.
    pub(crate) fn lease_wait(
        &self,
        topic: &TopicName,
        group: &GroupName,
        options: &LeaseOptions,
        small: usize,
    ) -> Result<WaitingPull<LeasePull>, ServiceError> {
        self.authorize(Action::Pull, topic)?;
        let limit = self.limit_wait(topic, options.limit);
        let options = LeaseOptions { limit, holder: Some(self.label()), ..*options };
        let pull = self.worker.bus.lease_wait(topic, group, options)?;
        Ok(self.waiting(Action::Pull, topic, pull, limit, small))
    }

    /// Watches a topic for its deletion, on behalf of a worker of a group.
    pub(crate) fn watch(
        &self,
        topic: &TopicName,
        from: Position,
    ) -> Result<TopicWatch, ServiceError> {
        self.authorize(Action::Pull, topic)?;
        Ok(self.worker.bus.watch(topic, from)?)
    }

    /// As [`lease_wait`](Self::lease_wait), from the topic that is watched.
    pub(crate) fn lease_wait_watched(
        &self,
        (watch, topic): (&TopicWatch, &TopicName),
        group: &GroupName,
        options: &LeaseOptions,
        small: usize,
    ) -> Result<WaitingPull<LeasePull>, ServiceError> {
        self.authorize(Action::Pull, topic)?;
        let limit = options.limit;
        let options = LeaseOptions { holder: Some(self.label()), ..*options };
        let pull = watch.lease_wait(group, options)?;
        Ok(self.waiting(Action::Pull, topic, pull, limit, small))
    }

    /// Admits a client that works for a group for as long as it holds the permit and is authorised.
    pub(crate) fn admit_worker(
        &self,
        topic: &TopicName,
    ) -> Result<(QuotaPermit, LiveAuthorization), ServiceError> {
        let target = Target::Topic(topic.clone());
        let permit = self.acquire_subscription(target.permission(Action::Pull))?;
        Ok((permit, self.live_authorization(Action::Pull, target)))
    }

    /// Returns messages that a group has not acknowledged, without taking them. `None` if the topic does not exist.
    pub(crate) async fn peek_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        limit: BatchLimit,
        small: usize,
    ) -> Result<Option<Peek>, ServiceError> {
        self.authorize(Action::Subscribe, topic)?;
        let mut peek = self.worker.bus.peek_group(topic, group, limit).await?;
        if let Some(peek) = &mut peek {
            let first = peek.messages().next().map(|message| message.payload().len());
            let limit = backpressure::admit_next(&self.worker.inflight, limit, small, || first);
            peek.events.truncate(limit.ok_or(ServiceError::TooMuchInFlight)?.events);
        }
        Ok(peek)
    }

    /// Settles one lease, and waits until a crash cannot take that back. Returns when the lease ends, if it was extended.
    pub(crate) async fn settle(
        &self,
        token: &LeaseToken,
        settlement: Settlement,
    ) -> Result<Option<DateTime<Utc>>, ServiceError> {
        self.authorize(Action::Pull, token.topic())?;
        let expires = wake_queue::wait(self.worker.bus.settle(token, &settlement)).await?;
        debug!(peer = %self.peer, ?token, "{}", verb(&settlement));
        Ok(expires)
    }

    /// Settles many numbered leases.
    pub(crate) async fn settle_all(
        &self,
        leases: Vec<(usize, LeaseToken)>,
        settlement: Settlement,
    ) -> Result<SettledLeases, ServiceError> {
        let (granted, unsettled) = self.granted(leases)?;
        let mut settled = SettledLeases { unsettled, expires: None };
        let (numbers, tokens): (Vec<usize>, Vec<LeaseToken>) = granted.into_iter().unzip();
        let mut settling = Vec::with_capacity(tokens.len().div_ceil(SETTLED_AT_ONCE));
        for (index, part) in tokens.chunks(SETTLED_AT_ONCE).enumerate() {
            if index > 0 {
                yield_now().await;
            }
            settling.push(self.worker.bus.settle_all(part, &settlement));
        }
        // All have begun, so that a store keeps them together.
        for (numbers, settling) in numbers.chunks(SETTLED_AT_ONCE).zip(settling) {
            let SettledBatch { lost, expires } = wake_queue::wait(settling).await?;
            let lost = lost.into_iter().map(|index| (numbers[index], Code::LeaseLost));
            settled.unsettled.extend(lost);
            settled.expires = settled.expires.into_iter().chain(expires).min();
        }
        let (count, failed) = (numbers.len(), settled.unsettled.len());
        debug!(peer = %self.peer, count, failed, "{} of many", verb(&settlement));
        Ok(settled)
    }

    /// Separates the leases of topics that the client may not pull.
    fn granted(&self, leases: Vec<(usize, LeaseToken)>) -> Result<Granted, ServiceError> {
        let (mut granted, mut refused) = (Vec::with_capacity(leases.len()), Vec::new());
        // Most leases of one request are of one topic.
        let mut latest: Option<(TopicName, bool)> = None;
        for (number, token) in leases {
            let is_granted = match &latest {
                Some((topic, is_granted)) if topic == token.topic() => *is_granted,
                _ => {
                    let is_granted = match self.authorize(Action::Pull, token.topic()) {
                        Ok(()) => true,
                        Err(ServiceError::NotGranted { .. } | ServiceError::KeyNeeded { .. }) => {
                            false
                        }
                        Err(error) => return Err(error),
                    };
                    latest = Some((token.topic().clone(), is_granted));
                    is_granted
                }
            };
            if is_granted {
                granted.push((number, token));
            } else {
                refused.push((number, Code::NotGranted));
            }
        }
        Ok((granted, refused))
    }
}

/// Leases that the client may settle, and the numbers of those that it may not.
type Granted = (Vec<(usize, LeaseToken)>, Vec<(usize, Code)>);

impl QueuedPull for LeasePull {
    type Item = Leased;

    fn next_size(&self) -> Option<usize> {
        self.next_size()
    }

    fn is_committing(&self) -> bool {
        self.is_committing()
    }

    fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        may_take: impl FnMut() -> bool,
    ) -> Poll<Result<Vec<Leased>, ServiceError>> {
        self.poll_allowed(cx, may_take).map(|leased| match leased {
            Err(LeaseError::Deleted | LeaseError::Closed) => Ok(Vec::new()),
            leased => Ok(leased?),
        })
    }

    fn trace(peer: Peer, leased: &[Leased]) {
        trace(peer, leased);
    }
}

/// The beginning of a text that is not a token, without control characters, which would take several times their size as
/// JSON.
pub(crate) fn shortened(text: &str) -> String {
    let visible = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(MAX_REPEATED).map(visible).collect()
}

/// A token shows no secret here.
fn trace(peer: Peer, leased: &[Leased]) {
    for Leased { token, deliveries, .. } in leased {
        debug!(%peer, ?token, deliveries, "lease");
    }
}

fn verb(settlement: &Settlement) -> &'static str {
    match settlement {
        Settlement::Ack => "ack",
        Settlement::Nack { .. } => "nack",
        Settlement::Extend { .. } => "extend",
    }
}
