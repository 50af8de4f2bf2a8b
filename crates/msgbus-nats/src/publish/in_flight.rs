//! What was sent and is not acknowledged.

use std::{collections::VecDeque, mem::take};

use async_nats::Message;
use msgbus_core::engine::EngineError;
use tokio::time::Instant;

use super::{Pending, SLICE};

/// The messages that are in flight, by their numbers.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Those that are done wait for those before them.
    slices: VecDeque<Slice>,
    /// The number of the next message.
    next: u64,
    /// How many messages are not acknowledged.
    open: usize,
}

/// Messages of one publish that were sent together.
#[derive(Debug)]
pub(super) struct Slice {
    /// The number of its first message.
    first: u64,
    /// A bit for each message that is not acknowledged.
    open: [u64; SLICE / 64],
    /// When the last one was sent.
    pub(super) sent: Instant,
    /// How many connections there had been.
    pub(super) connects: u64,
    /// `None` when the slice is done.
    publish: Option<Pending>,
}

impl InFlight {
    /// How many messages there are.
    pub(super) fn count(&self) -> usize {
        self.open
    }

    /// A slice that begins with the next number.
    pub(super) fn slice(&self, connects: u64) -> Slice {
        let (first, sent) = (self.next, Instant::now());
        Slice { first, open: [0; SLICE / 64], sent, connects, publish: None }
    }

    /// The number of a message that is about to be sent.
    pub(super) fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Waits for the acknowledgements of a slice. Returns its publish if there is nothing to wait for.
    pub(super) fn add(&mut self, mut slice: Slice, publish: Pending) -> Option<Pending> {
        let count = slice.count();
        if count == 0 {
            return Some(publish);
        }
        self.open += count;
        slice.publish = Some(publish);
        self.slices.push_back(slice);
        None
    }

    /// Hears what has become of a message. Returns its publish when nothing else of its slice is in flight. `connects`: how
    /// many connections there have been now. After another one, nobody knows in which stream a message is.
    pub(super) fn hear(&mut self, message: &Message, connects: u64) -> Option<Pending> {
        let number: u64 = message.subject.rsplit('.').next()?.parse().ok()?;
        let after = self.slices.partition_point(|slice| slice.first <= number);
        let slice = self.slices.get_mut(after.checked_sub(1)?)?;
        // Those that were given up are late.
        if !slice.close(number) {
            return None;
        }
        self.open -= 1;
        let publish = slice.publish.as_mut()?;
        publish.hear(message);
        if slice.connects != connects {
            publish.fail(EngineError::Unknown);
        }
        let done = if slice.count() == 0 { slice.publish.take() } else { None };
        self.forget();
        done
    }

    /// Gives up slices whose acknowledgements will not come. Returns their publishes.
    pub(super) fn give_up(
        &mut self,
        mut is_over: impl FnMut(&Slice, &Pending) -> bool,
    ) -> Vec<Pending> {
        let mut given_up = Vec::new();
        for slice in &mut self.slices {
            if slice.publish.as_ref().is_some_and(|publish| is_over(slice, publish)) {
                self.open -= slice.count();
                take(&mut slice.open);
                given_up.extend(slice.publish.take());
            }
        }
        self.forget();
        given_up
    }

    fn forget(&mut self) {
        while self.slices.front().is_some_and(|slice| slice.publish.is_none()) {
            self.slices.pop_front();
        }
    }
}

impl Slice {
    /// A message was sent.
    pub(super) fn open(&mut self, number: u64) {
        if let Some((bits, bit)) = self.bit(number) {
            *bits |= bit;
        }
    }

    /// A message is acknowledged. Returns `false` if it was before, or is none of the slice.
    fn close(&mut self, number: u64) -> bool {
        let Some((bits, bit)) = self.bit(number) else { return false };
        let was_open = *bits & bit != 0;
        *bits &= !bit;
        was_open
    }

    fn bit(&mut self, number: u64) -> Option<(&mut u64, u64)> {
        let index = number - self.first;
        let bits = self.open.get_mut(usize::try_from(index / 64).ok()?)?;
        Some((bits, 1 << (index % 64)))
    }

    fn count(&self) -> usize {
        self.open.iter().map(|bits| bits.count_ones() as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_answers_to_one_message_count_once() {
        let mut slice = InFlight { next: 1000, ..InFlight::default() }.slice(1);
        slice.open(1000);
        slice.open(1255);
        assert_eq!(slice.count(), 2);
        assert!(slice.close(1255) && !slice.close(1255));
        assert!(!slice.close(1256) && !slice.close(1007));
        assert_eq!(slice.count(), 1);
    }
}
