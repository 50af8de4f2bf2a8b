//! The oldest messages of a durable topic, which are only in its store: what the rules need to know of each.

use std::{collections::VecDeque, ops::Range};

use crate::model::{Message, MonotonicTime, WallTime};

/// The part of a log that is not in memory. All of its ids are lower than those of the rest.
#[derive(Debug, Default)]
pub(super) struct ColdLog {
    /// Never begins with a hole.
    slots: VecDeque<ColdSlot>,
    /// The id from which the slots count.
    base: u64,
    /// Slots that hold a message.
    live: usize,
    /// The accounted size of all messages, in bytes.
    bytes: u64,
}

/// One message, in 24 bytes.
#[derive(Debug)]
struct ColdSlot {
    deadline: MonotonicTime,
    created: WallTime,
    /// The id, from the base.
    offset: u32,
    /// The accounted size in bytes; 0 for a message that has left.
    size: u32,
}

/// A message that left the cold part, or that is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) id: u64,
    pub(crate) size: u64,
    pub(crate) created: WallTime,
    pub(crate) deadline: MonotonicTime,
}

impl ColdSlot {
    fn is_live(&self) -> bool {
        self.size > 0
    }
}

impl ColdLog {
    /// What a message takes of the memory of the bus, in bytes: the slot, and its location in the store.
    pub(super) const SLOT_SIZE: u64 = 32;

    /// Whether the next message can be described here: neither too large nor too far from the oldest one.
    pub(super) fn accepts(&self, message: &Message) -> bool {
        let first = self.first_id().unwrap_or(message.id());
        u32::try_from(message.accounted_size()).is_ok()
            && u32::try_from(message.id() - first).is_ok()
    }

    /// Adds the next message.
    pub(super) fn push(&mut self, id: u64, created: WallTime, size: u64, deadline: MonotonicTime) {
        if self.slots.is_empty() {
            self.base = id;
        }
        let offset = u32::try_from(id - self.base).ok().unwrap_or_else(|| self.rebase(id));
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        self.slots.push_back(ColdSlot { deadline, created, offset, size });
        self.live += 1;
        self.bytes += u64::from(size);
    }

    /// Counts from the oldest id again, and returns the offset of the next one, which [`accepts`](Self::accepts) has
    /// checked.
    fn rebase(&mut self, id: u64) -> u32 {
        let first = self.slots.front().map_or(0, |slot| slot.offset);
        self.base += u64::from(first);
        for slot in &mut self.slots {
            slot.offset -= first;
        }
        u32::try_from(id - self.base).unwrap_or(u32::MAX)
    }

    pub(super) fn len(&self) -> usize {
        self.live
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn left(&self, slot: &ColdSlot) -> Left {
        Left {
            id: self.id(slot),
            size: slot.size.into(),
            created: slot.created,
            deadline: slot.deadline,
        }
    }

    fn id(&self, slot: &ColdSlot) -> u64 {
        self.base + u64::from(slot.offset)
    }

    pub(super) fn first_id(&self) -> Option<u64> {
        self.slots.front().map(|slot| self.id(slot))
    }

    /// The index of the first slot with this or a higher id.
    fn index_of(&self, id: u64) -> usize {
        self.slots.partition_point(|slot| self.id(slot) < id)
    }

    /// Ids and sizes of the messages from `id` on that have not expired.
    pub(super) fn from(&self, id: u64, now: MonotonicTime) -> impl Iterator<Item = Left> {
        let slots = self.slots.range(self.index_of(id)..);
        let kept = slots.filter(move |slot| slot.is_live() && slot.deadline > now);
        kept.map(|slot| self.left(slot))
    }

    /// Ids and sizes of all messages, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Left> {
        let kept = self.slots.iter().filter(|slot| slot.is_live());
        kept.map(|slot| self.left(slot))
    }

    pub(super) fn has_any_from(&self, id: u64) -> bool {
        self.slots.range(self.index_of(id)..).any(ColdSlot::is_live)
    }

    pub(super) fn count_expired(&self, ids: Range<u64>, now: MonotonicTime) -> u64 {
        let slots = self.slots.range(self.index_of(ids.start)..self.index_of(ids.end));
        slots.filter(|slot| slot.is_live() && slot.deadline <= now).count() as u64
    }

    /// The number of messages from `id` on. The caller has called [`compact`](Self::compact).
    pub(super) fn count_from(&self, id: u64) -> u64 {
        (self.slots.len() - self.index_of(id)) as u64
    }

    /// The id of the first message created at `time` or later. The caller has called [`compact`](Self::compact).
    pub(super) fn first_created_at(&self, time: WallTime) -> Option<u64> {
        let index = self.slots.partition_point(|slot| slot.created < time);
        self.slots.get(index).map(|slot| self.id(slot))
    }

    /// Takes out the oldest message.
    pub(super) fn pop(&mut self) -> Option<Left> {
        let id = self.first_id()?;
        let slot = self.slots.pop_front()?;
        while self.slots.front().is_some_and(|slot| !slot.is_live()) {
            self.slots.pop_front();
        }
        self.live -= 1;
        self.bytes -= u64::from(slot.size);
        Some(Left { id, size: slot.size.into(), created: slot.created, deadline: slot.deadline })
    }

    /// The deadline of the oldest message.
    pub(super) fn first_deadline(&self) -> Option<MonotonicTime> {
        self.slots.front().map(|slot| slot.deadline)
    }

    /// Takes out a message by its id.
    pub(super) fn take(&mut self, id: u64) -> Option<Left> {
        if self.first_id() == Some(id) {
            return self.pop();
        }
        let index = self.index_of(id);
        let is_it = self.slots.get(index).is_some_and(|slot| self.id(slot) == id && slot.is_live());
        let slot = self.slots.get_mut(index).filter(|_| is_it)?;
        let size = u64::from(std::mem::take(&mut slot.size));
        let (created, deadline) = (slot.created, slot.deadline);
        self.live -= 1;
        self.bytes -= size;
        Some(Left { id, size, created, deadline })
    }

    /// Removes the slots of messages that have left.
    pub(super) fn compact(&mut self) {
        if self.live < self.slots.len() {
            self.slots.retain(ColdSlot::is_live);
        }
    }

    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn shrink(&mut self) {
        if self.slots.capacity() > 64 && self.slots.len() < self.slots.capacity() / 4 {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }
}
