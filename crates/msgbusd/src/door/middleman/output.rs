//! Messages as clients of middleman get them: a text frame with a command line, headers, an empty line, the body and a
//! line with a dot. The mapping between its targets and topic names is here, too.

use std::{borrow::Cow, fmt::Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use memchr::memmem;
use msgbus_core::{Headers, Message, NameError, TopicName};

use crate::encode::frame_cache::{Encoder, Frame, FrameFormat, TextHeader};

/// The connection of the publisher, and the user that a service has attached to it. Both are on every message.
pub(crate) const SENDER: [&str; 2] = ["Cid", "Uid"];
/// The number of a request.
pub(crate) const RID: &str = "Rid";

/// How published messages are encoded, once for all subscribers.
pub(crate) const FORMAT: FrameFormat =
    FrameFormat::Of(Encoder { name: "middleman", encode: published });

/// A frame that is put together.
#[derive(Debug)]
pub(crate) struct Builder {
    /// The text, after space for the longest header of a frame.
    bytes: Vec<u8>,
}

impl Builder {
    /// Begins a message. `size` is about that of its headers and body, in bytes.
    pub(crate) fn new(command: &str, target: &str, size: usize) -> Self {
        const LINES: usize = 64;
        let mut bytes =
            Vec::with_capacity(TextHeader::MAX_SIZE + LINES + command.len() + target.len() + size);
        bytes.resize(TextHeader::MAX_SIZE, 0);
        for piece in [command, " ", target, "\r\n"] {
            bytes.extend_from_slice(piece.as_bytes());
        }
        Self { bytes }
    }

    pub(crate) fn header(&mut self, name: &str, value: &str) {
        for piece in [name, ": ", value, "\r\n"] {
            self.bytes.extend_from_slice(piece.as_bytes());
        }
    }

    /// The headers that name the sender. A message from elsewhere has them without values.
    pub(crate) fn sender(&mut self, headers: &Headers) {
        for name in SENDER {
            self.header(name, headers.get(name).unwrap_or_default());
        }
    }

    /// Adds the body, and ends the frame. A body that is not text, which a text frame cannot have, is in base64.
    pub(crate) fn end(mut self, body: &[u8]) -> Frame {
        if str::from_utf8(body).is_ok() {
            self.bytes.extend_from_slice(b"\r\n");
            self.stuffed(body);
        } else {
            self.header("Content-Transfer-Encoding", "base64");
            self.bytes.extend_from_slice(b"\r\n");
            self.bytes.extend_from_slice(STANDARD.encode(body).as_bytes());
        }
        self.bytes.extend_from_slice(b"\r\n.\r\n");
        let header = TextHeader::new(self.bytes.len() - TextHeader::MAX_SIZE);
        let start = TextHeader::MAX_SIZE - header.as_ref().len();
        self.bytes[start..TextHeader::MAX_SIZE].copy_from_slice(header.as_ref());
        Frame::new(Bytes::from(self.bytes).slice(start..), "")
    }

    /// Adds the body with one more dot before each line that begins with a dot (RFC 5321, section 4.5.2).
    fn stuffed(&mut self, body: &[u8]) {
        if body.first() == Some(&b'.') {
            self.bytes.push(b'.');
        }
        let mut copied = 0;
        for feed in memmem::find_iter(body, b"\n.") {
            self.bytes.extend_from_slice(&body[copied..=feed]);
            self.bytes.push(b'.');
            copied = feed + 1;
        }
        self.bytes.extend_from_slice(&body[copied..]);
    }
}

/// The frame of a published message.
fn published(message: &Message) -> Frame {
    let target = target(message.topic().name.as_str());
    let mut frame = Builder::new("PUB", &target, size_hint(message));
    frame.sender(message.headers());
    for (name, value) in message.headers() {
        if !is_any(name, &SENDER) {
            frame.header(name, value);
        }
    }
    frame.end(message.payload())
}

/// The approximate size of the frame of a message, in bytes.
fn size_hint(message: &Message) -> usize {
    let headers = message.headers().iter().map(|(name, value)| name.len() + value.len() + 4);
    headers.sum::<usize>() + message.payload().len()
}

/// The frame of an error.
pub(crate) fn error(text: &str) -> Frame {
    Builder::new("PUB", "ERROR", text.len()).end(text.as_bytes())
}

/// Whether a header has one of these names.
pub(crate) fn is_any(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The topic of a target. Its name is the target, except for what topic names must not have: that is written as `%` and
/// two hex digits. So different targets are different topics.
///
/// # Errors
/// When the target is empty, or its topic's name would be too long.
pub(crate) fn topic(target: &str) -> Result<TopicName, NameError> {
    if !has_escape(target)
        && let Ok(name) = TopicName::new(target)
    {
        return Ok(name);
    }
    let segments: Vec<&str> = target.split('/').collect();
    let mut name = String::with_capacity(target.len() + 8);
    for (index, segment) in segments.iter().enumerate() {
        let is_reserved = match *segment {
            "" | "." | ".." | "*" | "**" => true,
            "-" => index == 0,
            "metrics" | "healthz" | "readyz" => segments.len() == 1,
            _ => false,
        };
        // The slash before an empty segment is escaped, so that the two are one segment.
        let is_joined = segment.is_empty() || segments.get(index.wrapping_sub(1)) == Some(&"");
        match (index, is_joined) {
            (0, _) => {}
            (_, true) => name.push_str("%2F"),
            (_, false) => name.push('/'),
        }
        escape(segment, is_reserved, &mut name);
    }
    TopicName::new(&name)
}

/// Escapes control characters, the percent sign of what would look like an escape, and, if it is reserved, the first
/// character.
fn escape(segment: &str, is_reserved: bool, name: &mut String) {
    for (index, character) in segment.char_indices() {
        let is_escaped = character.is_control()
            || (is_reserved && index == 0)
            || (character == '%' && escaped_byte(&segment.as_bytes()[index..]).is_some());
        if !is_escaped {
            name.push(character);
            continue;
        }
        for byte in character.encode_utf8(&mut [0; 4]).bytes() {
            // Writing to a String cannot fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
}

/// The target of a topic.
pub(crate) fn target(topic: &str) -> Cow<'_, str> {
    if !has_escape(topic) {
        return topic.into();
    }
    let (mut bytes, mut rest) = (Vec::with_capacity(topic.len()), topic.as_bytes());
    while let [first, after @ ..] = rest {
        let escaped = escaped_byte(rest);
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &rest[3..] } else { after };
    }
    match String::from_utf8(bytes) {
        // A line has no end within.
        Ok(target) if !target.contains(['\r', '\n']) => target.into(),
        _ => topic.into(),
    }
}

fn has_escape(text: &str) -> bool {
    memchr::memchr_iter(b'%', text.as_bytes())
        .any(|at| escaped_byte(&text.as_bytes()[at..]).is_some())
}

/// The byte that an escape at the beginning stands for.
fn escaped_byte(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_topics_and_back() {
        for (text, name) in [
            ("Chat", "Chat"),
            ("MSG:0123456789abcdefghij", "MSG:0123456789abcdefghij"),
            ("a b/c", "a b/c"),
            ("50%", "50%"),
            ("a%2Fb", "a%252Fb"),
            ("/a", "%2Fa"),
            ("a/", "a%2F"),
            ("a//b", "a%2F%2Fb"),
            ("/", "%2F"),
            ("//", "%2F%2F"),
            ("*", "%2A"),
            ("a/**/b", "a/%2A*/b"),
            ("..", "%2E."),
            ("metrics", "%6Detrics"),
            ("metrics/x", "metrics/x"),
            ("-/x", "%2D/x"),
            ("-", "%2D"),
            ("tab\there", "tab%09here"),
            ("bell\u{85}", "bell%C2%85"),
            ("größe", "größe"),
        ] {
            let made = topic(text).unwrap();
            assert_eq!((made.as_str(), &*target(name)), (name, text));
        }
        assert_eq!(topic(""), Err(NameError::Empty));
        assert_eq!(topic(&"x".repeat(256)), Err(NameError::TooLong(256)));
        assert!(topic(&"/".repeat(100)).is_err(), "three bytes each");
        assert_eq!(target("a%0Ab"), "a%0Ab", "a line has no end within");
        assert_eq!(target("%FF"), "%FF", "not UTF-8");
    }

    #[test]
    fn lines_that_begin_with_a_dot_get_another() {
        for (body, stuffed) in [
            ("", ""),
            (".", ".."),
            (".x\n..y\r\n.\nz.", "..x\n...y\r\n..\nz."),
            ("a\n.", "a\n.."),
            ("a\r.b", "a\r.b"),
        ] {
            let frame = Builder::new("PUB", "t", 0).end(body.as_bytes());
            let text = format!("PUB t\r\n\r\n{stuffed}\r\n.\r\n");
            let bytes = frame.pieces().concat();
            assert_eq!(bytes[2..], *text.as_bytes());
            assert_eq!(usize::from(bytes[1]), text.len());
        }
        let frame = Builder::new("PUB", "t", 0).end(b"\xff").pieces().concat();
        let text = "PUB t\r\nContent-Transfer-Encoding: base64\r\n\r\n/w==\r\n.\r\n";
        assert_eq!(frame[2..], *text.as_bytes());
    }
}
