//! The counters.

use std::time::Duration;

use super::{Origin, Service, pending::Stage};
use crate::{
    model::{Reply, RequestError},
    stats::{ServiceCounters, ServiceStats},
};

/// What became of requests.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub(super) own: ServiceCounters,
    /// Of requests that other buses count.
    pub(super) foreign: ServiceCounters,
}

impl Service {
    pub(crate) fn stats(&self) -> ServiceStats {
        let mut stats = ServiceStats {
            name: self.name.clone(),
            responders: self.responders.len(),
            queued: 0,
            in_hand: 0,
            away: 0,
            visiting: 0,
            taken: self.accounts.foreign.asked,
            counters: self.accounts.own,
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

    /// Counts a request that was refused before it was made.
    pub(crate) fn count_refused(&mut self) {
        self.accounts.own.asked += 1;
        self.accounts.own.refused += 1;
    }
}

impl Accounts {
    /// Those of requests that were asked there.
    pub(super) fn of(&mut self, origin: Origin) -> &mut ServiceCounters {
        if origin == Origin::Elsewhere { &mut self.foreign } else { &mut self.own }
    }
}

impl ServiceCounters {
    /// Counts the outcome of a request that was asked so long ago.
    pub(super) fn count(&mut self, outcome: &Result<Reply, RequestError>, time: Duration) {
        match outcome {
            Ok(_) => {
                self.replied += 1;
                self.reply_times.record(time);
            }
            Err(error) => self.count_error(error),
        }
    }

    pub(super) fn count_error(&mut self, error: &RequestError) {
        *match error {
            RequestError::TimedOut => &mut self.timed_out,
            error if error.is_refusal() => &mut self.refused,
            _ => &mut self.failed,
        } += 1;
    }
}
