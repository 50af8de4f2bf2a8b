//! The log of one topic: its retained messages in order, found by id, dropped by age.
//!
//! Ids rise from slot to slot. A message that expires before older ones leaves a hole in its slot,
//! so that no slot has to move at once; the holes are closed when they are the majority, or when
//! somebody counts. Hence the place of an id is usually its distance from the first one, and otherwise a binary search away.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Instant,
};

use chrono::{DateTime, Utc};

use crate::message::Message;

#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Never begins with a hole.
    slots: VecDeque<Slot>,
    next_id: u64,
    /// Slots that hold a message.
    live: usize,
    bytes: u64,
    /// The messages that expire before an older one, by deadline. All others expire in the order
    /// of the log.
    early: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    message: Option<Message>,
}

impl Log {
    /// Few holes are not worth moving anything for.
    const HOLES_TOLERATED: usize = 64;
    const SMALLEST_SHRUNK: usize = 64;

    /// The id that the next message is to have.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// The id of the oldest message, or of the next one when there is none.
    pub(crate) fn first_id(&self) -> u64 {
        self.slots.front().map_or(self.next_id, |slot| slot.id)
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// What the messages count for, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a message whose id is [`next_id`](Self::next_id). `early` says that it may expire
    /// before an older one.
    pub(crate) fn push(&mut self, message: Message, early: bool) {
        debug_assert_eq!(message.id(), self.next_id, "ids are handed out by the log");
        if let (true, Some(deadline)) = (early, message.deadline()) {
            self.early.insert((deadline, message.id()));
        }
        self.next_id += 1;
        self.live += 1;
        self.bytes += message.charge();
        self.slots.push_back(Slot { id: message.id(), message: Some(message) });
    }

    /// The oldest message.
    pub(crate) fn first(&self) -> Option<&Message> {
        self.slots.front().and_then(|slot| slot.message.as_ref())
    }

    /// Takes the oldest message out.
    pub(crate) fn pop(&mut self) -> Option<Message> {
        let message = self.slots.pop_front()?.message?;
        while self.slots.front().is_some_and(|slot| slot.message.is_none()) {
            self.slots.pop_front();
        }
        if let (false, Some(deadline)) = (self.early.is_empty(), message.deadline()) {
            self.early.remove(&(deadline, message.id()));
        }
        self.forget(&message);
        Some(message)
    }

    /// Takes out one message whose time is over at `now`; `None` when no such message is left.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<Message> {
        if self.first()?.is_expired(now) {
            return self.pop();
        }
        let (deadline, id) = *self.early.first()?;
        if deadline > now {
            return None;
        }
        self.early.pop_first();
        let at = self.index_of(id);
        let message = self.slots.get_mut(at)?.message.take()?;
        self.forget(&message);
        if self.slots.len() - self.live > self.live + Self::HOLES_TOLERATED {
            self.close_holes();
        }
        Some(message)
    }

    fn forget(&mut self, message: &Message) {
        self.live -= 1;
        self.bytes -= message.charge();
    }

    fn close_holes(&mut self) {
        if self.live < self.slots.len() {
            self.slots.retain(|slot| slot.message.is_some());
        }
    }

    /// Gives back memory that a burst has left behind.
    pub(crate) fn shrink(&mut self) {
        let capacity = self.slots.capacity();
        if capacity > Self::SMALLEST_SHRUNK && self.slots.len() < capacity / 4 {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }

    /// The messages from `id` on.
    pub(crate) fn from(&self, id: u64) -> impl Iterator<Item = &Message> {
        self.slots.range(self.index_of(id)..).filter_map(|slot| slot.message.as_ref())
    }

    /// The messages, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Message> {
        self.slots.iter().filter_map(|slot| slot.message.as_ref())
    }

    /// How many messages there are from `id` on. Closes the holes first: counting around them would
    /// cost as much each time.
    pub(crate) fn count_from(&mut self, id: u64) -> u64 {
        self.close_holes();
        (self.slots.len() - self.index_of(id)) as u64
    }

    /// The id of the first message created at `time` or later; [`next_id`](Self::next_id) when
    /// there is none.
    pub(crate) fn first_created_at(&mut self, time: DateTime<Utc>) -> u64 {
        self.close_holes();
        let before = |slot: &Slot| slot.message.as_ref().is_some_and(|m| m.created() < time);
        self.slots.get(self.slots.partition_point(before)).map_or(self.next_id, |slot| slot.id)
    }

    /// The index of the first slot with this id or a higher one.
    fn index_of(&self, id: u64) -> usize {
        let distance = usize::try_from(id.saturating_sub(self.first_id())).unwrap_or(usize::MAX);
        match self.slots.get(distance) {
            Some(slot) if slot.id == id => distance,
            _ => self.slots.partition_point(|slot| slot.id < id),
        }
    }
}
