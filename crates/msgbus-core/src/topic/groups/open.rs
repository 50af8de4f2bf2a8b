//! The messages that a group was given and has not settled.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use crate::model::{LeaseKey, MonotonicTime, WallTime};

/// What happens to an open message next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// A worker has it until the deadline.
    Leased,
    /// It is acknowledged, and the store has not kept that yet.
    Settling,
    /// It is delivered again after the deadline.
    Delayed,
    /// It is delivered next.
    Ready,
    /// It becomes a dead letter at the deadline.
    Dying,
    /// It is being published as a dead letter.
    Burying,
}

impl State {
    fn is_timed(self) -> bool {
        matches!(self, Self::Leased | Self::Delayed | Self::Dying)
    }
}

/// One open message.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub(super) deadline: MonotonicTime,
    pub(super) nonce: u64,
    /// The last worker that got it.
    pub(super) holder: Arc<Holder>,
    pub(super) deliveries: u32,
    pub(super) state: State,
}

/// A worker that has taken messages, shared by the messages of one pull.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) label: Option<Arc<str>>,
    pub(super) since: WallTime,
}

#[derive(Debug, Default)]
pub(super) struct OpenTable {
    messages: BTreeMap<u64, Open>,
    /// The messages that are [`State::Ready`].
    ready: BTreeSet<u64>,
    /// The deadlines of timed states, the earliest on top. An entry may outlive its message or state.
    deadlines: BinaryHeap<Reverse<(MonotonicTime, u64)>>,
    /// Why messages were given back, if it was said.
    reasons: BTreeMap<u64, Box<str>>,
    leased: usize,
    settling: usize,
}

impl OpenTable {
    /// This many outdated deadlines are tolerated.
    const SLACK: usize = 64;

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The number of live leases.
    pub(super) fn leased(&self) -> usize {
        self.leased
    }

    /// The number of messages that are neither leased nor acknowledged.
    pub(super) fn waiting(&self) -> usize {
        self.messages.len() - self.leased - self.settling
    }

    pub(super) fn get(&self, id: u64) -> Option<&Open> {
        self.messages.get(&id)
    }

    /// The message of a live lease.
    pub(super) fn leased_until(&self, key: LeaseKey, now: MonotonicTime) -> Option<&Open> {
        self.get(key.id).filter(|open| {
            open.nonce == key.nonce && open.state == State::Leased && open.deadline > now
        })
    }

    /// The messages by id, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Open)> {
        self.messages.iter().map(|(id, open)| (*id, open))
    }

    /// The oldest message that is not acknowledged.
    pub(super) fn first(&self) -> Option<u64> {
        self.iter().find(|(_, open)| open.state != State::Settling).map(|(id, _)| id)
    }

    /// The oldest message that can be delivered.
    pub(super) fn first_ready(&self) -> Option<u64> {
        self.ready.first().copied()
    }

    /// Adds a message, or replaces what is known of it.
    pub(super) fn put(&mut self, id: u64, open: Open) {
        let (state, deadline) = (open.state, open.deadline);
        if let Some(previous) = self.messages.insert(id, open) {
            self.leave(id, previous.state);
        }
        self.enter(id, state, deadline);
    }

    /// Changes the state of a message that is in the table.
    pub(super) fn change(&mut self, id: u64, state: State, deadline: MonotonicTime) {
        if let Some(open) = self.messages.get_mut(&id) {
            let previous = std::mem::replace(&mut open.state, state);
            open.deadline = deadline;
            self.leave(id, previous);
            self.enter(id, state, deadline);
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Open> {
        let open = self.messages.remove(&id)?;
        self.leave(id, open.state);
        if !self.reasons.is_empty() {
            self.reasons.remove(&id);
        }
        self.drop_outdated();
        Some(open)
    }

    fn enter(&mut self, id: u64, state: State, deadline: MonotonicTime) {
        match state {
            State::Leased => self.leased += 1,
            State::Settling => self.settling += 1,
            State::Ready => drop(self.ready.insert(id)),
            State::Delayed | State::Dying | State::Burying => {}
        }
        if state.is_timed() {
            self.deadlines.push(Reverse((deadline, id)));
        }
    }

    fn leave(&mut self, id: u64, state: State) {
        match state {
            State::Leased => self.leased -= 1,
            State::Settling => self.settling -= 1,
            State::Ready => drop(self.ready.remove(&id)),
            State::Delayed | State::Dying | State::Burying => {}
        }
    }

    /// Takes the next deadline that has passed. Returns the message, whose state the caller changes.
    pub(super) fn pop_due(&mut self, now: MonotonicTime) -> Option<u64> {
        while let Some(Reverse((deadline, id))) = self.deadlines.peek().copied()
            && deadline <= now
        {
            self.deadlines.pop();
            if is_current(&self.messages, deadline, id) {
                return Some(id);
            }
        }
        None
    }

    /// The next deadline.
    pub(super) fn next_deadline(&mut self) -> Option<MonotonicTime> {
        while let Some(Reverse((deadline, id))) = self.deadlines.peek().copied() {
            if is_current(&self.messages, deadline, id) {
                return Some(deadline);
            }
            self.deadlines.pop();
        }
        None
    }

    /// Leases are usually settled long before their deadlines, which stay behind.
    fn drop_outdated(&mut self) {
        if self.deadlines.len() > 2 * self.messages.len() + Self::SLACK {
            let messages = &self.messages;
            self.deadlines.retain(|Reverse((deadline, id))| is_current(messages, *deadline, *id));
        }
    }

    pub(super) fn reason(&self, id: u64) -> Option<&str> {
        self.reasons.get(&id).map(AsRef::as_ref)
    }

    pub(super) fn set_reason(&mut self, id: u64, reason: Option<Box<str>>) {
        match reason {
            Some(reason) => drop(self.reasons.insert(id, reason)),
            None => drop(self.reasons.remove(&id)),
        }
    }
}

fn is_current(messages: &BTreeMap<u64, Open>, deadline: MonotonicTime, id: u64) -> bool {
    messages.get(&id).is_some_and(|open| open.state.is_timed() && open.deadline == deadline)
}

#[cfg(test)]
impl OpenTable {
    pub(super) fn deadlines(&self) -> usize {
        self.deadlines.len()
    }
}
