//! The protocol of msgbus: `msgbus.v1`, one websocket for everything. docs/protocol.md, section 16.

use std::{
    cell::RefCell,
    io::{self, Cursor},
    str,
};

use serde::Deserialize;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use crate::{
    http::{Http, UPGRADE},
    protocol::{Body, Follower, Outcome, Protocol, Requester},
    response::{ResponseHead, invalid},
};

/// A msgbus server to which clients publish, and from which they pull, over `msgbus.v1`. Followers are those of [`Http`].
///
/// A batch is a frame with an operation for each message. Only the last one has a `rid`: the server answers those without
/// one only if they fail, and begins all in order. So its answer confirms the whole frame.
#[derive(Debug, Clone)]
pub struct MsgbusV1(pub Http);

impl Protocol for MsgbusV1 {
    /// The name as JSON.
    fn encode_topic(&self, topic: &str) -> String {
        // A text cannot fail.
        serde_json::to_string(topic).unwrap_or_default()
    }

    fn requester(&self) -> Box<dyn Requester> {
        let Http { prefix, .. } = &self.0;
        let headers = self.0.headers();
        let handshake = format!(
            "GET {prefix}/ HTTP/1.1\r\n{headers}{UPGRADE}Sec-WebSocket-Protocol: msgbus.v1\r\n\r\n"
        );
        Box::new(Client { handshake, frame: RefCell::default(), is_open: false, has_failed: false })
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
    is_open: bool,
    /// Whether an operation without `rid` has failed since the last answer.
    has_failed: bool,
}

/// A line of the server.
#[derive(Deserialize)]
struct Line<'a> {
    op: &'a str,
    rid: Option<u64>,
    text: Option<String>,
    retry_after: Option<u64>,
    messages: Option<Vec<serde::de::IgnoredAny>>,
}

impl Requester for Client {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.handshake.as_bytes());
    }

    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let mut frame = self.frame.borrow_mut();
        frame.clear();
        let bytes = match body {
            Body::Message(bytes) => bytes,
            Body::Lines(bytes) => bytes.strip_suffix(b"\n").unwrap_or(bytes),
        };
        let count = match body {
            Body::Message(_) => 1,
            Body::Lines(_) => bytes.split(|byte| *byte == b'\n').count(),
        };
        // Payloads are letters and digits, which need no escapes.
        for (index, payload) in bytes.splitn(count, |byte| *byte == b'\n').enumerate() {
            let rid: &[u8] = if index + 1 == count { br#""rid":1,"# } else { b"" };
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
        write_frame(&frame, out);
    }

    fn pull(&self, topic: &str, out: &mut Vec<u8>) {
        let line = format!("{{\"op\":\"pull\",\"rid\":1,\"topic\":{topic}}}\n");
        write_frame(line.as_bytes(), out);
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let mut used = 0;
        if !self.is_open {
            let Some(head) = ResponseHead::parse(input)? else { return Ok(0) };
            if head.status() != 101 {
                let status = head.status();
                return Err(invalid(format!("the server answered {status} instead of 101")));
            }
            self.is_open = true;
            used = head.length();
        }
        loop {
            let mut rest = Cursor::new(&input[used..]);
            let Some((header, length)) = FrameHeader::parse(&mut rest).map_err(invalid)? else {
                return Ok(used);
            };
            let begin = used + usize::try_from(rest.position()).unwrap_or(usize::MAX);
            let length = usize::try_from(length).map_err(invalid)?;
            let Some(content) = input.get(begin..begin.saturating_add(length)) else {
                return Ok(used);
            };
            match header.opcode {
                OpCode::Data(_) => {
                    for line in content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
                    {
                        self.decode_line(line, each)?;
                    }
                }
                OpCode::Control(Control::Close) => {
                    return Err(invalid(format!(
                        "the server closed the connection: {}",
                        String::from_utf8_lossy(content.get(2..).unwrap_or_default())
                    )));
                }
                // Requests keep the connection alive, so pings need no answer.
                OpCode::Control(_) => {}
            }
            used = begin + length;
        }
    }
}

impl Client {
    fn decode_line(&mut self, line: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<()> {
        let line: Line<'_> = serde_json::from_slice(line).map_err(invalid)?;
        if line.op == "error" {
            // The next request would fail as well.
            if line.retry_after.is_none() {
                let text = line.text.unwrap_or_default();
                return Err(invalid(format!("the server answered: {text}")));
            }
            self.has_failed = true;
        }
        if line.rid.is_some() {
            let is_empty = line.messages.is_some_and(|messages| messages.is_empty());
            each(match std::mem::take(&mut self.has_failed) {
                true => Outcome::Refused,
                false if is_empty => Outcome::Empty,
                false => Outcome::Done,
            });
        }
        Ok(())
    }
}

/// Writes a text frame. Its mask is zero, which leaves the content unchanged.
fn write_frame(content: &[u8], out: &mut Vec<u8>) {
    let header = FrameHeader {
        opcode: OpCode::Data(Data::Text),
        mask: Some([0; 4]),
        ..FrameHeader::default()
    };
    // A Vec cannot fail.
    let _ = header.format(content.len() as u64, out);
    out.extend_from_slice(content);
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
