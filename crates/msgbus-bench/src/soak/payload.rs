//! Payloads that tell whose they are, so that each message can be checked by itself.

use std::io::Write as _;

/// Who published something, and as what in its own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) publisher: u64,
    pub(super) sequence: u64,
    /// How many times the server had read its keys by then.
    pub(super) reloads: u64,
}

/// Appends a payload of about `size` bytes, without a line end in it.
pub(super) fn write(out: &mut Vec<u8>, topic: &str, origin: Origin, size: usize) {
    let begin = out.len();
    let Origin { publisher, sequence, reloads } = origin;
    // Writing to a Vec does not fail.
    let _ = write!(out, "{topic} {publisher} {sequence} {reloads} {size} ");
    let size = size.max(out.len() - begin);
    out.resize(begin + size, filler(sequence));
}

/// Reads a payload again; `None` when it is not one that was published to this topic, whole.
pub(super) fn read(payload: &[u8], topic: &str) -> Option<Origin> {
    let mut words = payload.splitn(6, |byte| *byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    if word()? != topic {
        return None;
    }
    let mut number = || word()?.parse::<u64>().ok();
    let origin = Origin { publisher: number()?, sequence: number()?, reloads: number()? };
    let size = usize::try_from(number()?).ok()?;
    let rest = words.next()?;
    let is_whole = payload.len() == size.max(payload.len() - rest.len());
    (is_whole && rest.iter().all(|byte| *byte == filler(origin.sequence))).then_some(origin)
}

fn filler(sequence: u64) -> u8 {
    b'a' + u8::try_from(sequence % 26).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_known_again_only_whole_and_in_its_topic() {
        for size in [0, 5, 100] {
            let origin = Origin { publisher: 3, sequence: 27, reloads: 2 };
            let mut payload = Vec::new();
            write(&mut payload, "a/b", origin, size);
            assert!(payload.len() >= size);
            assert_eq!(read(&payload, "a/b"), Some(origin));
            assert_eq!(read(&payload, "a/c"), None);
            payload.push(b'b');
            assert_eq!(read(&payload, "a/b"), None);
        }
    }
}
