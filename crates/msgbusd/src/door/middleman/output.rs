//! Messages as clients of middleman get them: a text frame with a command line, headers, an empty line, the body and a
//! line with a dot. The mapping between its targets and topic names is here, too.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use memchr::memmem;
use msgbus_core::{Headers, Message, NameError, Reply, Request, TopicName};
use percent_encoding::{percent_decode_str, percent_encode_byte};

use crate::encode::frame_cache::{Encoder, Frame, FrameFormat};

/// The connection of the publisher, and the user that a service has attached to it. Both are on every message.
pub(crate) const SENDER: [&str; 2] = ["Cid", "Uid"];
/// The number of a request.
pub(crate) const RID: &str = "Rid";

/// How published messages are encoded, once for all subscribers.
pub(crate) const FORMAT: FrameFormat = FrameFormat::Of(Encoder {
    name: "middleman",
    encode: |message| {
        let size = 2 * message.topic().name.as_str().len() + message.payload().len();
        Frame::text(size, |out| write_published(out, message))
    },
});

/// A header.
type Header<'a> = (&'a str, &'a str);

/// Writes a message. A body that is not text, which a text frame cannot have, is in base64.
pub(crate) fn write<'a>(
    out: &mut Vec<u8>,
    command: &str,
    target: &str,
    headers: impl IntoIterator<Item = Header<'a>>,
    body: &[u8],
) {
    let mut put = |pieces: &[&str]| {
        for piece in pieces {
            out.extend_from_slice(piece.as_bytes());
        }
    };
    put(&[command, " ", target, "\r\n"]);
    for (name, value) in headers {
        put(&[name, ": ", value, "\r\n"]);
    }
    if str::from_utf8(body).is_ok() {
        put(&["\r\n"]);
        write_stuffed(out, body);
    } else {
        put(&["Content-Transfer-Encoding: base64\r\n\r\n", &STANDARD.encode(body)]);
    }
    out.extend_from_slice(b"\r\n.\r\n");
}

/// Writes a body with one more dot before each line that begins with a dot (RFC 5321, section 4.5.2).
fn write_stuffed(out: &mut Vec<u8>, body: &[u8]) {
    if body.first() == Some(&b'.') {
        out.push(b'.');
    }
    let mut copied = 0;
    for feed in memmem::find_iter(body, b"\n.") {
        out.extend_from_slice(&body[copied..=feed]);
        out.push(b'.');
        copied = feed + 1;
    }
    out.extend_from_slice(&body[copied..]);
}

fn write_published(out: &mut Vec<u8>, message: &Message) {
    let (headers, target) = (message.headers(), target(message.topic().name.as_str()));
    write(out, "PUB", &target, sender(headers).chain(others(headers, &[])), message.payload());
}

/// A request as a responder gets it.
pub(super) fn write_request(out: &mut Vec<u8>, request: &Request, number: u64) {
    let (headers, target) = (request.headers(), target(request.service().as_str()));
    let (mut buffer, others) = (itoa::Buffer::new(), others(headers, &[RID]));
    let headers = sender(headers).chain([(RID, buffer.format(number))]).chain(others);
    write(out, "REQ", &target, headers, request.payload());
}

/// A reply as the requester gets it: with the spelling of the headers of its request, and with its own `rid` and `ReqID`.
pub(super) fn write_reply(out: &mut Vec<u8>, target: &str, of_request: &Headers, reply: &Reply) {
    let headers = &reply.headers;
    let own = |name: &str| of_request.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
    let kept = others(headers, &[RID])
        .map(|(name, value)| (own(name).map_or(name, |(own, _)| own), value));
    let lost = own("ReqID").filter(|(name, _)| headers.get(name).is_none());
    let headers = sender(headers).chain(kept).chain(lost).chain(own(RID));
    write(out, "RES", target, headers, &reply.payload);
}

/// The headers that name the sender. A message from elsewhere has them without values.
fn sender(headers: &Headers) -> impl Iterator<Item = Header<'_>> {
    SENDER.into_iter().map(|name| (name, headers.get(name).unwrap_or_default()))
}

/// The other headers, without some.
fn others<'a>(headers: &'a Headers, without: &[&str]) -> impl Iterator<Item = Header<'a>> {
    let is_any = |name: &str, of: &[&str]| of.iter().any(|one| one.eq_ignore_ascii_case(name));
    headers.iter().filter(move |(name, _)| !is_any(name, &SENDER) && !is_any(name, without))
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
            || (character == '%' && segment[index..].get(..3).is_some_and(has_escape));
        if is_escaped {
            let mut buffer = [0; 4];
            let bytes = character.encode_utf8(&mut buffer).bytes();
            name.extend(bytes.map(percent_encode_byte));
        } else {
            name.push(character);
        }
    }
}

/// The target of a topic.
pub(crate) fn target(topic: &str) -> Cow<'_, str> {
    match percent_decode_str(topic).decode_utf8() {
        // A line has no end within.
        Ok(target) if !target.contains(['\r', '\n']) => target,
        _ => topic.into(),
    }
}

fn has_escape(text: &str) -> bool {
    matches!(percent_decode_str(text).into(), Cow::<[u8]>::Owned(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(body: &[u8]) -> String {
        let mut out = Vec::new();
        write(&mut out, "PUB", "t", None, body);
        String::from_utf8(out).unwrap()
    }

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
            let text = format!("PUB t\r\n\r\n{stuffed}\r\n.\r\n");
            assert_eq!(written(body.as_bytes()), text);
        }
        let text = "PUB t\r\nContent-Transfer-Encoding: base64\r\n\r\n/w==\r\n.\r\n";
        assert_eq!(written(b"\xff"), text);
    }
}
