//! Redis streams with a consumer group.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use msgbus_load::{Body, Follower, Outcome, Protocol, Received, Requester, Step, Trace, Worker};

use super::{
    redis::{Item, command, item},
    unexpected,
};

/// The consumer group of all workers.
const GROUP: &str = "bench";

/// A stream, whose entries are taken with XREADGROUP and acknowledged with XACK.
/// <https://redis.io/docs/latest/develop/data-types/streams/>
#[derive(Debug)]
pub(in crate::compare) struct RedisStream {
    /// About how many messages a stream keeps. `None`: all.
    pub(in crate::compare) max_messages: Option<u32>,
}

impl Protocol for RedisStream {
    fn requester(&self) -> Box<dyn Requester> {
        Box::new(Publisher { max_messages: self.max_messages })
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        Box::new(Reader { topic: topic.to_owned(), is_ready: false })
    }

    fn worker(&self) -> Option<Box<dyn Worker>> {
        static WORKERS: AtomicU64 = AtomicU64::new(0);
        Some(Box::new(Consumer {
            name: format!("worker-{}", WORKERS.fetch_add(1, Relaxed)),
            topic: String::new(),
            entries: Vec::new(),
            creating: false,
            is_acking: false,
        }))
    }

    fn publishes_lines(&self) -> bool {
        false
    }
}

struct Publisher {
    max_messages: Option<u32>,
}

impl Requester for Publisher {
    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let (Body::Message(bytes) | Body::Lines(bytes)) = body;
        match self.max_messages {
            None => command(&[b"XADD", topic.as_bytes(), b"*", b"p", bytes], out),
            Some(most) => {
                let most = most.to_string();
                let (topic, most) = (topic.as_bytes(), most.as_bytes());
                command(&[b"XADD", topic, b"MAXLEN", b"~", most, b"*", b"p", bytes], out);
            }
        }
    }

    fn pull(&self, _: &str, _: &mut Vec<u8>) {
        unreachable!("a pull takes two requests");
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let mut used = 0;
        while let Some((item, length)) = item(&input[used..])? {
            each(match item {
                Item::Text(_) => Outcome::Done,
                Item::Error => Outcome::Refused,
                _ => return Err(unexpected(&input[used..])),
            });
            used += length;
        }
        Ok(used)
    }
}

/// A follower: it waits for what comes after the last entry that it has.
struct Reader {
    topic: String,
    is_ready: bool,
}

impl Reader {
    fn read_after(&self, id: &[u8], out: &mut Vec<u8>) {
        let topic = self.topic.as_bytes();
        command(&[b"XREAD", b"BLOCK", b"0", b"COUNT", b"1000", b"STREAMS", topic, id], out);
    }
}

impl Follower for Reader {
    fn open(&self, out: &mut Vec<u8>) {
        // When the first is answered, the second is under way.
        command(&[b"PING"], out);
        self.read_after(b"$", out);
    }

    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let Some((first, length)) = item(input)? else { return Ok(0) };
        match first {
            Item::Text(b"PONG") if !self.is_ready => {
                self.is_ready = true;
                each(Received::Ready);
                Ok(length)
            }
            Item::Array(streams) => {
                let Some((entries, more)) = entries(&input[length..], streams)? else {
                    return Ok(0);
                };
                for (_, payload) in &entries {
                    each(Received::Message(Trace::read(payload)));
                }
                if let Some((last, _)) = entries.last() {
                    self.read_after(last, reply);
                }
                Ok(length + more)
            }
            _ => Err(unexpected(input)),
        }
    }
}

struct Consumer {
    name: String,
    topic: String,
    /// The ids of the entries of the last response.
    entries: Vec<Vec<u8>>,
    /// Whether the response to XGROUP comes first.
    creating: bool,
    is_acking: bool,
}

impl Worker for Consumer {
    fn take(&mut self, topic: &str, most: usize, out: &mut Vec<u8>) {
        if self.topic != topic {
            topic.clone_into(&mut self.topic);
            self.creating = true;
            // An error if another worker was first.
            command(
                &[b"XGROUP", b"CREATE", topic.as_bytes(), GROUP.as_bytes(), b"0", b"MKSTREAM"],
                out,
            );
        }
        let count = most.to_string();
        let (name, topic) = (self.name.as_bytes(), topic.as_bytes());
        let words: [&[u8]; 9] = [
            b"XREADGROUP",
            b"GROUP",
            GROUP.as_bytes(),
            name,
            b"COUNT",
            count.as_bytes(),
            b"STREAMS",
            topic,
            b">",
        ];
        command(&words, out);
        self.is_acking = false;
    }

    fn ack(&mut self, out: &mut Vec<u8>) {
        let mut words: Vec<&[u8]> = vec![b"XACK", self.topic.as_bytes(), GROUP.as_bytes()];
        words.extend(self.entries.iter().map(Vec::as_slice));
        command(&words, out);
        self.is_acking = true;
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Step)) -> io::Result<usize> {
        let mut used = 0;
        if self.creating {
            match item(input)? {
                Some((Item::Text(_) | Item::Error, length)) => used = length,
                Some(_) => return Err(unexpected(input)),
                None => return Ok(0),
            }
            self.creating = false;
        }
        let Some((first, length)) = item(&input[used..])? else { return Ok(used) };
        let rest = &input[used + length..];
        match first {
            Item::Number if self.is_acking => each(Step::Done(self.entries.len() as u64)),
            Item::Nothing if !self.is_acking => each(Step::Empty),
            Item::Array(streams) if !self.is_acking => {
                let Some((entries, length)) = entries(rest, streams)? else { return Ok(used) };
                self.entries = entries.into_iter().map(|(id, _)| id).collect();
                each(Step::Taken(self.entries.len() as u64));
                used += length;
            }
            _ => return Err(unexpected(input)),
        }
        Ok(used + length)
    }
}

/// The id and the payload of an entry.
type Entry = (Vec<u8>, Vec<u8>);

/// Parses the entries of all streams of a response, if it is complete: `streams` arrays of a name and of entries,
/// which are arrays of an id and of fields. Returns the ids with the last value of each, and the length in bytes.
fn entries(input: &[u8], streams: usize) -> io::Result<Option<(Vec<Entry>, usize)>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut at = 0;
    // How many items are left at each level.
    let mut levels = vec![streams];
    while let Some(left) = levels.last_mut() {
        if *left == 0 {
            levels.pop();
            continue;
        }
        *left -= 1;
        let is_id = levels.len() == 4 && levels[3] == 1;
        let Some((item, length)) = item(&input[at..])? else { return Ok(None) };
        at += length;
        match item {
            Item::Array(count) => levels.push(count),
            Item::Text(text) if is_id => entries.push((text.to_vec(), Vec::new())),
            Item::Text(text) if levels.len() == 5 => {
                if let Some((_, value)) = entries.last_mut() {
                    *value = text.to_vec();
                }
            }
            _ => {}
        }
    }
    Ok(Some((entries, at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_a_complete_response() {
        let response = b"*1\r\n*2\r\n$1\r\nt\r\n*2\r\n\
            *2\r\n$3\r\n1-0\r\n*2\r\n$1\r\np\r\n$1\r\nx\r\n\
            *2\r\n$3\r\n1-1\r\n*2\r\n$1\r\np\r\n$1\r\ny\r\n";
        let mut worker = RedisStream { max_messages: None }.worker().unwrap();
        let mut out = Vec::new();
        worker.take("t", 2, &mut out);
        let mut steps = Vec::new();
        // The response to the creation of the group comes first, alone or not.
        let both = [b"+OK\r\n", &response[..response.len() - 1]].concat();
        assert_eq!(worker.decode(&both, &mut |step| steps.push(step)).unwrap(), 5);
        for end in 0..response.len() {
            assert_eq!(worker.decode(&response[..end], &mut |step| steps.push(step)).unwrap(), 0);
        }
        let used = worker.decode(response, &mut |step| steps.push(step)).unwrap();
        assert_eq!((used, &*steps), (response.len(), &[Step::Taken(2)][..]));
        out.clear();
        worker.ack(&mut out);
        assert!(
            out.starts_with(b"*5\r\n$4\r\nXACK\r\n$1\r\nt\r\n"),
            "{}",
            String::from_utf8_lossy(&out)
        );
        worker.decode(b":2\r\n", &mut |step| steps.push(step)).unwrap();
        assert_eq!(steps.last(), Some(&Step::Done(2)));
    }
}
