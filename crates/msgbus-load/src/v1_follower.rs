//! Subscribers that use `msgbus.v1`. docs/protocol.md, section 16.

use std::io::{self, Cursor};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use memchr::memmem::Finder;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use crate::{
    http::{Http, UPGRADE, pong},
    protocol::{Follower, Protocol, Received, Requester},
    response::{ResponseHead, invalid},
    trace::Trace,
};

/// A msgbus server whose followers subscribe over `msgbus.v1`. Requests are those of [`Http`].
#[derive(Debug, Clone)]
pub struct FollowV1(pub Http);

impl Protocol for FollowV1 {
    fn encode_topic(&self, topic: &str) -> String {
        self.0.encode_topic(topic)
    }

    fn requester(&self) -> Box<dyn Requester> {
        self.0.requester()
    }

    /// The topics of this crate need no encoding, neither in a path nor in JSON.
    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        let topic = topic.trim_start_matches('/');
        let mut open = format!(
            "GET / HTTP/1.1\r\n{}{UPGRADE}Sec-WebSocket-Protocol: msgbus.v1\r\n\r\n",
            self.0.headers()
        )
        .into_bytes();
        let subscribe = format!("{{\"op\":\"sub\",\"rid\":0,\"sid\":0,\"topic\":\"{topic}\"}}\n");
        write_frame(subscribe.as_bytes(), &mut open);
        let payload = Finder::new(b"\"payload\":\"");
        Box::new(Subscriber { open, frames: Frames::default(), payload })
    }
}

/// The frames of a server, after its response to the handshake.
#[derive(Default)]
struct Frames {
    is_open: bool,
}

impl Frames {
    /// Passes the content of each complete text frame to `each`, and returns the length of all complete frames in bytes.
    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<usize> {
        let mut used = 0;
        if !self.is_open {
            let Some(head) = ResponseHead::parse(input)? else { return Ok(0) };
            if head.status() != 101 {
                return Err(invalid(format!("the server answered {}", head.status())));
            }
            (self.is_open, used) = (true, head.length());
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
                OpCode::Data(_) => each(content)?,
                OpCode::Control(Control::Ping) => pong(content, reply)?,
                OpCode::Control(_) => {
                    return Err(invalid(String::from_utf8_lossy(content).into_owned()));
                }
            }
            used = begin + length;
        }
    }
}

struct Subscriber {
    open: Vec<u8>,
    frames: Frames,
    payload: Finder<'static>,
}

impl Follower for Subscriber {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.open);
    }

    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let Self { frames, payload, .. } = self;
        frames.decode(input, reply, |content| {
            for line in content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                if line.starts_with(b"{\"op\":\"msg\"") {
                    each(Received::Message(trace(payload, line)));
                } else if line.starts_with(b"{\"op\":\"ok\"") {
                    each(Received::Ready);
                } else {
                    return Err(invalid(String::from_utf8_lossy(line).into_owned()));
                }
            }
            Ok(())
        })
    }
}

/// The trace in the payload of a message.
fn trace(payload: &Finder<'_>, line: &[u8]) -> Option<Trace> {
    /// Base64 encodes three bytes as four characters.
    const ENCODED: usize = Trace::LENGTH.div_ceil(3) * 4;
    let begin = payload.find(line)? + payload.needle().len();
    let encoded = line.get(begin..begin + ENCODED)?;
    let mut trace = [0; ENCODED];
    let length = BASE64_STANDARD.decode_slice(encoded, &mut trace).ok()?;
    Trace::read(&trace[..length])
}

/// Writes a text frame. Its mask is zero, which leaves the content unchanged.
fn write_frame(content: &[u8], out: &mut Vec<u8>) {
    let header = FrameHeader {
        opcode: OpCode::Data(Data::Text),
        mask: Some([0; 4]),
        ..FrameHeader::default()
    };
    // Writing to a Vec cannot fail.
    let _ = header.format(content.len() as u64, out);
    out.extend_from_slice(content);
}
