//! Ids and ordinals.
//!
//! An **id** is the number that the wire shows. Ids rise within an epoch. They may have gaps, as those of an
//! engine do. An **ordinal** counts the messages of a topic without gaps, from 0. Missed messages are counted by
//! ordinals. Only the log translates between the two.

use std::collections::VecDeque;

/// The number of messages that were appended before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Ordinal(u64);

impl Ordinal {
    pub(crate) fn new(number: u64) -> Self {
        Self(number)
    }

    pub(crate) fn number(self) -> u64 {
        self.0
    }

    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// How many messages there are from `earlier` up to and not including this one.
    pub(crate) fn since(self, earlier: Self) -> u64 {
        self.0 - earlier.0
    }
}

/// Which id belongs to which ordinal. Costs nothing while ids have no gaps.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    /// `None` if every id equals its ordinal.
    runs: Option<Box<Runs>>,
}

impl Sequence {
    /// The first ordinal whose id is this one or higher. `id` is at most the next id.
    #[inline]
    pub(super) fn ordinal(&self, id: u64) -> Ordinal {
        Ordinal(self.runs.as_ref().map_or(id, |runs| runs.ordinal(id)))
    }

    /// The id of an ordinal.
    #[inline]
    pub(super) fn id(&self, ordinal: Ordinal) -> u64 {
        self.runs.as_ref().map_or(ordinal.0, |runs| runs.id(ordinal.0))
    }

    /// Gives the ordinal `next` the id `id`, which is higher than it would have been. `first` is that of the
    /// oldest retained message.
    pub(super) fn skip_to(&mut self, id: u64, next: Ordinal, first: Ordinal) {
        self.runs.get_or_insert_default().push(Run { ordinal: next.0, id }, first.0);
    }
}

/// Runs of consecutive ids, in order. Never empty.
#[derive(Debug)]
struct Runs(VecDeque<Run>);

/// Where a run begins. It ends at the next one.
#[derive(Debug, Clone, Copy)]
struct Run {
    ordinal: u64,
    id: u64,
}

impl Default for Runs {
    fn default() -> Self {
        Self([Run { ordinal: 0, id: 0 }].into())
    }
}

impl Runs {
    /// How many runs are kept that no retained message belongs to. Positions in older runs resolve to an
    /// ordinal that may be too low: then more messages are reported as missed than there were.
    const MAX_PAST: usize = 1024;

    fn ordinal(&self, id: u64) -> u64 {
        let following = self.0.partition_point(|run| run.id <= id);
        let Some(index) = following.checked_sub(1) else {
            let first = self.0[0];
            return first.ordinal.saturating_sub(first.id - id);
        };
        let run = self.0[index];
        let ordinal = run.ordinal + (id - run.id);
        // It may be in the gap before the following run.
        self.0.get(following).map_or(ordinal, |following| ordinal.min(following.ordinal))
    }

    fn id(&self, ordinal: u64) -> u64 {
        match self.0.partition_point(|run| run.ordinal <= ordinal).checked_sub(1) {
            Some(index) => self.0[index].id + (ordinal - self.0[index].ordinal),
            None => self.0[0].id.saturating_sub(self.0[0].ordinal - ordinal),
        }
    }

    fn push(&mut self, run: Run, first_retained: u64) {
        // A run without messages only makes the gap longer.
        if self.0.back().is_some_and(|last| last.ordinal == run.ordinal) {
            self.0.pop_back();
        }
        self.0.push_back(run);
        let past = self.0.partition_point(|run| run.ordinal <= first_retained).saturating_sub(1);
        self.0.drain(..past.saturating_sub(Self::MAX_PAST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids of `lengths` messages each, with a gap of one id before each run.
    fn sequence(lengths: &[u64], first: Ordinal) -> (Sequence, Vec<u64>) {
        let mut sequence = Sequence::default();
        let mut ids = Vec::new();
        let mut next_id = 0;
        for &length in lengths {
            next_id += 1;
            sequence.skip_to(next_id, Ordinal(ids.len() as u64), first);
            ids.extend(next_id..next_id + length);
            next_id += length;
        }
        (sequence, ids)
    }

    #[test]
    fn ids_and_ordinals_translate_both_ways() {
        let (sequence, ids) = sequence(&[0, 3, 1, 0, 0, 5], Ordinal(0));
        for (ordinal, id) in (0..).zip(&ids) {
            assert_eq!(sequence.id(Ordinal(ordinal)), *id);
        }
        for id in 0..=ids[ids.len() - 1] + 1 {
            let ordinal = ids.partition_point(|other| *other < id) as u64;
            assert_eq!(sequence.ordinal(id), Ordinal(ordinal), "{id} in {ids:?}");
        }
    }

    #[test]
    fn runs_are_bounded_and_old_positions_never_hide_a_loss() {
        let (sequence, ids) = sequence(&vec![2; 5000], Ordinal(10_000));
        let kept = sequence.runs.as_ref().unwrap().0.len();
        assert!(kept <= Runs::MAX_PAST + 1, "{kept} runs");
        for (ordinal, id) in (0..).zip(&ids) {
            assert!(sequence.ordinal(*id) <= Ordinal(ordinal));
        }
        assert_eq!(sequence.ordinal(ids[9_000]), Ordinal(9_000));
    }
}
