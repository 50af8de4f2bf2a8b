//! The log of one topic: its retained messages in order.
//!
//! Ids rise from slot to slot. A message that expires before older ones leaves a hole in its slot, so that
//! no slot has to move at once. Holes are removed when they are the majority, or when messages are counted.
//! So the index of an id is usually its distance from the first id, and otherwise found by binary search.
//!
//! Messages are found by id, and counted by [`Ordinal`], because ids may have gaps.
//!
//! The oldest messages of a durable topic may be cold: they are only in the store, and the log knows their ids, sizes and
//! deadlines.

#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    ops::Range,
};

use super::{
    cold::{ColdLog, Left},
    sequence::{Ordinal, Sequence},
};
use crate::model::{Message, MonotonicTime, WallTime};

#[derive(Debug, Default)]
pub(crate) struct Log {
    /// The messages before those in the slots, if any are only in the store.
    cold: Option<Box<ColdLog>>,
    /// Never begins with a hole.
    slots: VecDeque<Slot>,
    next_id: u64,
    sequence: Sequence,
    /// Slots that hold a message.
    live: usize,
    bytes: u64,
    /// Messages that may expire before an older one, the earliest deadline on top. All others expire in the
    /// order of the log. An entry may outlive its message.
    early_expiries: BinaryHeap<Reverse<(MonotonicTime, u64)>>,
}

/// A message in the log.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Entry<'a> {
    Hot(&'a Message),
    /// Its payload is only in the store.
    Cold(Left),
}

impl Entry<'_> {
    pub(crate) fn id(&self) -> u64 {
        match self {
            Self::Hot(message) => message.id(),
            Self::Cold(left) => left.id,
        }
    }

    /// The message, if it is in memory.
    pub(crate) fn message(&self) -> Option<&Message> {
        match self {
            Self::Hot(message) => Some(message),
            Self::Cold(_) => None,
        }
    }

    pub(crate) fn created(&self) -> WallTime {
        match self {
            Self::Hot(message) => message.created_at(),
            Self::Cold(left) => left.created,
        }
    }

    /// The size of the payload in bytes, or a little more: of a cold message it is not known how much its headers take.
    pub(crate) fn payload_size(&self) -> usize {
        match self {
            Self::Hot(message) => message.payload().len(),
            Self::Cold(left) => {
                usize::try_from(left.size.saturating_sub(Message::OVERHEAD)).unwrap_or(usize::MAX)
            }
        }
    }
}

impl From<Left> for Entry<'_> {
    fn from(left: Left) -> Self {
        Self::Cold(left)
    }
}

/// A message that has left the log.
#[derive(Debug)]
pub(crate) struct Popped {
    pub(crate) id: u64,
    /// `None` if it was cold.
    pub(crate) message: Option<Message>,
}

impl From<Left> for Popped {
    fn from(left: Left) -> Self {
        Self { id: left.id, message: None }
    }
}

impl From<Message> for Popped {
    fn from(message: Message) -> Self {
        Self { id: message.id(), message: Some(message) }
    }
}

#[derive(Debug)]
enum Slot {
    Kept { deadline: MonotonicTime, message: Message },
    Hole { id: u64 },
}

impl Slot {
    fn id(&self) -> u64 {
        match self {
            Self::Kept { message, .. } => message.id(),
            Self::Hole { id } => *id,
        }
    }

    fn message(&self) -> Option<&Message> {
        match self {
            Self::Kept { message, .. } => Some(message),
            Self::Hole { .. } => None,
        }
    }

    /// The message, unless it has expired.
    fn message_at(&self, now: MonotonicTime) -> Option<&Message> {
        match self {
            Self::Kept { deadline, message } if *deadline > now => Some(message),
            _ => None,
        }
    }

    fn is_expired(&self, now: MonotonicTime) -> bool {
        matches!(self, Self::Kept { deadline, .. } if *deadline <= now)
    }
}

impl Log {
    /// This many holes, and outdated early expiries, are tolerated in any log.
    const COMPACTION_SLACK: usize = 64;
    const MIN_SHRINK_CAPACITY: usize = 64;

    /// The id of the next message.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// The id of the oldest message, or of the next one if there is none.
    pub(crate) fn first_id(&self) -> u64 {
        let cold = self.cold.as_ref().and_then(|cold| cold.first_id());
        cold.unwrap_or_else(|| self.first_hot_id())
    }

    fn first_hot_id(&self) -> u64 {
        self.slots.front().map_or(self.next_id, Slot::id)
    }

    /// The ordinal of the first message with this or a higher id, which is at most [`next_id`](Self::next_id).
    pub(crate) fn ordinal(&self, id: u64) -> Ordinal {
        self.sequence.ordinal(id)
    }

    /// The id of an ordinal.
    pub(crate) fn id(&self, ordinal: Ordinal) -> u64 {
        self.sequence.id(ordinal)
    }

    /// How many messages were appended.
    pub(crate) fn appended(&self) -> u64 {
        self.next_ordinal().number()
    }

    /// The ordinal of the next message.
    pub(crate) fn next_ordinal(&self) -> Ordinal {
        self.ordinal(self.next_id)
    }

    /// An empty log whose next message gets this id and ordinal.
    pub(crate) fn starting_at(next_id: u64, ordinal: Ordinal) -> Self {
        let mut log = Self { next_id: ordinal.number(), ..Self::default() };
        log.skip_to(next_id);
        log
    }

    /// Moves the end to `id`, past messages that have left. A lower id than [`next_id`](Self::next_id) changes
    /// nothing.
    pub(crate) fn leave_out(&mut self, id: u64) {
        self.next_id = self.next_id.max(id);
    }

    /// Leaves a gap before the next message, whose id becomes `id`. A lower id than [`next_id`](Self::next_id)
    /// changes nothing.
    pub(crate) fn skip_to(&mut self, id: u64) {
        if id > self.next_id {
            let (next, first) = (self.next_ordinal(), self.ordinal(self.first_id()));
            self.sequence.skip_to(id, next, first);
            self.next_id = id;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.live + self.cold.as_ref().map_or(0, |cold| cold.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The accounted size of all messages, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes + self.cold.as_ref().map_or(0, |cold| cold.bytes())
    }

    /// The accounted size of the messages that are in memory, in bytes.
    pub(crate) fn hot_bytes(&self) -> u64 {
        self.bytes
    }

    /// What the log takes of the memory of the bus, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.bytes + self.cold.as_ref().map_or(0, |cold| cold.slots() as u64 * ColdLog::SLOT_SIZE)
    }

    /// Makes the oldest message in memory cold, and returns it. `None` if there is none that can be.
    pub(crate) fn cool(&mut self) -> Option<Message> {
        if let (Slot::Kept { message, .. }, Some(cold)) = (self.slots.front()?, &self.cold)
            && !cold.accepts(message)
        {
            return None;
        }
        let Slot::Kept { deadline, message } = self.slots.pop_front()? else { return None };
        while let Some(Slot::Hole { .. }) = self.slots.front() {
            self.slots.pop_front();
        }
        let size = message.accounted_size();
        self.live -= 1;
        self.bytes -= size;
        let cold = self.cold.get_or_insert_default();
        cold.push(message.id(), message.created_at(), size, deadline);
        Some(message)
    }

    /// Appends a cold message whose id is [`next_id`](Self::next_id). There are only cold ones so far.
    pub(crate) fn push_cold(
        &mut self,
        created: WallTime,
        size: u64,
        deadline: MonotonicTime,
        early: bool,
    ) {
        let id = self.next_id;
        if early {
            self.early_expiries.push(Reverse((deadline, id)));
        }
        self.next_id += 1;
        self.cold.get_or_insert_default().push(id, created, size, deadline);
    }

    /// Appends a message whose id is [`next_id`](Self::next_id). `early` says whether it may expire before
    /// an older one.
    pub(crate) fn push(&mut self, message: Message, deadline: MonotonicTime, early: bool) {
        debug_assert_eq!(message.id(), self.next_id, "the log assigns ids");
        if early {
            self.early_expiries.push(Reverse((deadline, message.id())));
        }
        self.next_id += 1;
        self.live += 1;
        self.bytes += message.accounted_size();
        self.slots.push_back(Slot::Kept { deadline, message });
    }

    /// Takes out the oldest message.
    pub(crate) fn pop(&mut self) -> Option<Popped> {
        if let Some(left) = self.cold.as_mut().and_then(|cold| cold.pop()) {
            self.drop_outdated();
            return Some(left.into());
        }
        self.pop_hot().map(Popped::from)
    }

    fn pop_hot(&mut self) -> Option<Message> {
        let Slot::Kept { message, .. } = self.slots.pop_front()? else { return None };
        while let Some(Slot::Hole { .. }) = self.slots.front() {
            self.slots.pop_front();
        }
        self.account_removal(&message);
        Some(message)
    }

    /// Takes out all messages.
    #[must_use]
    pub(crate) fn take_all(&mut self) -> Self {
        let (next_id, sequence) = (self.next_id, std::mem::take(&mut self.sequence));
        std::mem::replace(self, Self { next_id, sequence, ..Self::default() })
    }

    /// Takes out one expired message. `None` if no message has expired.
    pub(crate) fn pop_expired(&mut self, now: MonotonicTime) -> Option<Popped> {
        if let Some(cold) = &self.cold
            && let Some(deadline) = cold.first_deadline()
        {
            return if deadline <= now { self.pop() } else { self.pop_early(now) };
        }
        match self.slots.front()? {
            Slot::Kept { deadline, .. } if *deadline <= now => self.pop_hot().map(Popped::from),
            _ => self.pop_early(now),
        }
    }

    fn pop_early(&mut self, now: MonotonicTime) -> Option<Popped> {
        let id = loop {
            let Reverse((_, id)) = *self.early_expiries.peek().filter(|early| early.0.0 <= now)?;
            self.early_expiries.pop();
            if id >= self.first_id() {
                break id;
            }
        };
        if id < self.first_hot_id() {
            let left = self.cold.as_mut()?.take(id)?;
            self.drop_outdated();
            return Some(left.into());
        }
        let at = self.index_of(id);
        let Slot::Kept { message, .. } =
            std::mem::replace(self.slots.get_mut(at)?, Slot::Hole { id })
        else {
            return None;
        };
        self.account_removal(&message);
        Some(message.into())
    }

    /// Accounts for a message that has left, and removes holes and outdated entries once they are the majority.
    fn account_removal(&mut self, message: &Message) {
        self.live -= 1;
        self.bytes -= message.accounted_size();
        self.drop_outdated();
    }

    #[inline]
    fn drop_outdated(&mut self) {
        let limit = 2 * self.live + Self::COMPACTION_SLACK;
        if self.slots.len() > limit {
            self.compact();
        }
        if self.early_expiries.len() > limit || self.cold.is_some() {
            self.drop_outdated_cold();
        }
    }

    #[inline(never)]
    fn drop_outdated_cold(&mut self) {
        if let Some(cold) = &mut self.cold
            && cold.slots() > 2 * cold.len() + Self::COMPACTION_SLACK
        {
            cold.compact();
        }
        if self.early_expiries.len() > 2 * self.len() + Self::COMPACTION_SLACK {
            let first = self.first_id();
            self.early_expiries.retain(|Reverse((_, id))| *id >= first);
        }
    }

    fn compact(&mut self) {
        if self.live < self.slots.len() {
            self.slots.retain(|slot| slot.message().is_some());
        }
        if let Some(cold) = &mut self.cold {
            cold.compact();
        }
    }

    /// Frees memory that a burst needed.
    pub(crate) fn shrink(&mut self) {
        let is_oversized =
            |len, capacity| capacity > Self::MIN_SHRINK_CAPACITY && len < capacity / 4;
        if is_oversized(self.slots.len(), self.slots.capacity()) {
            self.slots.shrink_to(self.slots.len() * 2);
        }
        if is_oversized(self.early_expiries.len(), self.early_expiries.capacity()) {
            self.early_expiries.shrink_to(self.early_expiries.len() * 2);
        }
        match &mut self.cold {
            Some(cold) if cold.slots() == 0 => self.cold = None,
            Some(cold) => cold.shrink(),
            None => {}
        }
    }

    /// The first unexpired message from `id` on.
    #[inline]
    pub(crate) fn first_from(&self, id: u64, now: MonotonicTime) -> Option<Entry<'_>> {
        if self.cold.is_some() {
            return self.from(id, now).next();
        }
        self.hot_from(id, now).next().map(Entry::Hot)
    }

    /// The unexpired messages from `id` on. Expired ones may still be in the log.
    pub(crate) fn from(&self, id: u64, now: MonotonicTime) -> impl Iterator<Item = Entry<'_>> {
        let cold = self.cold.iter().flat_map(move |cold| cold.from(id, now)).map(Entry::from);
        cold.chain(self.hot_from(id, now).map(Entry::Hot))
    }

    /// The unexpired messages from `id` on, with their deadlines.
    pub(crate) fn with_deadlines(
        &self,
        id: u64,
        now: MonotonicTime,
    ) -> impl Iterator<Item = (Entry<'_>, MonotonicTime)> {
        let cold = self.cold.iter().flat_map(move |cold| cold.from(id, now));
        let hot = self.slots.range(self.index_of(id)..).filter_map(move |slot| match slot {
            Slot::Kept { deadline, message } if *deadline > now => Some((message, *deadline)),
            _ => None,
        });
        cold.map(|left| (Entry::Cold(left), left.deadline))
            .chain(hot.map(|(message, deadline)| (Entry::Hot(message), deadline)))
    }

    #[inline]
    fn hot_from(&self, id: u64, now: MonotonicTime) -> impl Iterator<Item = &Message> {
        self.slots.range(self.index_of(id)..).filter_map(move |slot| slot.message_at(now))
    }

    /// Whether there is a message from `id` on. It may have expired.
    pub(crate) fn has_any_from(&self, id: u64) -> bool {
        self.slots.range(self.index_of(id)..).any(|slot| slot.message().is_some())
            || self.cold.as_ref().is_some_and(|cold| cold.has_any_from(id))
    }

    /// How many of these messages have expired and are still in the log. Visits each.
    pub(crate) fn count_expired(&self, ids: Range<u64>, now: MonotonicTime) -> u64 {
        let slots = self.slots.range(self.index_of(ids.start)..self.index_of(ids.end));
        let cold = self.cold.as_ref().map_or(0, |cold| cold.count_expired(ids, now));
        cold + slots.filter(|slot| slot.is_expired(now)).count() as u64
    }

    /// Ids and accounted sizes of the messages, oldest first.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = (u64, u64)> {
        let cold = self.cold.iter().flat_map(|cold| cold.iter()).map(|left| (left.id, left.size));
        let hot = self.slots.iter().filter_map(Slot::message);
        cold.chain(hot.map(|message| (message.id(), message.accounted_size())))
    }

    /// How many messages there are from `id` on. Removes the holes first: counting around them would cost
    /// as much each time.
    pub(crate) fn count_from(&mut self, id: u64) -> u64 {
        self.compact();
        let cold = self.cold.as_ref().map_or(0, |cold| cold.count_from(id));
        cold + (self.slots.len() - self.index_of(id)) as u64
    }

    /// The id of the first message created at `time` or later; [`next_id`](Self::next_id) if there is none.
    pub(crate) fn first_created_at(&mut self, time: WallTime) -> u64 {
        self.compact();
        if let Some(id) = self.cold.as_ref().and_then(|cold| cold.first_created_at(time)) {
            return id;
        }
        let before = |slot: &Slot| slot.message().is_some_and(|m| m.created_at() < time);
        self.slots.get(self.slots.partition_point(before)).map_or(self.next_id, Slot::id)
    }

    /// The index of the first slot with this or a higher id.
    fn index_of(&self, id: u64) -> usize {
        let capped = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        // Ids rise by at least one, so the distance from either end bounds the index. Where no hole was
        // removed, it is the index.
        let slots = self.slots.len();
        let mut low = slots.saturating_sub(capped(self.next_id.saturating_sub(id)));
        let mut high = slots.min(capped(id.saturating_sub(self.first_hot_id())));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.slots[middle].id() < id { low = middle + 1 } else { high = middle }
        }
        low
    }
}
