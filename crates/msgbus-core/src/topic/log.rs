//! The log of one topic: its retained messages in order, found by id, dropped by age.
//!
//! Ids rise from slot to slot. A message that expires before older ones leaves a hole in its slot,
//! so that no slot has to move at once; the holes are closed when they are the majority, or when
//! somebody counts. Hence the place of an id is usually its distance from the first one, and otherwise
//! a binary search away.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    ops::Range,
};

use crate::model::{Message, Tick, Wall};

#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Never begins with a hole.
    slots: VecDeque<Slot>,
    next_id: u64,
    /// Slots that hold a message.
    live: usize,
    bytes: u64,
    /// The messages that may expire before an older one, the earliest deadline on top. All others
    /// expire in the order of the log. Those that left as the oldest may still be here.
    early: BinaryHeap<Reverse<(Tick, u64)>>,
}

#[derive(Debug)]
enum Slot {
    Kept { deadline: Tick, message: Message },
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

    /// The message, unless its time is over.
    fn message_at(&self, now: Tick) -> Option<&Message> {
        match self {
            Self::Kept { deadline, message } if *deadline > now => Some(message),
            _ => None,
        }
    }

    fn is_expired(&self, now: Tick) -> bool {
        matches!(self, Self::Kept { deadline, .. } if *deadline <= now)
    }
}

impl Log {
    /// Few holes, and few deadlines of messages that are gone, are not worth moving anything for.
    const LEFT_TOLERATED: usize = 64;
    const SMALLEST_SHRUNK: usize = 64;

    /// The id that the next message is to have.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// The id of the oldest message, or of the next one when there is none.
    pub(crate) fn first_id(&self) -> u64 {
        self.slots.front().map_or(self.next_id, Slot::id)
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
    pub(crate) fn push(&mut self, message: Message, deadline: Tick, early: bool) {
        debug_assert_eq!(message.id(), self.next_id, "ids are handed out by the log");
        if early {
            self.early.push(Reverse((deadline, message.id())));
        }
        self.next_id += 1;
        self.live += 1;
        self.bytes += message.charge();
        self.slots.push_back(Slot::Kept { deadline, message });
    }

    /// Takes the oldest message out.
    pub(crate) fn pop(&mut self) -> Option<Message> {
        let Slot::Kept { message, .. } = self.slots.pop_front()? else { return None };
        while let Some(Slot::Hole { .. }) = self.slots.front() {
            self.slots.pop_front();
        }
        self.forget(&message);
        Some(message)
    }

    /// Takes everything out.
    #[must_use]
    pub(crate) fn take_all(&mut self) -> Self {
        let next_id = self.next_id;
        std::mem::replace(self, Self { next_id, ..Self::default() })
    }

    /// Takes out one message whose time is over at `now`; `None` when no such message is left.
    pub(crate) fn pop_expired(&mut self, now: Tick) -> Option<Message> {
        match self.slots.front()? {
            Slot::Kept { deadline, .. } if *deadline <= now => self.pop(),
            _ => self.pop_early(now),
        }
    }

    fn pop_early(&mut self, now: Tick) -> Option<Message> {
        let id = loop {
            let Reverse((_, id)) = *self.early.peek().filter(|early| early.0.0 <= now)?;
            self.early.pop();
            if id >= self.first_id() {
                break id;
            }
        };
        let at = self.index_of(id);
        let Slot::Kept { message, .. } =
            std::mem::replace(self.slots.get_mut(at)?, Slot::Hole { id })
        else {
            return None;
        };
        self.forget(&message);
        Some(message)
    }

    /// Counts a message as gone, and drops what the gone have left behind when it is the majority.
    fn forget(&mut self, message: &Message) {
        self.live -= 1;
        self.bytes -= message.charge();
        let tolerated = 2 * self.live + Self::LEFT_TOLERATED;
        if self.slots.len() > tolerated {
            self.close_holes();
        }
        if self.early.len() > tolerated {
            let first = self.first_id();
            self.early.retain(|Reverse((_, id))| *id >= first);
        }
    }

    fn close_holes(&mut self) {
        if self.live < self.slots.len() {
            self.slots.retain(|slot| slot.message().is_some());
        }
    }

    /// Gives back memory that a burst has left behind.
    pub(crate) fn shrink(&mut self) {
        let is_oversized = |len, capacity| capacity > Self::SMALLEST_SHRUNK && len < capacity / 4;
        if is_oversized(self.slots.len(), self.slots.capacity()) {
            self.slots.shrink_to(self.slots.len() * 2);
        }
        if is_oversized(self.early.len(), self.early.capacity()) {
            self.early.shrink_to(self.early.len() * 2);
        }
    }

    /// The messages from `id` on whose time is not over at `now`: an expired one may still be here,
    /// and nobody is to get it.
    pub(crate) fn from(&self, id: u64, now: Tick) -> impl Iterator<Item = &Message> {
        self.slots.range(self.index_of(id)..).filter_map(move |slot| slot.message_at(now))
    }

    /// Whether there is a message from `id` on, expired or not.
    pub(crate) fn has_any_from(&self, id: u64) -> bool {
        self.slots.range(self.index_of(id)..).any(|slot| slot.message().is_some())
    }

    /// How many of these messages have expired at `now` and are still here. Looks at each.
    pub(crate) fn count_expired(&self, ids: Range<u64>, now: Tick) -> u64 {
        let slots = self.slots.range(self.index_of(ids.start)..self.index_of(ids.end));
        slots.filter(|slot| slot.is_expired(now)).count() as u64
    }

    /// The messages, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Message> {
        self.slots.iter().filter_map(Slot::message)
    }

    /// How many messages there are from `id` on. Closes the holes first: counting around them would
    /// cost as much each time.
    pub(crate) fn count_from(&mut self, id: u64) -> u64 {
        self.close_holes();
        (self.slots.len() - self.index_of(id)) as u64
    }

    /// The id of the first message created at `time` or later; [`next_id`](Self::next_id) when
    /// there is none.
    pub(crate) fn first_created_at(&mut self, time: Wall) -> u64 {
        self.close_holes();
        let before = |slot: &Slot| slot.message().is_some_and(|m| m.created_at() < time);
        self.slots.get(self.slots.partition_point(before)).map_or(self.next_id, Slot::id)
    }

    /// The index of the first slot with this id or a higher one.
    fn index_of(&self, id: u64) -> usize {
        let capped = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        // Ids rise by one at least: its distance from either end bounds the place, and where no
        // hole was closed is the place.
        let slots = self.slots.len();
        let mut low = slots.saturating_sub(capped(self.next_id.saturating_sub(id)));
        let mut high = slots.min(capped(id.saturating_sub(self.first_id())));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.slots[middle].id() < id { low = middle + 1 } else { high = middle }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::model::{Now, TopicInfo};

    /// Appends so many messages that live for so many seconds.
    fn push(log: &mut Log, count: u64, seconds: u64, early: bool) {
        let Now { tick, wall } = start();
        let ttl = Duration::from_secs(seconds).into();
        let info =
            TopicInfo { name: "t".parse().unwrap(), epoch: 1, created: wall.into(), ttl: None };
        let info = Arc::new(info);
        for _ in 0..count {
            let info = Arc::clone(&info);
            let message = Message::new(info, log.next_id(), wall, wall.after(ttl), "".into(), None);
            log.push(message, tick.after(ttl), early);
        }
    }

    fn start() -> Now {
        Now { tick: Tick::from_nanoseconds(0), wall: Wall::from_nanoseconds(0) }
    }

    fn expire(log: &mut Log, seconds: u64) -> usize {
        let now = start().tick.after(Duration::from_secs(seconds).into());
        std::iter::from_fn(|| log.pop_expired(now)).count()
    }

    #[test]
    fn holes_go_with_the_messages_before_them() {
        let mut log = Log::default();
        push(&mut log, 1000, 100, false);
        push(&mut log, 1000, 1, true);
        assert_eq!(expire(&mut log, 1), 1000);
        while log.len() > 1 {
            log.pop();
        }
        assert!(log.slots.len() < 100, "{} slots for one message", log.slots.len());
    }

    #[test]
    fn early_deadlines_go_with_their_messages() {
        let mut log = Log::default();
        push(&mut log, 1000, 50, true);
        push(&mut log, 1, 100, false);
        push(&mut log, 999, 1, true);
        while log.first_id() < 1000 {
            log.pop();
        }
        assert_eq!(expire(&mut log, 1), 999);
        assert!(log.early.len() < 100, "{} deadlines for one message", log.early.len());
        log.pop();
        log.shrink();
        let memory = (log.slots.capacity(), log.early.capacity());
        assert!(memory.0 < 100 && memory.1 < 200, "{memory:?}");
    }
}
