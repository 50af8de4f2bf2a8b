//! The log of one topic: its retained messages in order.
//!
//! Ids rise from slot to slot. A message that expires before older ones leaves a hole in its slot, so that
//! no slot has to move at once. Holes are removed when they are the majority, or when messages are counted.
//! So the index of an id is usually its distance from the first id, and otherwise found by binary search.
//!
//! Messages are found by id, and counted by [`Ordinal`], because ids may have gaps.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    ops::Range,
};

use super::sequence::{Ordinal, Sequence};
use crate::model::{Message, MonotonicTime, WallTime};

#[derive(Debug, Default)]
pub(crate) struct Log {
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

    /// The ordinal of the next message.
    pub(crate) fn next_ordinal(&self) -> Ordinal {
        self.ordinal(self.next_id)
    }

    /// Leaves a gap before the next message, whose id becomes `id`. A lower id than [`next_id`](Self::next_id)
    /// changes nothing.
    #[cfg_attr(not(test), expect(dead_code, reason = "for topics whose ids an engine assigns"))]
    pub(crate) fn skip_to(&mut self, id: u64) {
        if id > self.next_id {
            let (next, first) = (self.next_ordinal(), self.ordinal(self.first_id()));
            self.sequence.skip_to(id, next, first);
            self.next_id = id;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The accounted size of all messages, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
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
    pub(crate) fn pop(&mut self) -> Option<Message> {
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
    pub(crate) fn pop_expired(&mut self, now: MonotonicTime) -> Option<Message> {
        match self.slots.front()? {
            Slot::Kept { deadline, .. } if *deadline <= now => self.pop(),
            _ => self.pop_early(now),
        }
    }

    fn pop_early(&mut self, now: MonotonicTime) -> Option<Message> {
        let id = loop {
            let Reverse((_, id)) = *self.early_expiries.peek().filter(|early| early.0.0 <= now)?;
            self.early_expiries.pop();
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
        self.account_removal(&message);
        Some(message)
    }

    /// Accounts for a message that has left, and removes holes and outdated entries once they are the majority.
    fn account_removal(&mut self, message: &Message) {
        self.live -= 1;
        self.bytes -= message.accounted_size();
        let limit = 2 * self.live + Self::COMPACTION_SLACK;
        if self.slots.len() > limit {
            self.compact();
        }
        if self.early_expiries.len() > limit {
            let first = self.first_id();
            self.early_expiries.retain(|Reverse((_, id))| *id >= first);
        }
    }

    fn compact(&mut self) {
        if self.live < self.slots.len() {
            self.slots.retain(|slot| slot.message().is_some());
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
    }

    /// The unexpired messages from `id` on. Expired ones may still be in the log.
    pub(crate) fn from(&self, id: u64, now: MonotonicTime) -> impl Iterator<Item = &Message> {
        self.slots.range(self.index_of(id)..).filter_map(move |slot| slot.message_at(now))
    }

    /// Whether there is a message from `id` on. It may have expired.
    pub(crate) fn has_any_from(&self, id: u64) -> bool {
        self.slots.range(self.index_of(id)..).any(|slot| slot.message().is_some())
    }

    /// How many of these messages have expired and are still in the log. Visits each.
    pub(crate) fn count_expired(&self, ids: Range<u64>, now: MonotonicTime) -> u64 {
        let slots = self.slots.range(self.index_of(ids.start)..self.index_of(ids.end));
        slots.filter(|slot| slot.is_expired(now)).count() as u64
    }

    /// The messages, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Message> {
        self.slots.iter().filter_map(Slot::message)
    }

    /// How many messages there are from `id` on. Removes the holes first: counting around them would cost
    /// as much each time.
    pub(crate) fn count_from(&mut self, id: u64) -> u64 {
        self.compact();
        (self.slots.len() - self.index_of(id)) as u64
    }

    /// The id of the first message created at `time` or later; [`next_id`](Self::next_id) if there is none.
    pub(crate) fn first_created_at(&mut self, time: WallTime) -> u64 {
        self.compact();
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
    use crate::model::{Headers, Now, TopicInfo};

    /// Appends `count` messages with a TTL in seconds.
    fn push(log: &mut Log, count: u64, seconds: u64, early: bool) {
        let Now { monotonic, wall } = start();
        let ttl = Duration::from_secs(seconds).into();
        let info =
            TopicInfo { name: "t".parse().unwrap(), epoch: 1, created: wall.into(), ttl: None };
        let info = Arc::new(info);
        for _ in 0..count {
            let info = Arc::clone(&info);
            let message = Message::new(
                info,
                log.next_id(),
                wall,
                wall.after(ttl),
                "".into(),
                Headers::default(),
            );
            log.push(message, monotonic.after(ttl), early);
        }
    }

    fn start() -> Now {
        Now { monotonic: MonotonicTime::from_nanoseconds(0), wall: WallTime::from_nanoseconds(0) }
    }

    fn expire(log: &mut Log, seconds: u64) -> usize {
        let now = start().monotonic.after(Duration::from_secs(seconds).into());
        std::iter::from_fn(|| log.pop_expired(now)).count()
    }

    #[test]
    fn holes_are_removed_with_the_messages_before_them() {
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
    fn early_expiries_are_removed_with_their_messages() {
        let mut log = Log::default();
        push(&mut log, 1000, 50, true);
        push(&mut log, 1, 100, false);
        push(&mut log, 999, 1, true);
        while log.first_id() < 1000 {
            log.pop();
        }
        assert_eq!(expire(&mut log, 1), 999);
        assert!(
            log.early_expiries.len() < 100,
            "{} deadlines for one message",
            log.early_expiries.len()
        );
        log.pop();
        log.shrink();
        let capacities = (log.slots.capacity(), log.early_expiries.capacity());
        assert!(capacities.0 < 100 && capacities.1 < 200, "{capacities:?}");
    }
}
