//! Working for a group inside a program.

use std::{ops::Deref, time::Duration};

use chrono::{DateTime, Utc};

use super::lease::LeasePull;
use crate::{
    bus::{MessageBus, Op},
    error::{LeaseError, SettleError},
    model::{GroupName, LeaseToken, Leased, Message, Settlement, TopicName},
    options::{BatchLimit, LeaseOptions},
};

impl MessageBus {
    /// A group of workers, to take messages from. The topic and the group need not exist: the first message that is
    /// taken creates the group, at the oldest message.
    pub fn group(&self, topic: &TopicName, group: &GroupName) -> Group {
        let options = LeaseOptions::default();
        Group { bus: self.clone(), topic: topic.clone(), name: group.clone(), options }
    }
}

/// A group of workers of one topic. Each message goes to one of them. Clone it for another worker.
///
/// ```
/// use msgbus_core::{MessageBus, Options};
///
/// let bus = MessageBus::new(Options::default());
/// let jobs = "jobs".parse()?;
/// bus.put(&jobs, "resize cat.png")?;
///
/// let workers = bus.group(&jobs, &"workers".parse()?);
/// let job = workers.try_take().wait()?.expect("just published");
/// assert_eq!(job.message().payload(), "resize cat.png");
/// job.ack().wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Group {
    bus: MessageBus,
    topic: TopicName,
    name: GroupName,
    options: LeaseOptions,
}

impl Group {
    /// Changes the length of leases, the position of a new group, or the label of the worker. The limit does not count:
    /// one message is taken at a time.
    #[must_use]
    pub fn with(mut self, options: LeaseOptions) -> Self {
        self.options = LeaseOptions { limit: BatchLimit::ONE, ..options };
        self
    }

    /// Takes a message, if there is one.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn try_take(&self) -> Op<Result<Option<Delivery>, LeaseError>> {
        let bus = self.bus.clone();
        let leased = self.bus.lease(&self.topic, &self.name, self.options.clone());
        leased.map(|leased| Ok(leased?.pop().map(|leased| Delivery::new(bus, leased))))
    }

    /// Takes a message as soon as there is one.
    ///
    /// # Errors
    /// See [`LeaseError`].
    ///
    /// # Cancel safety
    /// As for [`LeasePull`].
    pub async fn take(&self) -> Result<Delivery, LeaseError> {
        let mut leased = self.wait()?.await?;
        leased.pop().map(|leased| Delivery::new(self.bus.clone(), leased)).ok_or(LeaseError::Closed)
    }

    /// Blocks the thread until there is a message or the timeout has passed, and then returns `None`.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn take_timeout(&self, timeout: Duration) -> Result<Option<Delivery>, LeaseError> {
        let leased = self.wait()?.wait_timeout(timeout)?;
        let leased = leased.and_then(|mut leased| leased.pop());
        Ok(leased.map(|leased| Delivery::new(self.bus.clone(), leased)))
    }

    fn wait(&self) -> Result<LeasePull, LeaseError> {
        self.bus.lease_wait(&self.topic, &self.name, self.options.clone())
    }
}

/// A message that a worker has taken. When it is dropped without an ack, the message goes back to its group at once.
#[derive(Debug)]
pub struct Delivery {
    bus: MessageBus,
    leased: Leased,
    is_settled: bool,
}

impl Delivery {
    fn new(bus: MessageBus, leased: Leased) -> Self {
        Self { bus, leased, is_settled: false }
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.leased.message
    }

    /// The lease, to be settled elsewhere. It ends by time unless it is.
    pub fn into_token(mut self) -> LeaseToken {
        self.is_settled = true;
        self.leased.token.clone()
    }

    /// The message is done.
    ///
    /// # Errors
    /// When the lease is over, or the store does not keep the ack.
    pub fn ack(self) -> Op<Result<(), SettleError>> {
        self.settle(&Settlement::Ack)
    }

    /// The message failed: it is delivered again after a delay, or becomes a dead letter.
    ///
    /// # Errors
    /// When the lease is over.
    pub fn nack(self, delay: Duration, reason: Option<&str>) -> Op<Result<(), SettleError>> {
        self.settle(&Settlement::Nack { delay, reason: reason.map(Box::from) })
    }

    fn settle(mut self, settlement: &Settlement) -> Op<Result<(), SettleError>> {
        self.is_settled = true;
        self.bus.settle(&self.leased.token, settlement).map(|settled| settled.map(drop))
    }

    /// The lease lasts this long from now, but no longer than the message lives. Returns when it ends.
    ///
    /// # Errors
    /// When the lease is over.
    pub fn extend(&self, lease: Duration) -> Op<Result<DateTime<Utc>, SettleError>> {
        let settled = self.bus.settle(&self.leased.token, &Settlement::Extend { lease });
        settled.map(|settled| settled?.ok_or(SettleError::Lost))
    }
}

/// The lease and the number of deliveries.
impl Deref for Delivery {
    type Target = Leased;

    fn deref(&self) -> &Leased {
        &self.leased
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.is_settled {
            let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
            // It is done when the call returns. If the lease is over, there is nothing to give back.
            drop(self.bus.settle(&self.leased.token, &back));
        }
    }
}
