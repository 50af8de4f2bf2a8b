//! What the clients know of messages, by who has published them: what is confirmed, leased and done.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    super::payload::Origin,
    topics::{Queue, Topic},
};

/// How much earlier than said an engine may end a lease.
const SLACK: Duration = Duration::from_millis(50);

/// A message: its publisher, and its number there.
pub(super) type Name = (u64, u64);

pub(super) fn name(origin: Origin) -> Name {
    (origin.publisher, origin.sequence)
}

/// What is known of a topic.
#[derive(Debug, Default)]
pub(super) struct TopicAccount {
    pub(super) confirmed: HashSet<Name>,
    /// How many more there may be, of publishes that were not answered.
    pub(super) unknown: u64,
    /// The positions that were confirmed.
    positions: HashSet<(u64, u64)>,
}

/// What is known of the messages that workers are given.
#[derive(Debug, Default)]
pub(super) struct QueueAccount {
    leases: HashMap<Name, Lease>,
    /// The messages that are acknowledged, or pulled, and since when.
    pub(super) done: HashMap<Name, Instant>,
    /// Those whose ack was not answered.
    pub(super) maybe_done: HashSet<Name>,
    pub(super) dead: HashSet<Name>,
    /// How many messages may have been pulled, in responses that did not arrive.
    pub(super) unknown: u64,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    given: Instant,
    live_until: Instant,
    /// Whether its worker may have ended it.
    may_be_over: bool,
}

/// What speaks against a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Objection {
    /// It was done at this time.
    Done(Instant),
    /// It was leased at this time, and that lease is live.
    Leased(Instant),
}

#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub(super) topics: BTreeMap<Topic, TopicAccount>,
    pub(super) queues: BTreeMap<Queue, QueueAccount>,
}

impl Accounts {
    /// Records messages that are confirmed. Returns whether their position is new.
    pub(super) fn publish(
        &mut self,
        topic: Topic,
        position: (u64, u64),
        origins: &[Origin],
    ) -> bool {
        let account = self.topics.entry(topic).or_default();
        account.confirmed.extend(origins.iter().copied().map(name));
        account.positions.insert(position)
    }

    pub(super) fn may_have_published(&mut self, topic: Topic, count: u64) {
        self.topics.entry(topic).or_default().unknown += count;
    }

    pub(super) fn queue(&mut self, queue: Queue) -> &mut QueueAccount {
        self.queues.entry(queue).or_default()
    }
}

impl QueueAccount {
    /// Records a delivery, for which a worker has a lease until `live_until`. Returns what speaks against it.
    pub(super) fn lease(&mut self, name: Name, live_until: Instant) -> Option<Objection> {
        let now = Instant::now();
        if now >= live_until {
            // In a response that took so long, and may have been delivered again meanwhile.
            return None;
        }
        let lease = Lease { given: now, live_until, may_be_over: false };
        let last = self.leases.insert(name, lease);
        let done = self.done.get(&name).copied().map(Objection::Done);
        let live = last.filter(|last| !last.may_be_over && now + SLACK < last.live_until);
        done.or(live.map(|last| Objection::Leased(last.given)))
    }

    /// Records a message that was pulled without a lease. Returns what speaks against it.
    pub(super) fn pull(&mut self, name: Name) -> Option<Objection> {
        self.done.insert(name, Instant::now()).map(Objection::Done)
    }

    /// Records that a worker is about to end a lease.
    pub(super) fn begin_to_settle(&mut self, name: Name) {
        if let Some(lease) = self.leases.get_mut(&name) {
            lease.may_be_over = true;
        }
    }

    /// Whether somebody has it, or may have it.
    pub(super) fn knows(&self, name: &Name) -> bool {
        self.done.contains_key(name) || self.maybe_done.contains(name) || self.dead.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_one_live_lease_and_none_when_it_is_done() {
        let mut queue = QueueAccount::default();
        let soon = Instant::now() + Duration::from_secs(60);
        assert_eq!(queue.lease((1, 0), soon), None);
        assert!(matches!(queue.lease((1, 0), soon), Some(Objection::Leased(_))));
        assert_eq!(queue.lease((1, 1), soon), None, "that is another one");
        queue.begin_to_settle((1, 0));
        assert_eq!(queue.lease((1, 0), soon), None, "it may have been given back");
        let now = Instant::now();
        queue.done.insert((1, 0), now);
        assert_eq!(queue.lease((1, 0), soon), Some(Objection::Done(now)));
        assert_eq!(queue.pull((1, 0)), Some(Objection::Done(now)));
        assert!(queue.knows(&(1, 0)) && !queue.knows(&(1, 1)));
    }
}
