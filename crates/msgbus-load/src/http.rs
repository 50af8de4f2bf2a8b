//! The protocol of msgbus: HTTP/1.1 and websockets.

use std::{fmt, io};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use memchr::memmem::Finder;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    frames::{Frame, Frames, pong},
    leases::HttpWorker,
    protocol::{Body, Follower, Outcome, Protocol, Received, Requester, Worker},
    response::{ResponseHead, invalid},
    trace::Trace,
};

/// A msgbus server, or another server that accepts the same requests.
#[derive(Clone, Default)]
pub struct Http {
    /// The host, and the port if it is not 80.
    pub host: String,
    /// The path in front of the topics: empty, or with a leading and without a trailing slash.
    pub prefix: String,
    /// Whether subscribers receive binary frames that contain only the payload.
    pub raw: bool,
    /// The value of the `Authorization` header.
    pub authorization: Option<String>,
}

/// Omits the key.
impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, prefix, raw, .. } = self;
        let mut shown = f.debug_struct("Http");
        shown.field("host", host).field("prefix", prefix).field("raw", raw).finish_non_exhaustive()
    }
}

impl Http {
    /// The headers of every request, each with its line break.
    pub(crate) fn headers(&self) -> String {
        let mut headers = format!("Host: {}\r\n", self.host);
        if let Some(authorization) = &self.authorization {
            headers.push_str(&format!("Authorization: {authorization}\r\n"));
        }
        headers
    }

    fn websocket(&self, topic: &str, query: &str) -> WebsocketFollower {
        let request = format!("GET {topic}{query} HTTP/1.1\r\n{}{UPGRADE}\r\n", self.headers());
        let payload = Finder::new(b"\"payload\":\"");
        WebsocketFollower { request, raw: self.raw, frames: Frames::default(), payload }
    }
}

/// The headers of the handshake of a websocket.
pub(crate) const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bXNnYnVzIGlzIG1lYXN1cg==\r\n";

const PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Protocol for Http {
    fn encode_topic(&self, topic: &str) -> String {
        format!("{}/{}", self.prefix, utf8_percent_encode(topic, PATH))
    }

    fn worker(&self) -> Option<Box<dyn Worker>> {
        Some(Box::new(HttpWorker::new(self.headers(), true)))
    }

    fn requester(&self) -> Box<dyn Requester> {
        Box::new(Client { headers: self.headers() })
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        Box::new(self.websocket(topic, if self.raw { "?raw" } else { "" }))
    }
}

/// A msgbus server whose followers begin with the oldest message of the topic.
#[derive(Debug, Clone)]
pub struct Replaying(pub Http);

impl Protocol for Replaying {
    fn encode_topic(&self, topic: &str) -> String {
        self.0.encode_topic(topic)
    }

    fn requester(&self) -> Box<dyn Requester> {
        self.0.requester()
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        let query = if self.0.raw { "?raw&since=all" } else { "?since=all" };
        Box::new(self.0.websocket(topic, query))
    }
}

struct Client {
    headers: String,
}

impl Requester for Client {
    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let (query, bytes) = match body {
            Body::Message(bytes) => ("", bytes),
            Body::Lines(bytes) => ("?split=lines", bytes),
        };
        for part in ["PUT ", topic, query, " HTTP/1.1\r\n", &self.headers] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(b"Content-Length: ");
        out.extend_from_slice(bytes.len().to_string().as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(bytes);
    }

    fn pull(&self, topic: &str, out: &mut Vec<u8>) {
        for part in ["GET ", topic, " HTTP/1.1\r\n", &self.headers, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let mut used = 0;
        while let Some(head) = ResponseHead::parse(&input[used..])? {
            let whole = head.length() + head.body_length()?;
            if input.len() - used < whole {
                break;
            }
            each(match head.status() {
                200..=299 => Outcome::Done,
                404 => Outcome::Empty,
                // The next request would fail as well.
                status @ 400..=499 => {
                    let text = &input[used + head.length()..used + whole];
                    let text = String::from_utf8_lossy(text);
                    return Err(invalid(format!(
                        "the server answered {status}: {}",
                        text.trim_end()
                    )));
                }
                _ => Outcome::Refused,
            });
            used += whole;
        }
        Ok(used)
    }
}

struct WebsocketFollower {
    request: String,
    raw: bool,
    frames: Frames,
    payload: Finder<'static>,
}

impl Follower for WebsocketFollower {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.request.as_bytes());
    }

    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let Self { frames, raw, payload, .. } = self;
        frames.decode(input, |frame| {
            match frame {
                Frame::Open => each(Received::Ready),
                Frame::Data(content) if *raw => each(Received::Message(Trace::read(content))),
                Frame::Data(content) => each(Received::Message(trace_in(content, payload))),
                Frame::Ping(content) => pong(content, reply),
            }
            Ok(())
        })
    }
}

/// The trace in the payload of a message as JSON.
pub(crate) fn trace_in(json: &[u8], payload: &Finder<'_>) -> Option<Trace> {
    /// Base64 encodes three bytes as four characters.
    const ENCODED: usize = Trace::LENGTH.div_ceil(3) * 4;
    let begin = payload.find(json)? + payload.needle().len();
    let encoded = json.get(begin..begin + ENCODED)?;
    let mut trace = [0; ENCODED];
    let length = BASE64_STANDARD.decode_slice(encoded, &mut trace).ok()?;
    Trace::read(&trace[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(raw: bool) -> Http {
        Http { host: "h".to_owned(), raw, ..Http::default() }
    }

    #[test]
    fn answers_are_read_one_by_one_and_only_whole() {
        let mut client = http(false).requester();
        let input = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n\
            HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n\
            HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab";
        let mut outcomes = Vec::new();
        let used = client.decode(input, &mut |outcome| outcomes.push(outcome)).unwrap();
        assert_eq!(outcomes, [Outcome::Done, Outcome::Empty]);
        assert!(input[used..].starts_with(b"HTTP/1.1 200"));
        assert!(client.decode(b"SSH-2.0-x\r\n\r\n", &mut |_| ()).is_err());
    }

    #[test]
    fn a_follower_hears_frames_in_any_pieces() {
        let trace = Trace { publisher: 1, sequence: 2, time: 3 };
        let mut payload = [b'x'; 100];
        trace.write(&mut payload);
        let json = format!("{{\"id\":0,\"payload\":\"{}\"}}\n", BASE64_STANDARD.encode(payload));
        let mut input = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n".to_vec();
        input.extend_from_slice(&[0x89, 2, b'h', b'i']);
        input.extend_from_slice(&[0x81, 126, 0, u8::try_from(json.len()).unwrap()]);
        input.extend_from_slice(json.as_bytes());

        let mut follower = http(false).follower("t");
        let (mut tally_of_all, mut reply, mut begin) = (Vec::new(), Vec::new(), 0);
        for end in 1..=input.len() {
            let listen = &mut |what| tally_of_all.push(what);
            begin += follower.decode(&input[begin..end], &mut reply, listen).unwrap();
        }
        assert_eq!(begin, input.len());
        assert_eq!(tally_of_all, [Received::Ready, Received::Message(Some(trace))]);
        assert_eq!(reply, [0x8a, 0x82, 0, 0, 0, 0, b'h', b'i']);
        assert!(follower.decode(&[0x88, 2, 3, 0xe9], &mut reply, &mut |_| ()).is_err());
    }
}
