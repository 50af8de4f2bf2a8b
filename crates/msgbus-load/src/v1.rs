//! The protocol of msgbus: `msgbus.v1`, one websocket for everything. docs/protocol.md, section 16.

use std::{cell::RefCell, io, str};

use memchr::memchr_iter;
use serde::Deserialize;

use crate::{
    frames::{Frame, Frames, write_text},
    http::{Http, UPGRADE},
    protocol::{Body, Follower, Outcome, Protocol, Requester},
    response::invalid,
};

/// A msgbus server to which clients publish, and from which they pull, over `msgbus.v1`. Followers are those of [`Http`].
///
/// A batch is a frame with an operation for each message. Only the last one has a `rid`: the server answers those without
/// one only if they fail, and begins all in order. So its answer confirms the whole frame.
#[derive(Debug, Clone)]
pub struct MsgbusV1(pub Http);

impl Protocol for MsgbusV1 {
    fn encode_topic(&self, topic: &str) -> String {
        in_json(topic)
    }

    fn requester(&self) -> Box<dyn Requester> {
        let handshake = handshake(&self.0);
        Box::new(Client {
            handshake,
            frame: RefCell::default(),
            frames: Frames::default(),
            has_failed: false,
        })
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        // The opposite of `encode_topic`.
        let topic: String = serde_json::from_str(topic).unwrap_or_default();
        self.0.follower(&self.0.encode_topic(&topic))
    }
}

struct Client {
    handshake: String,
    /// A reused buffer for the content of one frame.
    frame: RefCell<Vec<u8>>,
    frames: Frames,
    /// Whether an operation without `rid` has failed since the last answer.
    has_failed: bool,
}

/// A line of the server.
#[derive(Deserialize)]
pub(crate) struct Line<'a> {
    op: &'a str,
    pub(crate) rid: Option<u64>,
    text: Option<String>,
    retry_after: Option<u64>,
    messages: Option<Vec<serde::de::IgnoredAny>>,
}

impl<'a> Line<'a> {
    /// # Errors
    /// The line is not JSON, or says that the next operation would fail as well.
    pub(crate) fn read(line: &'a [u8]) -> io::Result<Self> {
        let line: Self = serde_json::from_slice(line).map_err(invalid)?;
        if line.op == "error" && line.retry_after.is_none() {
            let text = line.text.unwrap_or_default();
            return Err(invalid(format!("the server answered: {text}")));
        }
        Ok(line)
    }
}

impl Requester for Client {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.handshake.as_bytes());
    }

    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let mut frame = self.frame.borrow_mut();
        frame.clear();
        // Payloads are letters and digits, which need no escapes.
        let mut messages = body.messages().peekable();
        while let Some(payload) = messages.next() {
            let rid: &[u8] = if messages.peek().is_none() { br#""rid":1,"# } else { b"" };
            for part in [
                br#"{"op":"pub","#,
                rid,
                br#""topic":"#,
                topic.as_bytes(),
                br#","text":""#,
                payload,
                b"\"}\n",
            ] {
                frame.extend_from_slice(part);
            }
        }
        write_text(&frame, out);
    }

    fn pull(&self, topic: &str, out: &mut Vec<u8>) {
        let line = format!("{{\"op\":\"pull\",\"rid\":1,\"topic\":{topic}}}\n");
        write_text(line.as_bytes(), out);
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let Self { frames, has_failed, .. } = self;
        frames.decode(input, |frame| match frame {
            // Requests keep the connection alive, so pings need no answer.
            Frame::Open | Frame::Ping(_) => Ok(()),
            Frame::Data(content) => {
                lines(content).try_for_each(|line| decode(line, has_failed, each))
            }
        })
    }
}

/// Reads a line. `has_failed` says whether an operation without `rid` has failed since the last answer.
fn decode(line: &[u8], has_failed: &mut bool, each: &mut dyn FnMut(Outcome)) -> io::Result<()> {
    let line = Line::read(line)?;
    *has_failed |= line.op == "error";
    if line.rid.is_some() {
        let is_empty = line.messages.is_some_and(|messages| messages.is_empty());
        each(match std::mem::take(has_failed) {
            true => Outcome::Refused,
            false if is_empty => Outcome::Empty,
            false => Outcome::Done,
        });
    }
    Ok(())
}

/// The lines of a frame.
pub(crate) fn lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut begin = 0;
    let ends = memchr_iter(b'\n', content).chain([content.len()]);
    let lines = ends.map(move |end| {
        let line = content.get(begin..end).unwrap_or_default();
        begin = end + 1;
        line
    });
    lines.filter(|line| !line.is_empty())
}

/// A name as JSON.
pub(crate) fn in_json(name: &str) -> String {
    // A text cannot fail.
    serde_json::to_string(name).unwrap_or_default()
}

/// The request that opens a websocket of `msgbus.v1`.
pub(crate) fn handshake(http: &Http) -> String {
    let (prefix, headers) = (&http.prefix, http.headers());
    format!("GET {prefix}/ HTTP/1.1\r\n{headers}{UPGRADE}Sec-WebSocket-Protocol: msgbus.v1\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Box<dyn Requester> {
        MsgbusV1(Http { host: "h".to_owned(), ..Http::default() }).requester()
    }

    #[test]
    fn a_batch_is_a_frame_whose_last_operation_is_answered() {
        let mut out = Vec::new();
        client().publish("\"t\"", Body::Lines(b"a\nb\n"), &mut out);
        let content = "{\"op\":\"pub\",\"topic\":\"t\",\"text\":\"a\"}\n\
                       {\"op\":\"pub\",\"rid\":1,\"topic\":\"t\",\"text\":\"b\"}\n";
        assert_eq!(out[..2], [0x81, 0x80 | u8::try_from(content.len()).unwrap()]);
        assert_eq!(&out[6..], content.as_bytes());
    }

    #[test]
    fn answers_are_read_in_any_pieces() {
        let frame =
            |text: &str| [&[0x81, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let mut input = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        input.extend(frame(
            "{\"op\":\"ok\",\"rid\":1}\n{\"op\":\"ok\",\"rid\":1,\"messages\":[]}\n",
        ));
        input.extend(frame("{\"op\":\"error\",\"text\":\"busy\",\"retry_after\":1}\n"));
        input.extend(frame("{\"op\":\"ok\",\"rid\":1}\n"));
        let (mut client, mut outcomes, mut begin) = (client(), Vec::new(), 0);
        for end in 1..=input.len() {
            let each = &mut |outcome| outcomes.push(outcome);
            begin += client.decode(&input[begin..end], each).unwrap();
        }
        assert_eq!(outcomes, [Outcome::Done, Outcome::Empty, Outcome::Refused]);
        let full =
            frame("{\"op\":\"error\",\"rid\":1,\"code\":\"topic_full\",\"text\":\"full\"}\n");
        assert!(client.decode(&full, &mut |_| ()).is_err());
    }
}
