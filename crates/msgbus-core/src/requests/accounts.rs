//! The counters.

use super::{Origin, Service, pending::Stage};
use crate::stats::{ServiceCounters, ServiceStats};

impl Service {
    pub(crate) fn stats(&self) -> ServiceStats {
        let mut stats = ServiceStats {
            name: self.name.clone(),
            responders: self.responders.len(),
            queued: 0,
            in_hand: 0,
            away: 0,
            visiting: 0,
            taken: self.foreign.asked,
            counters: self.counters,
        };
        for pending in self.slots.iter() {
            match (&pending.stage, pending.origin) {
                (Stage::Done(_), _) => {}
                (_, Origin::Elsewhere) => stats.visiting += 1,
                (Stage::Queued, _) => stats.queued += 1,
                (Stage::InHand, _) => stats.in_hand += 1,
                (Stage::Sought | Stage::Away, _) => stats.away += 1,
            }
        }
        stats
    }

    pub(super) fn counters(&mut self, origin: Origin) -> &mut ServiceCounters {
        if origin == Origin::Elsewhere { &mut self.foreign } else { &mut self.counters }
    }

    /// Counts a request that was refused before it was made.
    pub(crate) fn count_refused(&mut self) {
        self.counters.asked += 1;
        self.counters.refused += 1;
    }
}
