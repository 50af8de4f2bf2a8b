//! A peer that speaks the commands of drs, which msgbusd does, too: docs/compatibility.md.

use std::{cell::RefCell, io, str};

use memchr::{memchr, memmem};

use crate::{
    batches::Batches,
    frames::{Frames, write_text},
    http::UPGRADE,
    protocol::{Body, Follower, Outcome, Protocol, Received, Requester},
    response::unexpected,
};

/// Peers that call a service, and peers that handle its calls and send their bodies back.
#[derive(Debug, Clone)]
pub struct Drs {
    /// The host and the port.
    pub host: String,
    /// Whether the commands are in frames of a websocket, each in one of its own; else they follow each other.
    pub has_frames: bool,
}

impl Drs {
    fn wire(&self) -> Wire {
        let open = format!("GET /socket HTTP/1.1\r\nHost: {}\r\n{UPGRADE}\r\n", self.host);
        Wire { handshake: self.has_frames.then_some(open), frames: Frames::default() }
    }
}

impl Protocol for Drs {
    fn requester(&self) -> Box<dyn Requester> {
        Box::new(Calling {
            wire: self.wire(),
            command: RefCell::default(),
            batches: RefCell::default(),
        })
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        Box::new(Handling { wire: self.wire(), service: topic.to_owned(), command: Vec::new() })
    }
}

/// How commands travel.
struct Wire {
    /// That of a websocket; a stream has none.
    handshake: Option<String>,
    frames: Frames,
}

impl Wire {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.handshake.as_deref().unwrap_or_default().as_bytes());
    }

    fn write(&self, command: &[u8], out: &mut Vec<u8>) {
        match self.handshake {
            Some(_) => write_text(command, out),
            None => out.extend_from_slice(command),
        }
    }

    /// Passes each complete command to `each`. Pings are answered in `reply`.
    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        mut each: impl FnMut(&[u8], &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<usize> {
        if self.handshake.is_some() {
            return self.frames.decode(input, |frame| match frame.data(reply) {
                Some(command) => each(command, reply),
                None => Ok(()),
            });
        }
        let mut used = 0;
        while let Some(end) = memchr(b'\n', &input[used..]) {
            each(&input[used..used + end], reply)?;
            used += end + 1;
        }
        Ok(used)
    }
}

struct Calling {
    wire: Wire,
    /// A reused buffer for one command.
    command: RefCell<Vec<u8>>,
    /// The key of a call is the number of its batch.
    batches: RefCell<Batches>,
}

impl Requester for Calling {
    fn open(&self, out: &mut Vec<u8>) {
        self.wire.open(out);
    }

    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let batch = self.batches.borrow_mut().begin(body.messages().count());
        let head = format!("{{\"key\":\"{batch}\",\"action\":\"{topic}\",\"body\":\"");
        let mut command = self.command.borrow_mut();
        // Payloads are letters and digits, which need no escapes.
        for payload in body.messages() {
            command.clear();
            for part in [head.as_bytes(), payload, b"\"}\n"] {
                command.extend_from_slice(part);
            }
            self.wire.write(&command, out);
        }
    }

    fn pull(&self, _: &str, _: &mut Vec<u8>) {
        unreachable!("a peer of drs does not pull");
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let Self { wire, batches, .. } = self;
        let batches = batches.get_mut();
        // Calls keep the connection alive, so pings need no answer.
        wire.decode(input, &mut Vec::new(), |answer, _| {
            let batch = str::from_utf8(key(answer)?).ok().and_then(|key| key.parse().ok());
            let is_response = memmem::find(answer, RESPONSE).is_some();
            match batch.filter(|_| is_response) {
                Some(batch) => batches.reply(batch, Outcome::Done, each),
                None => Err(unexpected(answer)),
            }
        })
    }
}

const RESPONSE: &[u8] = b"\"action\":\"drs.response\"";

/// A handler that sends bodies back.
struct Handling {
    wire: Wire,
    service: String,
    /// A reused buffer for one command.
    command: Vec<u8>,
}

impl Follower for Handling {
    fn open(&self, out: &mut Vec<u8>) {
        self.wire.open(out);
        let serve =
            format!("{{\"key\":\"s\",\"action\":\"drs.serve\",\"body\":\"{}\"}}\n", self.service);
        self.wire.write(serve.as_bytes(), out);
    }

    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let Self { wire, command, .. } = self;
        let has_frames = wire.handshake.is_some();
        wire.decode(input, reply, |call, reply| {
            if memmem::find(call, RESPONSE).is_some() {
                each(Received::Ready);
                return Ok(());
            }
            command.clear();
            for part in [b"{\"key\":\"", key(call)?, b"\",", RESPONSE, b",", body(call)?, b"\n"] {
                command.extend_from_slice(part);
            }
            if has_frames {
                write_text(command, reply);
            } else {
                reply.extend_from_slice(command);
            }
            Ok(())
        })
    }
}

/// The value of the key. Those of the server and of this crate have no escapes.
fn key(command: &[u8]) -> io::Result<&[u8]> {
    let rest = command.strip_prefix(b"{\"key\":\"");
    let key = rest.and_then(|rest| rest.get(..memchr(b'"', rest)?));
    key.ok_or_else(|| unexpected(command))
}

/// The body with its name, and the end of the command.
fn body(command: &[u8]) -> io::Result<&[u8]> {
    let begin = memmem::find(command, b"\"body\":").ok_or_else(|| unexpected(command))?;
    Ok(command[begin..].trim_ascii_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drs(has_frames: bool) -> Drs {
        Drs { host: "h".to_owned(), has_frames }
    }

    #[test]
    fn calls_of_a_batch_are_answered_in_any_pieces() {
        let mut caller = drs(false).requester();
        let mut out = Vec::new();
        caller.open(&mut out);
        caller.publish("s", Body::Lines(b"a\nb\n"), &mut out);
        let call = |body| format!("{{\"key\":\"0\",\"action\":\"s\",\"body\":\"{body}\"}}\n");
        assert_eq!(String::from_utf8(out).unwrap(), call("a") + &call("b"));
        let answer = "{\"key\":\"0\",\"action\":\"drs.response\",\"body\":\"a\"}\n".repeat(2);
        let (mut outcomes, mut begin) = (Vec::new(), 0);
        for end in 1..=answer.len() {
            let each = &mut |outcome| outcomes.push(outcome);
            begin += caller.decode(&answer.as_bytes()[begin..end], each).unwrap();
        }
        assert_eq!(outcomes, [Outcome::Done]);
        let failed = b"{\"key\":\"0\",\"action\":\"drs.error\",\"body\":{\"message\":\"no\"}}\n";
        caller.decode(failed, &mut |_| ()).unwrap_err();
    }

    #[test]
    fn a_handler_sends_bodies_back_in_frames_or_without() {
        let serve = b"{\"key\":\"s\",\"action\":\"drs.serve\",\"body\":\"n\"}\n";
        let ready = b"{\"key\":\"s\",\"action\":\"drs.response\"}\n";
        let call = b"{\"key\":\"k\",\"action\":\"n\",\"body\":\"x\"}\n";
        let answer = b"{\"key\":\"k\",\"action\":\"drs.response\",\"body\":\"x\"}\n";
        for has_frames in [true, false] {
            let mut handler = drs(has_frames).follower("n");
            let mut out = Vec::new();
            handler.open(&mut out);
            assert_eq!(out.starts_with(b"GET /socket HTTP/1.1\r\nHost: h\r\n"), has_frames);
            assert!(out.ends_with(serve));
            let mut input = Vec::new();
            if has_frames {
                input.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
            }
            for command in [&ready[..], call] {
                if has_frames {
                    input.extend_from_slice(&[0x81, u8::try_from(command.len()).unwrap()]);
                }
                input.extend_from_slice(command);
            }
            let (mut reply, mut received) = (Vec::new(), Vec::new());
            let used = handler.decode(&input, &mut reply, &mut |what| received.push(what)).unwrap();
            assert_eq!((used, &*received), (input.len(), &[Received::Ready][..]));
            assert_eq!(reply.len(), answer.len() + if has_frames { 6 } else { 0 });
            assert!(reply.ends_with(answer));
        }
    }
}
