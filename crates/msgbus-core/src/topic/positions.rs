//! Which message a position stands for.

use super::Topic;
use crate::model::{Message, Now, Position, Tick, Wall};

impl Topic {
    /// The first id that a position asks for, and whether it must be from another life of the
    /// topic: then everything is wanted from the start.
    pub(super) fn resolve(&mut self, position: Position, now: Now) -> (u64, bool) {
        let tail = self.log.next_id();
        match position {
            Position::New => (tail, false),
            Position::All => (self.first_live_from(0, now.tick), false),
            Position::Id(id) if id <= tail => (id, false),
            Position::After { epoch, id } if epoch == self.info.epoch && id < tail => {
                (id + 1, false)
            }
            Position::Start { epoch } => (0, epoch != self.info.epoch),
            Position::Id(_) | Position::After { .. } => (0, true),
            Position::At(time) => self.resolve_time(time.into(), now.tick),
            Position::Ago(ago) => {
                // On the clock of `created`, which stands still when the system's was set back.
                let now_created = self.last_created.max(now.wall);
                self.resolve_time(now_created.before(ago.into()), now.tick)
            }
        }
    }

    fn resolve_time(&mut self, time: Wall, now: Tick) -> (u64, bool) {
        let first = self.log.first_created_at(time);
        (self.first_live_from(first, now), false)
    }

    /// The first id from this one on whose message has not expired.
    pub(super) fn first_live_from(&self, id: u64, now: Tick) -> u64 {
        self.log.from(id, now).next().map_or(self.log.next_id(), Message::id)
    }
}
