//! Resolves positions to ordinals.

use super::{Topic, sequence::Ordinal};
use crate::model::{MonotonicTime, Now, Position, WallTime};

impl Topic {
    /// The first message that a position asks for, and whether the position must be from another incarnation of
    /// the topic. In that case it asks for everything from the start.
    pub(super) fn resolve(&mut self, position: Position, now: Now) -> (Ordinal, bool) {
        let next_id = self.log.next_id();
        match position {
            Position::New => (self.log.next(), false),
            Position::All => (self.first_unexpired_from(Ordinal::ZERO, now.monotonic), false),
            Position::Id(id) if id <= next_id => (self.log.ordinal_of_id(id), false),
            Position::After { epoch, id } if epoch == self.info.epoch && id < next_id => {
                (self.log.ordinal_of_id(id + 1), false)
            }
            Position::Start { epoch } => (Ordinal::ZERO, epoch != self.info.epoch),
            Position::Id(_) | Position::After { .. } => (Ordinal::ZERO, true),
            Position::At(time) => self.resolve_time(time.into(), now.monotonic),
            Position::Ago(ago) => {
                // By the clock of `created`, which stands still after the system clock was set back.
                let now_created = self.last_created.max(now.wall);
                self.resolve_time(now_created.before(ago.into()), now.monotonic)
            }
        }
    }

    fn resolve_time(&mut self, time: WallTime, now: MonotonicTime) -> (Ordinal, bool) {
        let first = self.log.first_created_at(time);
        (self.first_unexpired_from(first, now), false)
    }

    /// The first unexpired message from `start` on, or the next one to be published.
    pub(super) fn first_unexpired_from(&self, start: Ordinal, now: MonotonicTime) -> Ordinal {
        self.log.from(start, now).next().map_or(self.log.next(), |found| self.log.ordinal(found))
    }
}
