//! A broker that speaks the websocket protocol of middleman, which msgbusd does, too: docs/compatibility.md.

use std::{cell::RefCell, io, str};

use memchr::memmem;

use crate::{
    batches::Batches,
    frames::{Frame, Frames, write_text},
    http::UPGRADE,
    protocol::{Body, Follower, Outcome, Protocol, Received, Requester},
    response::unexpected,
    trace::Trace,
};

/// Clients that publish with PUB and follow with SUB; or ask with REQ and serve with EREQ. Every message is a frame.
///
/// A PUB is not answered. One more message follows each batch, a RES that answers no request: its error means that those
/// before it are done. The same follows a SUB.
#[derive(Debug, Clone)]
pub struct Middleman {
    /// The host and the port.
    pub host: String,
    /// Whether publishes are requests, which followers send back.
    pub asks: bool,
}

/// A reply to a request that nobody has sent.
const PROBE: &[u8] = b"RES probe\r\nrid: 0\r\n\r\n.\r\n";
const PROBE_ANSWER: &[u8] = b"PUB ERROR\r\n\r\nNo client for request ID ";

impl Middleman {
    /// The handshake and the key, which may be any if the server has none.
    fn open(&self) -> Vec<u8> {
        let mut open = format!("GET / HTTP/1.1\r\nHost: {}\r\n{UPGRADE}\r\n", self.host).into();
        write_text(b"any", &mut open);
        open
    }
}

impl Protocol for Middleman {
    fn requester(&self) -> Box<dyn Requester> {
        Box::new(Asking {
            open: self.open(),
            asks: self.asks,
            message: RefCell::default(),
            frames: Frames::default(),
            batches: RefCell::default(),
        })
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        let command = if self.asks { "EREQ" } else { "SUB" };
        let mut open = self.open();
        write_text(format!("{command} {topic}\r\n\r\n.\r\n").as_bytes(), &mut open);
        write_text(PROBE, &mut open);
        Box::new(Following {
            open,
            service: self.asks.then(|| topic.to_owned()),
            message: Vec::new(),
            frames: Frames::default(),
        })
    }
}

struct Asking {
    open: Vec<u8>,
    asks: bool,
    /// A reused buffer for one message.
    message: RefCell<Vec<u8>>,
    frames: Frames,
    /// The `ReqID` of a request is the number of its batch.
    batches: RefCell<Batches>,
}

impl Requester for Asking {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.open);
    }

    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let mut message = self.message.borrow_mut();
        let answers = if self.asks { body.messages().count() } else { 1 };
        let batch = self.batches.borrow_mut().begin(answers);
        let head = if self.asks {
            format!("REQ {topic}\r\nReqID: {batch}\r\n\r\n")
        } else {
            format!("PUB {topic}\r\n\r\n")
        };
        for payload in body.messages() {
            write(&head, payload, &mut message, out);
        }
        if !self.asks {
            write_text(PROBE, out);
        }
    }

    fn pull(&self, _: &str, _: &mut Vec<u8>) {
        unreachable!("a client of middleman does not pull");
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let Self { asks, frames, batches, .. } = self;
        let batches = batches.get_mut();
        frames.decode(input, |frame| match frame {
            // Requests keep the connection alive, so pings need no answer.
            Frame::Open | Frame::Ping(_) => Ok(()),
            Frame::Data(message) if message.starts_with(b"RES ") => {
                batches.reply(number(message, b"\r\nReqID: ")?, Outcome::Done, each)
            }
            Frame::Data(message) if message.starts_with(PROBE_ANSWER) && !*asks => {
                batches.reply(batches.oldest(), Outcome::Done, each)
            }
            Frame::Data(message) => greeting(message),
        })
    }
}

/// A subscriber, or a responder that sends bodies back.
struct Following {
    open: Vec<u8>,
    /// What it serves.
    service: Option<String>,
    /// A reused buffer for one message.
    message: Vec<u8>,
    frames: Frames,
}

impl Follower for Following {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.open);
    }

    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let Self { service, message, frames, .. } = self;
        frames.decode(input, |frame| {
            let Some(received) = frame.data(reply) else { return Ok(()) };
            if received.starts_with(PROBE_ANSWER) {
                each(Received::Ready);
                return Ok(());
            }
            match service {
                Some(service) if received.starts_with(b"REQ ") => {
                    let head = format!(
                        "RES {service}\r\nRid: {}\r\n\r\n",
                        number(received, b"\r\nRid: ")?
                    );
                    write(&head, body(received)?, message, reply);
                }
                None if received.starts_with(b"PUB ") && !received.starts_with(b"PUB ERROR") => {
                    each(Received::Message(Trace::read(body(received)?)));
                }
                _ => greeting(received)?,
            }
            Ok(())
        })
    }
}

/// Writes a message. Payloads are letters and digits, so they need no further dots.
fn write(head: &str, payload: &[u8], message: &mut Vec<u8>, out: &mut Vec<u8>) {
    message.clear();
    for part in [head.as_bytes(), payload, END] {
        message.extend_from_slice(part);
    }
    write_text(message, out);
}

/// The end of a message after its body.
const END: &[u8] = b"\r\n.\r\n";

fn body(message: &[u8]) -> io::Result<&[u8]> {
    let body = memmem::find(message, b"\r\n\r\n").map(|end| &message[end + 4..]);
    body.and_then(|body| body.strip_suffix(END)).ok_or_else(|| unexpected(message))
}

/// The value of a header that is a number.
fn number(message: &[u8], name: &[u8]) -> io::Result<u64> {
    let value = memmem::find(message, name).map(|at| &message[at + name.len()..]);
    let digits = value.and_then(|value| value.split(|byte| *byte == b'\r').next());
    let number = digits.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
    number.ok_or_else(|| unexpected(message))
}

/// Accepts only what confirms the key: the text, and the id of the connection.
fn greeting(message: &[u8]) -> io::Result<()> {
    let is_id = message.len() == 20 && message.iter().all(u8::is_ascii_alphanumeric);
    if message == b"MM OK" || is_id { Ok(()) } else { Err(unexpected(message)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn middleman(asks: bool) -> Middleman {
        Middleman { host: "h".to_owned(), asks }
    }

    fn frame(text: &str) -> Vec<u8> {
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        [&[0x81, 126], &length[..], text.as_bytes()].concat()
    }

    const OPEN: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    const ERROR: &str = "PUB ERROR\r\n\r\nNo client for request ID  RES probe\r\n.\r\n";

    #[test]
    fn a_batch_of_publishes_is_done_with_the_answer_to_what_follows_it() {
        let mut publisher = middleman(false).requester();
        let mut out = Vec::new();
        publisher.publish("t", Body::Lines(b"a\nb\n"), &mut out);
        let mut sent = Vec::new();
        for text in [&b"PUB t\r\n\r\na\r\n.\r\n"[..], b"PUB t\r\n\r\nb\r\n.\r\n", PROBE] {
            write_text(text, &mut sent);
        }
        assert_eq!(out, sent);
        let id = frame("0123456789abcdefghij");
        let input = [OPEN, &frame("MM OK"), &id, &frame(ERROR)].concat();
        let (mut outcomes, mut begin) = (Vec::new(), 0);
        for end in 1..=input.len() {
            let each = &mut |outcome| outcomes.push(outcome);
            begin += publisher.decode(&input[begin..end], each).unwrap();
        }
        assert_eq!(outcomes, [Outcome::Done]);
        publisher.decode(&frame(ERROR), &mut |_| ()).unwrap_err();
        publisher.decode(&frame("PUB ERROR\r\n\r\nno\r\n.\r\n"), &mut |_| ()).unwrap_err();
    }

    #[test]
    fn requests_are_sent_back_and_replies_belong_to_their_batch() {
        let mut responder = middleman(true).follower("s");
        let (mut out, mut received) = (Vec::new(), Vec::new());
        let request = "REQ s\r\nCid: c\r\nUid: \r\nRid: 7\r\nReqID: 0\r\n\r\nhi\r\n.\r\n";
        let input = [OPEN, &frame(ERROR), &frame(request)].concat();
        let used = responder.decode(&input, &mut out, &mut |what| received.push(what)).unwrap();
        assert_eq!((used, &*received), (input.len(), &[Received::Ready][..]));
        let mut reply = Vec::new();
        write_text(b"RES s\r\nRid: 7\r\n\r\nhi\r\n.\r\n", &mut reply);
        assert_eq!(out, reply);

        let mut asking = middleman(true).requester();
        asking.publish("s", Body::Lines(b"a\nb\n"), &mut out);
        let reply = frame("RES s\r\nCid: c\r\nUid: \r\nReqID: 0\r\n\r\na\r\n.\r\n");
        let mut outcomes = Vec::new();
        for expected in [&[][..], &[Outcome::Done]] {
            let input = if expected.is_empty() { [OPEN, &reply].concat() } else { reply.clone() };
            asking.decode(&input, &mut |outcome| outcomes.push(outcome)).unwrap();
            assert_eq!(outcomes, expected);
        }
    }

    #[test]
    fn a_subscriber_reads_the_trace_of_a_body() {
        let trace = Trace { publisher: 1, sequence: 2, time: 3 };
        let mut payload = [b'x'; 64];
        trace.write(&mut payload);
        let payload = str::from_utf8(&payload).unwrap();
        let message = frame(&format!("PUB t\r\nCid: c\r\nUid: \r\n\r\n{payload}\r\n.\r\n"));
        let mut subscriber = middleman(false).follower("t");
        let (mut out, mut received) = (Vec::new(), Vec::new());
        let input = [OPEN, &message].concat();
        subscriber.decode(&input, &mut out, &mut |what| received.push(what)).unwrap();
        assert_eq!(received, [Received::Message(Some(trace))]);
        let missed = frame("PUB ERROR\r\n\r\nSUB t: 5 messages were missed\r\n.\r\n");
        subscriber.decode(&missed, &mut out, &mut |_| ()).unwrap_err();
    }
}
