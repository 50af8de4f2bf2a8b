//! Traces in payloads: the publisher of a message, its sequence number and its time.

use std::time::{SystemTime, UNIX_EPOCH};

/// The identity of a message, encoded in the first bytes of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// The index of the publisher.
    pub publisher: u16,
    /// The sequence number of the message within its publisher and topic, from 0.
    pub sequence: u64,
    /// When the message was due to be sent, in nanoseconds since 1970.
    pub time: u64,
}

const PUBLISHER_DIGITS: usize = 4;
const SEQUENCE_DIGITS: usize = 12;
const TIME_DIGITS: usize = 16;

impl Trace {
    /// The length of an encoded trace, in bytes. Smaller payloads have none.
    pub const LENGTH: usize = PUBLISHER_DIGITS + SEQUENCE_DIGITS + TIME_DIGITS;

    /// Overwrites the beginning of a payload with the trace, unless the payload is too short. The
    /// encoding is text without line breaks, so that a payload can be a line.
    pub fn write(&self, payload: &mut [u8]) {
        let Some(digits) = payload.first_chunk_mut::<{ Self::LENGTH }>() else { return };
        let (publisher, rest) = digits.split_at_mut(PUBLISHER_DIGITS);
        let (sequence, time) = rest.split_at_mut(SEQUENCE_DIGITS);
        write_hex(u64::from(self.publisher), publisher);
        write_hex(self.sequence, sequence);
        write_hex(self.time, time);
    }

    /// Decodes the trace at the beginning of a payload, if there is one.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (publisher, rest) = payload.get(..Self::LENGTH)?.split_at(PUBLISHER_DIGITS);
        let (sequence, time) = rest.split_at(SEQUENCE_DIGITS);
        Some(Self {
            publisher: u16::try_from(read_hex(publisher)?).ok()?,
            sequence: read_hex(sequence)?,
            time: read_hex(time)?,
        })
    }

    /// The current time, in nanoseconds since 1970.
    pub fn now() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

fn write_hex(mut value: u64, digits: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(value & 15) as usize];
        value >>= 4;
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// The message counts of one follower.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    publishers: Vec<Option<PublisherTally>>,
    /// Distinct messages received.
    pub(crate) received: u64,
    pub(crate) repeated: u64,
    pub(crate) reordered: u64,
}

/// The state for one publisher.
#[derive(Debug)]
struct PublisherTally {
    next: u64,
    /// Sequence numbers below `next` that have not been received, as ranges.
    missing: Vec<(u64, u64)>,
}

impl Tally {
    /// The maximum number of gaps that are kept. A late message of a dropped gap counts as repeated.
    const MAX_GAPS: usize = 1000;

    pub(crate) fn record(&mut self, trace: &Trace) {
        let index = usize::from(trace.publisher);
        if self.publishers.len() <= index {
            self.publishers.resize_with(index + 1, || None);
        }
        let publisher = self.publishers[index]
            .get_or_insert(PublisherTally { next: trace.sequence, missing: Vec::new() });
        if trace.sequence >= publisher.next {
            if trace.sequence > publisher.next && publisher.missing.len() < Self::MAX_GAPS {
                publisher.missing.push((publisher.next, trace.sequence));
            }
            publisher.next = trace.sequence + 1;
            self.received += 1;
        } else if publisher.remove_missing(trace.sequence) {
            self.received += 1;
            self.reordered += 1;
        } else {
            self.repeated += 1;
        }
    }

    /// The number of messages missing between received ones.
    pub(crate) fn lost(&self) -> u64 {
        let publishers = self.publishers.iter().flatten();
        publishers.flat_map(|publisher| &publisher.missing).map(|(from, to)| to - from).sum()
    }
}

impl PublisherTally {
    /// Removes a sequence number from the missing ones. Returns whether it was among them.
    fn remove_missing(&mut self, sequence: u64) -> bool {
        let holds = |(from, to): &(u64, u64)| (*from..*to).contains(&sequence);
        let Some(index) = self.missing.iter().position(holds) else { return false };
        let (from, to) = self.missing.swap_remove(index);
        let parts = [(from, sequence), (sequence + 1, to)];
        self.missing.extend(parts.into_iter().filter(|(from, to)| from < to));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let trace = Trace { publisher: 0xabc, sequence: 0x1234_5678_9abc, time: Trace::now() };
        let mut payload = [b'x'; 40];
        trace.write(&mut payload);
        assert_eq!(Trace::read(&payload), Some(trace));
        assert!(payload.is_ascii());
        assert_eq!(Trace::read(b"hello"), None);
        assert_eq!(Trace::read(&[b'x'; 40]), None);
    }

    #[test]
    fn what_is_lost_repeated_or_late_is_counted() {
        let mut tally = Tally::default();
        let mut enter = |publisher, sequence| {
            tally.record(&Trace { publisher, sequence, time: 0 });
        };
        for sequence in [5, 6, 10, 8, 8, 11] {
            enter(3, sequence);
        }
        enter(0, 0);
        assert_eq!((tally.received, tally.repeated, tally.reordered), (6, 1, 1));
        assert_eq!(tally.lost(), 2, "7 and 9");
    }
}
