//! The protocols of other servers: NATS and Redis.

use std::io;

use msgbus_load::{Body, Follower, Outcome, Protocol, Received, Requester, Trace};

/// NATS core, with a response to each publish. <https://docs.nats.io/reference/nats-protocol>
#[derive(Debug)]
pub(super) struct Nats;

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

/// Redis: a list to push to and pop from, or a channel. <https://redis.io/docs/latest/develop/reference/protocol-spec/>
#[derive(Debug, Clone, Copy)]
pub(super) enum Redis {
    List,
    Channel,
}

impl Protocol for Redis {
    fn requester(&self) -> Box<dyn Requester> {
        Box::new(RedisClient { kind: *self })
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        Box::new(RedisFollower { topic: topic.to_owned() })
    }
}

struct RedisClient {
    kind: Redis,
}

impl Requester for RedisClient {
    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let (Body::Message(bytes) | Body::Lines(bytes)) = body;
        match self.kind {
            // One value per line, in one command.
            Redis::List => {
                let mut words: Vec<&[u8]> = vec![b"RPUSH", topic.as_bytes()];
                match body {
                    Body::Message(bytes) => words.push(bytes),
                    Body::Lines(_) => words.extend(bytes.split(|byte| *byte == b'\n')),
                }
                if matches!(body, Body::Lines(_)) {
                    words.pop();
                }
                command(&words, out);
            }
            Redis::Channel => command(&[b"PUBLISH", topic.as_bytes(), bytes], out),
        }
    }

    fn pull(&self, topic: &str, out: &mut Vec<u8>) {
        command(&[b"LPOP", topic.as_bytes()], out);
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let mut used = 0;
        while let Some((item, length)) = item(&input[used..])? {
            each(match item {
                Item::Text(_) | Item::Number => Outcome::Done,
                Item::Nothing => Outcome::Empty,
                Item::Error => Outcome::Refused,
                Item::Array(_) => return Err(unexpected(&input[used..])),
            });
            used += length;
        }
        Ok(used)
    }
}

fn command(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

struct RedisFollower {
    topic: String,
}

impl Follower for RedisFollower {
    fn open(&self, out: &mut Vec<u8>) {
        command(&[b"SUBSCRIBE", self.topic.as_bytes()], out);
    }

    /// Every push is an array of three: its kind, the channel, and the content.
    fn decode(
        &mut self,
        input: &[u8],
        _: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let mut used = 0;
        'next: loop {
            let Some((Item::Array(3), mut length)) = item(&input[used..])? else {
                return Ok(used);
            };
            let mut parts = [Item::Nothing; 3];
            for part in &mut parts {
                let Some((item, more)) = item(&input[used + length..])? else { break 'next };
                *part = item;
                length += more;
            }
            match parts {
                [Item::Text(b"subscribe"), ..] => each(Received::Ready),
                [Item::Text(b"message"), _, Item::Text(payload)] => {
                    each(Received::Message(Trace::read(payload)));
                }
                _ => return Err(unexpected(&input[used..])),
            }
            used += length;
        }
        Ok(used)
    }
}

/// A part of a response of Redis.
#[derive(Debug, Clone, Copy)]
enum Item<'a> {
    Text(&'a [u8]),
    Number,
    Nothing,
    Error,
    Array(usize),
}

/// Parses the first item, if it is complete. Returns it with its length in bytes.
fn item(input: &[u8]) -> io::Result<Option<(Item<'_>, usize)>> {
    let Some(line) = line(input) else { return Ok(None) };
    let text = &line[1..line.len() - 2];
    Ok(Some(match line[0] {
        b'+' => (Item::Text(text), line.len()),
        b':' => (Item::Number, line.len()),
        b'-' => (Item::Error, line.len()),
        b'$' if text == b"-1" => (Item::Nothing, line.len()),
        b'*' => (Item::Array(number(text)?), line.len()),
        b'$' => {
            let end = line.len() + number(text)?;
            if input.len() < end + 2 {
                return Ok(None);
            }
            (Item::Text(&input[line.len()..end]), end + 2)
        }
        _ => return Err(unexpected(line)),
    }))
}

/// The first line with its line break, if it is complete.
fn line(input: &[u8]) -> Option<&[u8]> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    Some(&input[..=end])
}

fn number(digits: &[u8]) -> io::Result<usize> {
    let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| unexpected(digits))
}

fn unexpected(input: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(&input[..input.len().min(100)]).into_owned();
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected input: {text:?}"))
}
