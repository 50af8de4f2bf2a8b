//! NATS core.

use std::io;

use msgbus_load::{Body, Follower, Outcome, Protocol, Received, Requester, Trace};

use super::{line, number, unexpected};

/// NATS core, with a response to each publish. <https://docs.nats.io/reference/nats-protocol>
#[derive(Debug)]
pub(in crate::compare) struct Nats;

impl Protocol for Nats {
    fn requester(&self) -> Box<dyn Requester> {
        Box::new(NatsClient { is_open: false })
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        Box::new(NatsFollower { topic: topic.to_owned() })
    }
}

struct NatsClient {
    /// Whether the response to CONNECT has been received.
    is_open: bool,
}

impl Requester for NatsClient {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"CONNECT {\"verbose\":true,\"pedantic\":false}\r\n");
    }

    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let (Body::Message(bytes) | Body::Lines(bytes)) = body;
        out.extend_from_slice(format!("PUB {topic} {}\r\n", bytes.len()).as_bytes());
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
    }

    fn pull(&self, _: &str, _: &mut Vec<u8>) {
        unreachable!("NATS core stores no messages to pull");
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let mut used = 0;
        while let Some(line) = line(&input[used..]) {
            match line {
                b"+OK\r\n" if !self.is_open => self.is_open = true,
                b"+OK\r\n" => each(Outcome::Done),
                _ if line.starts_with(b"INFO") || line.starts_with(b"PING") => {}
                _ => return Err(unexpected(line)),
            }
            used += line.len();
        }
        Ok(used)
    }
}

struct NatsFollower {
    topic: String,
}

impl Follower for NatsFollower {
    fn open(&self, out: &mut Vec<u8>) {
        let Self { topic } = self;
        let text = format!("CONNECT {{\"verbose\":false}}\r\nSUB {topic} 1\r\nPING\r\n");
        out.extend_from_slice(text.as_bytes());
    }

    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let mut used = 0;
        while let Some(line) = line(&input[used..]) {
            let mut whole = line.len();
            if line.starts_with(b"MSG ") {
                let length = line.trim_ascii_end().rsplit(|byte| *byte == b' ').next();
                let length = number(length.unwrap_or_default())?;
                let payload = &input[used + whole..];
                if payload.len() < length + 2 {
                    break;
                }
                each(Received::Message(Trace::read(&payload[..length])));
                whole += length + 2;
            } else if line.starts_with(b"PING") {
                reply.extend_from_slice(b"PONG\r\n");
            } else if line.starts_with(b"PONG") {
                each(Received::Ready);
            } else if !line.starts_with(b"INFO") {
                return Err(unexpected(line));
            }
            used += whole;
        }
        Ok(used)
    }
}
