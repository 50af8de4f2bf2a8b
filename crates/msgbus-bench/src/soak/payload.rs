//! Payloads that contain their origin, so that each message can be checked by itself.

use std::io::Write as _;

use msgbus_core::Message;

/// The publisher of a message, and its sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) publisher: u64,
    pub(super) sequence: u64,
    /// How many key files the server had read when the message was published.
    pub(super) reloads: u64,
    pub(super) described: Described,
}

/// The attributes of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Described {
    pub(super) has_type: bool,
    pub(super) has_encoding: bool,
}

impl Described {
    /// The request headers, each with its line break.
    pub(super) fn headers(self, publisher: u64) -> String {
        let mut headers = String::new();
        if self.has_type {
            headers.push_str(&format!("Content-Type: {}\r\n", media_type(publisher)));
        }
        if self.has_encoding {
            headers.push_str(&format!("Content-Encoding: {ENCODING}\r\n"));
        }
        headers
    }

    fn number(self) -> u8 {
        u8::from(self.has_type) | u8::from(self.has_encoding) << 1
    }
}

impl Origin {
    /// Whether a message has exactly these attributes.
    pub(super) fn describes(self, message: &Message) -> bool {
        let Described { has_type, has_encoding } = self.described;
        let media_type = has_type.then(|| media_type(self.publisher));
        let encoding = has_encoding.then_some(ENCODING);
        (message.content_type(), message.content_encoding()) == (media_type.as_deref(), encoding)
    }
}

const ENCODING: &str = "x-soak";

fn media_type(publisher: u64) -> String {
    format!("text/x-soak; publisher={publisher}")
}

/// Appends a payload of about `size` bytes, without line breaks.
pub(super) fn write(out: &mut Vec<u8>, topic: &str, origin: Origin, size: usize) {
    let begin = out.len();
    let Origin { publisher, sequence, reloads, described } = origin;
    let described = described.number();
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{topic} {publisher} {sequence} {reloads} {described} {size} ");
    let size = size.max(out.len() - begin);
    out.resize(begin + size, filler(sequence));
}

/// Parses a payload; `None` if it is incomplete, or was not published to this topic.
pub(super) fn read(payload: &[u8], topic: &str) -> Option<Origin> {
    let mut words = payload.splitn(7, |byte| *byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    if word()? != topic {
        return None;
    }
    let mut number = || word()?.parse::<u64>().ok();
    let (publisher, sequence, reloads, bits) = (number()?, number()?, number()?, number()?);
    let described = Described { has_type: bits & 1 > 0, has_encoding: bits & 2 > 0 };
    let origin = Origin { publisher, sequence, reloads, described };
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
            let described = Described { has_type: true, has_encoding: false };
            let origin = Origin { publisher: 3, sequence: 27, reloads: 2, described };
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
