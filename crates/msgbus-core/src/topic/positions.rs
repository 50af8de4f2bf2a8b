//! Resolves positions to ids.

use super::{Topic, log::Entry};
use crate::model::{MonotonicTime, Now, Position, WallTime};

impl Topic {
    /// The first id that a position asks for, and whether the position must be from another incarnation of
    /// the topic. In that case it asks for everything from the start.
    pub(crate) fn resolve(&mut self, position: Position, now: Now) -> (u64, bool) {
        let tail = self.log.next_id();
        match position {
            Position::New => (tail, false),
            Position::All => (self.first_unexpired_from(0, now.monotonic), false),
            Position::Id(id) if id <= tail => (id, false),
            Position::After { epoch, id } if epoch == self.info.epoch && id < tail => {
                (id + 1, false)
            }
            Position::Start { epoch } => (0, epoch != self.info.epoch),
            Position::Id(_) | Position::After { .. } => (0, true),
            Position::At(time) => self.resolve_time(time.into(), now.monotonic),
            Position::Ago(ago) => {
                // By the clock of `created`, which stands still after the system clock was set back.
                let now_created = self.last_created.max(now.wall);
                self.resolve_time(now_created.before(ago.into()), now.monotonic)
            }
        }
    }

    /// How many retained messages a position in the past asks for.
    pub(crate) fn count_retained(&mut self, from: Position, now: Now) -> u64 {
        let (first, _) = match from {
            Position::At(_) | Position::Ago(_) => self.resolve(from, now),
            _ => self.resolve(Position::All, now),
        };
        self.log.count_from(first)
    }

    /// The first unexpired message from `id` on.
    pub(crate) fn first_retained(&self, id: u64, now: MonotonicTime) -> Option<Entry<'_>> {
        self.log.first_from(id, now)
    }

    fn resolve_time(&mut self, time: WallTime, now: MonotonicTime) -> (u64, bool) {
        let first = self.log.first_created_at(time);
        (self.first_unexpired_from(first, now), false)
    }

    /// The id of the first unexpired message from `id` on, or of the next one to be published.
    pub(super) fn first_unexpired_from(&self, id: u64, now: MonotonicTime) -> u64 {
        self.log.first_from(id, now).map_or(self.log.next_id(), |entry| entry.id())
    }
}
