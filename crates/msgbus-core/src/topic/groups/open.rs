//! The messages that a group was given and has not settled.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use super::id_map::IdMap;
use crate::model::{LeaseKey, MonotonicTime, Now, WallTime};

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
    /// It is being published as a dead letter. The deadline is when it would be delivered again.
    Burying,
}

impl State {
    fn is_timed(self) -> bool {
        matches!(self, Self::Leased | Self::Delayed | Self::Dying)
    }
}

/// One open message, in 40 bytes.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub(super) deadline: MonotonicTime,
    pub(super) nonce: u64,
    /// The label of the last worker that got it.
    pub(super) holder: Option<Arc<str>>,
    /// When that worker got it.
    pub(super) since: Seconds,
    /// No more are counted than fit.
    pub(super) deliveries: u16,
    pub(super) state: State,
}

/// A monotonic time in whole seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seconds(u32);

impl From<MonotonicTime> for Seconds {
    fn from(time: MonotonicTime) -> Self {
        Self(u32::try_from(time.nanoseconds() / 1_000_000_000).unwrap_or(u32::MAX))
    }
}

impl Seconds {
    pub(super) fn wall(self, now: Now) -> WallTime {
        let time = MonotonicTime::from_nanoseconds(u64::from(self.0) * 1_000_000_000);
        now.wall.before(now.monotonic.since(time).into())
    }
}

#[derive(Debug, Default)]
pub(super) struct OpenTable {
    messages: IdMap<Open>,
    /// The messages that are [`State::Ready`].
    ready: BTreeSet<u64>,
    /// The deadlines of the messages in timed states, and those of messages that have changed since: most leases are
    /// settled before they end, and it takes less time to leave their deadlines in place.
    deadlines: BinaryHeap<Reverse<(MonotonicTime, u64)>>,
    /// Why messages were given back, if it was said.
    reasons: BTreeMap<u64, Box<str>>,
    leased: usize,
    settling: usize,
    /// The messages in timed states.
    timed: usize,
}

impl OpenTable {
    /// What an open message takes of the memory of the bus, in bytes.
    const MESSAGE_SIZE: u64 = 128;

    pub(super) fn memory_bytes(&self) -> u64 {
        self.messages.len() as u64 * Self::MESSAGE_SIZE
    }

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
        self.messages.get(id)
    }

    /// The message of a live lease.
    pub(super) fn leased_until(&self, key: LeaseKey, now: MonotonicTime) -> Option<&Open> {
        self.get(key.id).filter(|open| {
            open.nonce == key.nonce && open.state == State::Leased && open.deadline > now
        })
    }

    /// A message that is being published as a dead letter.
    pub(super) fn burying(&self, key: LeaseKey) -> Option<&Open> {
        self.get(key.id).filter(|open| open.nonce == key.nonce && open.state == State::Burying)
    }

    /// The messages by id, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Open)> {
        self.messages.iter()
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
        if let Some(open) = self.messages.get_mut(id) {
            let previous = std::mem::replace(&mut open.state, state);
            open.deadline = deadline;
            self.leave(id, previous);
            self.enter(id, state, deadline);
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Open> {
        let open = self.messages.remove(id)?;
        self.leave(id, open.state);
        if !self.reasons.is_empty() {
            self.reasons.remove(&id);
        }
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
            self.timed += 1;
            if self.deadlines.len() == self.deadlines.capacity() {
                self.deadlines.reserve_exact(self.deadlines.len() / 4 + Self::SPARE_DEADLINES);
            }
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
        if state.is_timed() {
            self.timed -= 1;
            self.drop_passed_over();
        }
    }

    /// The number of deadlines that may be left in place, and of those that may be unused, whatever the number of leases.
    const SPARE_DEADLINES: usize = 32;

    /// Drops the deadlines that were left in place, when a third of all are such.
    fn drop_passed_over(&mut self) {
        if self.deadlines.len() <= self.timed + self.timed / 2 + Self::SPARE_DEADLINES {
            return;
        }
        let mut deadlines = std::mem::take(&mut self.deadlines).into_vec();
        deadlines.retain(|Reverse(deadline)| is_current(&self.messages, *deadline));
        // A message may have had the same deadline more than once.
        deadlines.sort_unstable_by(|a, b| b.cmp(a));
        deadlines.dedup();
        deadlines.shrink_to(2 * deadlines.len() + Self::SPARE_DEADLINES);
        self.deadlines = deadlines.into();
    }

    /// The first message whose deadline has passed. The caller changes its state.
    pub(super) fn first_due(&mut self, now: MonotonicTime) -> Option<u64> {
        self.first_until(now).map(|(_, id)| id)
    }

    /// The next deadline.
    pub(super) fn next_deadline(&mut self) -> Option<MonotonicTime> {
        self.first_until(MonotonicTime::MAX).map(|(deadline, _)| deadline)
    }

    fn first_until(&mut self, latest: MonotonicTime) -> Option<(MonotonicTime, u64)> {
        while let Some(Reverse(first)) = self.deadlines.peek()
            && first.0 <= latest
        {
            if is_current(&self.messages, *first) {
                return Some(*first);
            }
            self.deadlines.pop();
        }
        None
    }

    /// Whether no deadline is before this time. It may be `false` because of a message that has changed since.
    pub(super) fn is_nothing_before(&self, time: MonotonicTime) -> bool {
        self.deadlines.peek().is_none_or(|Reverse((deadline, _))| *deadline >= time)
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

/// Whether a deadline is still that of the message.
fn is_current(messages: &IdMap<Open>, (deadline, id): (MonotonicTime, u64)) -> bool {
    messages.get(id).is_some_and(|open| open.state.is_timed() && open.deadline == deadline)
}

#[cfg(test)]
impl OpenTable {
    pub(super) fn deadlines(&self) -> usize {
        self.deadlines.len()
    }
}
