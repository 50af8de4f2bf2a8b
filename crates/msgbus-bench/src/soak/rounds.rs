//! The rounds of a soak: how long each takes, and its load.

use std::{cell::RefCell, iter, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{Phase, invariants::Invariants, report};

/// The first round is short: it only shows how much memory the server keeps after a load.
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(60);

/// One round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// How long there is load.
    length: Duration,
    /// The load of this round and of all that follow.
    left: Duration,
}

/// The rounds that have so much load together.
pub(super) fn of(load: Duration) -> impl Iterator<Item = Round> {
    let first = Round { length: FIRST.min(load / 4), left: load };
    iter::successors(Some(first), |round| {
        let left = round.left.saturating_sub(round.length);
        Some(Round { length: LONGEST.min(left), left })
    })
    .take_while(|round| !round.length.is_zero())
}

impl Round {
    /// Waits while there is load, and then lets it settle.
    pub(super) async fn load(self, phase: &watch::Sender<Phase>, invariants: &RefCell<Invariants>) {
        let begin = Instant::now();
        while begin.elapsed() < self.length {
            sleep(Duration::from_millis(500).min(self.length)).await;
            let left = self.left.saturating_sub(begin.elapsed()).as_secs();
            report::progress(&invariants.borrow(), &format!("{left} s left"));
        }
        phase.send_replace(Phase::Settle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_have_the_whole_load() {
        let lengths = |load| of(Duration::from_secs(load)).map(|round| round.length.as_secs_f64());
        assert_eq!(lengths(150).collect::<Vec<_>>(), [10.0, 60.0, 60.0, 20.0]);
        assert_eq!(lengths(6).collect::<Vec<_>>(), [1.5, 4.5]);
    }
}
