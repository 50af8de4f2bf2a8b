//! Messages as clients of middleman get them: a text frame with a command line, headers, an empty line, the body and a
//! line with a dot.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use msgbus_core::{Headers, Message, Reply, Request};

use crate::{
    dialogue::names::foreign,
    encode::{
        format::{Encoder, FrameFormat},
        frame::Frame,
    },
};

/// The connection of the publisher, and the user that a service has attached to it. Both are on every message.
pub(crate) const SENDER: [&str; 2] = ["Cid", "Uid"];
/// The number of a request.
pub(crate) const RID: &str = "Rid";

/// How published messages are encoded, once for all subscribers.
pub(crate) const FORMAT: FrameFormat = FrameFormat::Of(Encoder {
    name: "middleman",
    encode: |message| {
        let mut out = Vec::with_capacity(message.payload().len() + 256);
        write_published(&mut out, message);
        Frame::new(out, "")
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
    match str::from_utf8(body) {
        // One more dot before each line that begins with a dot (RFC 5321, section 4.5.2).
        Ok(text) => {
            put(&["\r\n", if text.starts_with('.') { "." } else { "" }]);
            put(&[&if text.contains("\n.") {
                text.replace("\n.", "\n..").into()
            } else {
                Cow::from(text)
            }]);
        }
        Err(_) => put(&["Content-Transfer-Encoding: base64\r\n\r\n", &STANDARD.encode(body)]),
    }
    put(&["\r\n.\r\n"]);
}

fn write_published(out: &mut Vec<u8>, message: &Message) {
    let (headers, target) = (message.headers(), foreign(message.topic().name.as_str()));
    write(out, "PUB", &target, sender(headers).chain(others(headers, &[])), message.payload());
}

/// A request as a responder gets it.
pub(super) fn write_request(out: &mut Vec<u8>, request: &Request, number: u64) {
    let (headers, target) = (request.headers(), foreign(request.service().as_str()));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn written(body: &[u8]) -> String {
        let mut out = Vec::new();
        write(&mut out, "PUB", "t", None, body);
        String::from_utf8(out).unwrap()
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
