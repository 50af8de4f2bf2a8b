//! Who published a message, its number there, and when: written into its payload.

use std::time::{SystemTime, UNIX_EPOCH};

/// The first bytes of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Which of the publishers.
    pub publisher: u16,
    /// The number of the message among those of its publisher in its topic, from 0.
    pub sequence: u64,
    /// When it was to be sent, in nanoseconds since 1970.
    pub time: u64,
}

const PUBLISHER_DIGITS: usize = 4;
const SEQUENCE_DIGITS: usize = 12;
const TIME_DIGITS: usize = 16;

impl Stamp {
    /// How long a stamp is, in bytes. Smaller payloads have none.
    pub const LENGTH: usize = PUBLISHER_DIGITS + SEQUENCE_DIGITS + TIME_DIGITS;

    /// Writes the stamp over the beginning of a payload, unless that is too short. It is text, so
    /// that a payload may be a line.
    pub fn write(&self, payload: &mut [u8]) {
        let Some(room) = payload.first_chunk_mut::<{ Self::LENGTH }>() else { return };
        let (publisher, rest) = room.split_at_mut(PUBLISHER_DIGITS);
        let (sequence, time) = rest.split_at_mut(SEQUENCE_DIGITS);
        write_hex(u64::from(self.publisher), publisher);
        write_hex(self.sequence, sequence);
        write_hex(self.time, time);
    }

    /// Reads the stamp at the beginning of a payload, if there is one.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (publisher, rest) = payload.get(..Self::LENGTH)?.split_at(PUBLISHER_DIGITS);
        let (sequence, time) = rest.split_at(SEQUENCE_DIGITS);
        Some(Self {
            publisher: u16::try_from(read_hex(publisher)?).ok()?,
            sequence: read_hex(sequence)?,
            time: read_hex(time)?,
        })
    }

    /// The time now, as stamps have it.
    pub fn now() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

fn write_hex(mut value: u64, room: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for place in room.iter_mut().rev() {
        *place = DIGITS[(value & 15) as usize];
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

/// The account that one follower keeps of what it hears.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    publishers: Vec<Option<Track>>,
    /// Different messages heard.
    pub(crate) received: u64,
    pub(crate) repeated: u64,
    pub(crate) reordered: u64,
}

/// What was heard of one publisher.
#[derive(Debug)]
struct Track {
    next: u64,
    /// Numbers below `next` that have not come, as ranges.
    missing: Vec<(u64, u64)>,
}

impl Ledger {
    /// The most gaps that are remembered: behind them a late message counts as repeated.
    const MOST_GAPS: usize = 1000;

    pub(crate) fn enter(&mut self, stamp: &Stamp) {
        let index = usize::from(stamp.publisher);
        if self.publishers.len() <= index {
            self.publishers.resize_with(index + 1, || None);
        }
        let track = self.publishers[index]
            .get_or_insert(Track { next: stamp.sequence, missing: Vec::new() });
        if stamp.sequence >= track.next {
            if stamp.sequence > track.next && track.missing.len() < Self::MOST_GAPS {
                track.missing.push((track.next, stamp.sequence));
            }
            track.next = stamp.sequence + 1;
            self.received += 1;
        } else if track.find(stamp.sequence) {
            self.received += 1;
            self.reordered += 1;
        } else {
            self.repeated += 1;
        }
    }

    /// How many have not come between those that have.
    pub(crate) fn gaps(&self) -> u64 {
        let tracks = self.publishers.iter().flatten();
        tracks.flat_map(|track| &track.missing).map(|(from, to)| to - from).sum()
    }
}

impl Track {
    /// Takes a number out of those that are missing.
    fn find(&mut self, sequence: u64) -> bool {
        let holds = |(from, to): &(u64, u64)| (*from..*to).contains(&sequence);
        let Some(place) = self.missing.iter().position(holds) else { return false };
        let (from, to) = self.missing.swap_remove(place);
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
        let stamp = Stamp { publisher: 0xabc, sequence: 0x1234_5678_9abc, time: Stamp::now() };
        let mut payload = [b'x'; 40];
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        assert!(payload.is_ascii());
        assert_eq!(Stamp::read(b"hello"), None);
        assert_eq!(Stamp::read(&[b'x'; 40]), None);
    }

    #[test]
    fn what_is_lost_repeated_or_late_is_counted() {
        let mut ledger = Ledger::default();
        let mut enter = |publisher, sequence| {
            ledger.enter(&Stamp { publisher, sequence, time: 0 });
        };
        for sequence in [5, 6, 10, 8, 8, 11] {
            enter(3, sequence);
        }
        enter(0, 0);
        assert_eq!((ledger.received, ledger.repeated, ledger.reordered), (6, 1, 1));
        assert_eq!(ledger.gaps(), 2, "7 and 9");
    }
}
