//! A pull for a group that waits in the group's queue.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    waiting::{InEngine, Source, Take, Waiting},
    watch::{TopicWatch, Watched},
};
use crate::{
    bus::{MessageBus, TopicRef, clock},
    error::LeaseError,
    model::{GroupName, Leased, Position, TopicName},
    options::LeaseOptions,
    topic::{Page, TakeError, Taken, Topic, WaitError, WaiterId},
};

impl MessageBus {
    /// Leases messages to a worker of a group as soon as there are any, see [`lease`](Self::lease). The topic need not
    /// exist. Waiting pulls of a group are served in the order in which they began.
    ///
    /// # Errors
    /// When the bus is closed, or pulls of too many groups wait.
    pub fn lease_wait(
        &self,
        topic: &TopicName,
        group: &GroupName,
        options: LeaseOptions,
    ) -> Result<LeasePull, LeaseError> {
        self.topic_ref(topic, &mut None).lease_wait(group, options)
    }
}

impl TopicRef<'_> {
    fn lease_wait(
        &mut self,
        group: &GroupName,
        options: LeaseOptions,
    ) -> Result<LeasePull, LeaseError> {
        if let Some(engine) = self.engine() {
            let pull = InEngine::new(|has_taken| {
                engine.lease_wait(self.map(), self.name(), group, options, has_taken)
            });
            return Ok(LeasePull(Source::Engine(pull)));
        }
        let from = self.map().resume(options.from);
        let joined =
            self.with_or_create(|_, topic| Ok((topic.wait(Some(group))?, topic.next_id())));
        let (topic, (waiter, next_id)) =
            joined.map_err(|error: WaitError| LeaseError::from(error))?;
        // A group that is new starts with the next message from now, also if that creates the topic.
        let from = if from == Position::New { Position::Id(next_id) } else { from };
        let take = TakeLeases { group: group.clone(), options: LeaseOptions { from, ..options } };
        Ok(LeasePull(Source::Topic(Waiting::new(topic, waiter, take))))
    }
}

impl TopicWatch {
    /// As [`MessageBus::lease_wait`], from this topic: no other one of the same name, which is not created either. The
    /// position is that of the watch.
    ///
    /// # Errors
    /// When the topic was deleted, the bus is closed, or pulls of too many groups wait.
    pub fn lease_wait(
        &self,
        group: &GroupName,
        options: LeaseOptions,
    ) -> Result<LeasePull, LeaseError> {
        let options = LeaseOptions { from: self.from(), ..options };
        let topic = match self.topic() {
            Watched::Topic(topic) => topic,
            Watched::Engine(bus, topic) => return bus.lease_wait(topic, group, options),
        };
        let mut locked = topic.lock();
        if locked.is_deleted() {
            return Err(LeaseError::Deleted);
        }
        let waiter = locked.wait(Some(group))?;
        drop(locked);
        let take = TakeLeases { group: group.clone(), options };
        Ok(LeasePull(Source::Topic(Waiting::new(topic, waiter, take))))
    }
}

/// A pull for a group that waits for its messages: a future of at least one lease, up to a limit.
///
/// The waiting pulls of a group are served in the order in which they began. A pull leases messages only when its future
/// completes. Dropping it earlier leases nothing and lets the next one have them. A pull from a durable topic leases
/// them, and then waits for the store: dropped meanwhile, its leases end by time. Once completed, it stays pending and no
/// longer queues.
#[derive(Debug)]
pub struct LeasePull(Source<TakeLeases>);

#[derive(Debug)]
struct TakeLeases {
    group: GroupName,
    options: LeaseOptions,
}

impl Take for TakeLeases {
    type Item = Leased;
    type Error = LeaseError;

    fn group(&self) -> Option<&GroupName> {
        Some(&self.group)
    }

    fn take(
        &self,
        topic: &mut Topic,
        waiter: WaiterId,
        page: &mut Page,
    ) -> Result<Taken<Leased>, TakeError<LeaseError>> {
        topic.poll_lease(waiter, &self.group, &self.options, clock::now(), page)
    }
}

impl LeasePull {
    /// The size of the payload that the group gets next, in bytes. `None` if there is none or the topic was deleted.
    /// Takes nothing.
    pub fn next_size(&self) -> Option<usize> {
        let waiting = self.0.waiting()?;
        waiting.topic().lock().next_size_for(&waiting.take().group, clock::monotonic())
    }

    /// Whether messages were leased from a durable topic, and the store has not kept the leases yet. Nobody else can get
    /// them before the leases end.
    pub fn is_committing(&self) -> bool {
        self.0.is_committing()
    }

    /// Blocks the thread until there are messages or the timeout has passed, and then returns `None`. If messages were taken by
    /// then, it waits until the store or the engine has kept that.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn wait_timeout(self, timeout: Duration) -> Result<Option<Vec<Leased>>, LeaseError> {
        self.0.wait_timeout(timeout)
    }

    /// Polls for messages as the future does, for a caller that may lose its permission. `may_take` is called under the
    /// topic's lock. If it returns `false`, nothing is leased and the result is empty.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        may_take: impl FnMut() -> bool,
    ) -> Poll<Result<Vec<Leased>, LeaseError>> {
        // Slice by slice, so that few expired messages are left when the messages are taken.
        if let Some(waiting) = self.0.waiting() {
            drop(waiting.topic().lock_and_expire());
        }
        self.0.poll_allowed(cx, may_take)
    }
}

impl Future for LeasePull {
    type Output = Result<Vec<Leased>, LeaseError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_allowed(cx, || true)
    }
}

impl From<WaitError> for LeaseError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Closed => Self::Closed,
            WaitError::TooManyGroups { limit } => Self::TooManyGroups { limit },
        }
    }
}
