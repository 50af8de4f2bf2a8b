//! A topic that a store keeps: what was appended and is not committed yet.
//!
//! An appended message is not in the log. It moves there when it is committed, so readers, limits and counters need not
//! know about it, and nothing has to be undone if the store refuses it.

use std::{collections::VecDeque, sync::Arc};

use super::{BatchSize, State, Topic, commit::Commit, groups::GroupStep};
use crate::{
    model::{Message, MonotonicTime},
    stats::Counters,
    store::{Durability, Promise, Record, StoreError, Ticket, TopicState, TopicStore},
};

/// The durable part of a topic.
#[derive(Debug)]
pub(crate) struct Durable {
    store: Box<dyn TopicStore>,
    durability: Durability,
    pending: VecDeque<Pending>,
    /// The size of all pending messages.
    size: BatchSize,
    is_deletion_refused: bool,
}

/// An append that is not committed yet.
#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    step: Step,
    commit: Arc<Commit>,
}

#[derive(Debug)]
enum Step {
    Publish(Vec<PendingMessage>),
    Pull {
        /// The position of pulls before it.
        from: u64,
        /// The number of messages taken.
        count: u64,
    },
    Group {
        number: u8,
        step: GroupStep,
    },
    Delete,
}

/// A message with its place in the log.
#[derive(Debug)]
pub(super) struct PendingMessage {
    pub(super) message: Message,
    pub(super) deadline: MonotonicTime,
    pub(super) is_early: bool,
}

/// The appends that a commit or a refusal has ended. Finish them after the topic's lock is released.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct Ended {
    commits: Vec<Arc<Commit>>,
    /// Whether messages became visible.
    has_messages: bool,
    /// Whether the topic does not count as published to any longer.
    is_dismissed: bool,
}

impl Ended {
    pub(crate) fn has_messages(&self) -> bool {
        self.has_messages
    }

    pub(crate) fn is_dismissed(&self) -> bool {
        self.is_dismissed
    }

    pub(crate) fn finish(self, outcome: Result<(), StoreError>) {
        for commit in self.commits {
            commit.finish(outcome);
        }
    }
}

impl Durable {
    pub(crate) fn new(store: Box<dyn TopicStore>, promise: Promise) -> Self {
        Self {
            store,
            durability: promise.durability(),
            pending: VecDeque::new(),
            size: BatchSize::default(),
            is_deletion_refused: false,
        }
    }

    pub(super) fn store(&self) -> &dyn TopicStore {
        &*self.store
    }

    /// Takes out the oldest append, if its ticket is at most this one.
    fn pop(&mut self, up_to: Ticket) -> Option<Pending> {
        self.pending.front().filter(|pending| pending.ticket <= up_to)?;
        let pending = self.pending.pop_front();
        if let Some(Pending { step: Step::Publish(messages), .. }) = &pending {
            self.size.count -= messages.len();
            self.size.bytes -= messages.iter().map(|new| new.message.accounted_size()).sum::<u64>();
        }
        pending
    }

    fn push(&mut self, ticket: Ticket, step: Step) -> Arc<Commit> {
        let commit = Arc::new(Commit::default());
        self.pending.push_back(Pending { ticket, step, commit: Arc::clone(&commit) });
        commit
    }
}

impl Topic {
    /// What an accepted message survives.
    pub(crate) fn durability(&self) -> Durability {
        self.durable.as_ref().map_or(Durability::Memory, |durable| durable.durability)
    }

    /// Whether a store keeps the topic.
    pub(crate) fn is_durable(&self) -> bool {
        self.durable.is_some()
    }

    /// What is appended and not committed.
    pub(super) fn pending_size(&self) -> BatchSize {
        self.durable.as_ref().map(|durable| durable.size).unwrap_or_default()
    }

    /// Whether there are messages that may still become visible.
    pub(super) fn has_pending(&self) -> bool {
        self.pending_size().count > 0
    }

    /// The id of the next message to append. Messages below it are in the log or pending.
    pub(super) fn append_id(&self) -> u64 {
        self.log.next_id() + self.pending_size().count as u64
    }

    /// The state after `count` more messages are appended.
    fn state_after(&self, count: u64) -> TopicState {
        let added = self.pending_size().count as u64 + count;
        TopicState {
            first_id: self.log.first_id(),
            next_id: self.log.next_id() + added,
            appended: self.log.appended() + added,
            pull_next: self.pull_next,
            counters: Counters { published: self.counters.published + added, ..self.counters },
        }
    }

    /// Hands messages to the store.
    pub(super) fn store_messages(
        &mut self,
        messages: Vec<PendingMessage>,
        size: BatchSize,
    ) -> Result<Arc<Commit>, StoreError> {
        let record = Record::Messages(messages.iter().map(|new| new.message.clone()).collect());
        let state = self.state_after(messages.len() as u64);
        let Some(durable) = &mut self.durable else { return Err(StoreError::Closed) };
        let ticket = durable.store.append(record, state)?;
        durable.size.count += size.count;
        durable.size.bytes += size.bytes;
        Ok(durable.push(ticket, Step::Publish(messages)))
    }

    /// Hands the new position of pulls to the store, after `count` messages were taken from the position `from` on.
    /// If the store does not accept it, they are put back.
    pub(super) fn store_pull(
        &mut self,
        from: u64,
        count: u64,
    ) -> Result<Option<Arc<Commit>>, StoreError> {
        let state = self.state_after(0);
        let Some(durable) = &mut self.durable else { return Ok(None) };
        match durable.store.append(Record::Pulled, state) {
            Ok(ticket) => Ok(Some(durable.push(ticket, Step::Pull { from, count }))),
            Err(error) => {
                self.put_back(from, count);
                Err(error)
            }
        }
    }

    /// Hands a change of a group to the store. Returns the step if the store does not accept it.
    pub(super) fn store_group(
        &mut self,
        record: Record,
        number: u8,
        step: GroupStep,
    ) -> Result<Arc<Commit>, (StoreError, GroupStep)> {
        let state = self.state_after(0);
        let Some(durable) = &mut self.durable else { return Err((StoreError::Closed, step)) };
        match durable.store.append(record, state) {
            Ok(ticket) => Ok(durable.push(ticket, Step::Group { number, step })),
            Err(error) => Err((error, step)),
        }
    }

    /// Tells the store that the topic is deleted. `None` if it is not durable.
    pub(crate) fn store_deletion(&mut self) -> Result<Option<Arc<Commit>>, StoreError> {
        let state = self.state_after(0);
        let Some(durable) = &mut self.durable else { return Ok(None) };
        let ticket = durable.store.append(Record::Deleted, state)?;
        Ok(Some(durable.push(ticket, Step::Delete)))
    }

    /// Tells the store again that the topic is deleted, if it has refused that. Returns whether the deletion is kept.
    pub(crate) fn retry_deletion(&mut self) -> bool {
        let Some(durable) = &mut self.durable else { return true };
        if std::mem::take(&mut durable.is_deletion_refused)
            && self.store_deletion().is_err()
            && let Some(durable) = &mut self.durable
        {
            durable.is_deletion_refused = true;
        }
        self.durable
            .as_ref()
            .is_none_or(|durable| durable.pending.is_empty() && !durable.is_deletion_refused)
    }

    /// Drops all pending messages, and returns how many there were.
    pub(super) fn drop_pending(&mut self) -> u64 {
        let Some(durable) = &mut self.durable else { return 0 };
        for pending in &mut durable.pending {
            if let Step::Publish(messages) = &mut pending.step {
                for new in messages.drain(..) {
                    self.removed.push(new.message);
                }
            }
        }
        std::mem::take(&mut durable.size).count as u64
    }

    /// Makes everything up to a ticket visible, and applies the limits to it.
    pub(crate) fn commit(&mut self, up_to: Ticket, now: MonotonicTime) -> Ended {
        let mut ended = Ended::default();
        while let Some(durable) = &mut self.durable
            && let Some(pending) = durable.pop(up_to)
        {
            match pending.step {
                Step::Publish(messages) => {
                    ended.has_messages |= !messages.is_empty();
                    for message in messages {
                        self.enter(message);
                    }
                }
                Step::Group { number, step } => {
                    if let Some(groups) = &mut self.groups {
                        groups.finish(number, step);
                    }
                }
                Step::Pull { .. } | Step::Delete => {}
            }
            ended.commits.push(pending.commit);
        }
        self.enforce_limits(now);
        ended
    }

    /// Takes back everything that is not committed, except a deletion: the topic has left the bus.
    pub(crate) fn refuse(&mut self) -> Ended {
        self.drop_pending();
        let mut ended = Ended::default();
        // The latest first, so that the position of pulls ends where the earliest refused pull began.
        while let Some(durable) = &mut self.durable
            && let Some(pending) = durable.pending.pop_back()
        {
            match pending.step {
                Step::Pull { from, count } => self.put_back(from, count),
                Step::Group { number, step } => self.undo(number, step),
                Step::Delete => durable.is_deletion_refused = true,
                Step::Publish(_) => {}
            }
            ended.commits.push(pending.commit);
        }
        ended.is_dismissed = self.dismiss_if_never_published();
        ended
    }

    /// Whether the only publishes to the topic were refused. Then it is as before them.
    fn dismiss_if_never_published(&mut self) -> bool {
        let is_dismissed = self.state != State::Deleted
            && self.was_published
            && self.durable.is_some()
            && self.groups.is_none()
            && self.log.appended() == 0;
        if is_dismissed {
            self.was_published = false;
            self.durable = None;
        }
        is_dismissed
    }

    /// Undoes a pull that was not committed.
    fn put_back(&mut self, from: u64, count: u64) {
        if self.state == State::Deleted {
            return;
        }
        // Some of its messages may have left since, and were counted as pulled.
        let kept = self.log.count_from(from) - self.log.count_from(self.pull_next);
        let left = count.saturating_sub(kept);
        let evicted = left.min(self.counters.evicted.total - self.counters.evicted.unpulled);
        self.counters.evicted.unpulled += evicted;
        self.counters.expired.unpulled += left - evicted;
        self.pull_next = from;
        self.counters.pulled -= count;
    }

    /// Tells the store what it need not keep any longer.
    pub(super) fn release(&self) {
        if let Some(durable) = &self.durable {
            durable.store.release(self.log.first_id());
        }
    }
}
