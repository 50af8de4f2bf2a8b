//! Redis.

use std::io;

use msgbus_load::{Body, Follower, Outcome, Protocol, Received, Requester, Trace};

use super::{line, number, unexpected};

/// Redis: a list to push to and pop from, or a channel. <https://redis.io/docs/latest/develop/reference/protocol-spec/>
#[derive(Debug, Clone, Copy)]
pub(in crate::compare) enum Redis {
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

pub(super) fn command(words: &[&[u8]], out: &mut Vec<u8>) {
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
pub(super) enum Item<'a> {
    Text(&'a [u8]),
    Number,
    Nothing,
    Error,
    Array(usize),
}

/// Parses the first item, if it is complete. Returns it with its length in bytes.
pub(super) fn item(input: &[u8]) -> io::Result<Option<(Item<'_>, usize)>> {
    let Some(line) = line(input) else { return Ok(None) };
    let text = &line[1..line.len() - 2];
    Ok(Some(match line[0] {
        b'+' => (Item::Text(text), line.len()),
        b':' => (Item::Number, line.len()),
        b'-' => (Item::Error, line.len()),
        b'$' | b'*' if text == b"-1" => (Item::Nothing, line.len()),
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
