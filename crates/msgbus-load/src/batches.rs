//! Batches of requests whose replies come in any order.

use std::{collections::VecDeque, io};

use crate::{protocol::Outcome, response::invalid};

/// The batches of a connection that wait for replies. A [`Requester`](crate::Requester) reports the outcome of a batch
/// when all of its replies are there, in the order in which the batches began.
#[derive(Debug, Default)]
pub struct Batches {
    /// The number of the oldest.
    first: u64,
    waiting: VecDeque<Batch>,
}

#[derive(Debug)]
struct Batch {
    /// The number of replies that are still to come.
    left: usize,
    outcome: Outcome,
}

impl Batches {
    /// Begins a batch of this many requests, at least one, and returns its number.
    pub fn begin(&mut self, requests: usize) -> u64 {
        self.waiting.push_back(Batch { left: requests, outcome: Outcome::Done });
        self.first + self.waiting.len() as u64 - 1
    }

    /// The number of the oldest batch, for replies that come in order.
    pub fn oldest(&self) -> u64 {
        self.first
    }

    /// Records the reply to a request of a batch. If any is not [`Outcome::Done`], neither is the batch. `each` gets
    /// the outcomes of the batches that are complete now.
    ///
    /// # Errors
    /// No request of the batch waits for a reply.
    pub fn reply(
        &mut self,
        number: u64,
        outcome: Outcome,
        each: &mut dyn FnMut(Outcome),
    ) -> io::Result<()> {
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        let batch = index
            .and_then(|index| self.waiting.get_mut(index))
            .filter(|batch| batch.left > 0)
            .ok_or_else(|| invalid("a reply without a request"))?;
        batch.left -= 1;
        if outcome != Outcome::Done {
            batch.outcome = outcome;
        }
        while self.waiting.front().is_some_and(|batch| batch.left == 0)
            && let Some(batch) = self.waiting.pop_front()
        {
            each(batch.outcome);
            self.first += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_over_with_its_last_reply_and_after_those_before_it() {
        let mut batches = Batches::default();
        assert_eq!([batches.begin(2), batches.begin(1), batches.begin(1)], [0, 1, 2]);
        let mut over = |number, outcome| {
            let mut outcomes = Vec::new();
            let replied = batches.reply(number, outcome, &mut |outcome| outcomes.push(outcome));
            replied.map(|()| outcomes)
        };
        assert_eq!(over(0, Outcome::Refused).unwrap(), []);
        assert_eq!(over(1, Outcome::Done).unwrap(), []);
        over(1, Outcome::Done).unwrap_err();
        over(3, Outcome::Done).unwrap_err();
        assert_eq!(over(0, Outcome::Done).unwrap(), [Outcome::Refused, Outcome::Done]);
        over(0, Outcome::Done).unwrap_err();
        assert_eq!(over(2, Outcome::Done).unwrap(), [Outcome::Done]);
        assert_eq!(batches.begin(1), 3);
    }
}
