//! Requests and replies of NATS core.

use std::{cell::RefCell, io, str};

use msgbus_load::{Batches, Body, Follower, Outcome, Protocol, Received, Requester};

use super::{jetstream::inbox, line, number, unexpected};

/// Requesters, each with one subscription for all replies and a subject of its own for each request, as the clients of
/// NATS do it. Followers serve a subject. <https://docs.nats.io/nats-concepts/core-nats/reqreply>
#[derive(Debug)]
pub(in crate::compare) struct NatsRequests;

impl Protocol for NatsRequests {
    fn requester(&self) -> Box<dyn Requester> {
        Box::new(Asking { inbox: inbox(), batches: RefCell::default() })
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        Box::new(Serving { subject: topic.to_owned() })
    }
}

/// Without a responder, a request is answered at once, with an HMSG.
const CONNECT: &str =
    "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n";

struct Asking {
    /// What the subjects of all replies begin with. The number of the batch and that of the request follow.
    inbox: String,
    batches: RefCell<Batches>,
}

impl Requester for Asking {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{CONNECT}SUB {}.> 1\r\n", self.inbox).as_bytes());
    }

    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let batch = self.batches.borrow_mut().begin(body.messages().count());
        for (index, payload) in body.messages().enumerate() {
            let reply = format!("{}.{batch}.{index}", self.inbox);
            publish(topic, &reply, payload, out);
        }
    }

    fn pull(&self, _: &str, _: &mut Vec<u8>) {
        unreachable!("NATS core stores no messages to pull");
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let Self { inbox, batches } = self;
        let batches = batches.get_mut();
        let mut used = 0;
        while let Some((said, length)) = next(&input[used..])? {
            if let Said::Message { subject, .. } = said {
                let number = subject.strip_prefix(&**inbox).and_then(|rest| rest.split('.').nth(1));
                let number = number.and_then(|number| number.parse().ok());
                let number = number.ok_or_else(|| unexpected(subject.as_bytes()))?;
                batches.reply(number, Outcome::Done, each)?;
            }
            used += length;
        }
        Ok(used)
    }
}

/// A responder that sends payloads back.
struct Serving {
    subject: String,
}

impl Follower for Serving {
    /// Services share the requests in a group.
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            format!("{CONNECT}SUB {} bench 1\r\nPING\r\n", self.subject).as_bytes(),
        );
    }

    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let mut used = 0;
        while let Some((said, length)) = next(&input[used..])? {
            match said {
                Said::Message { subject, reply: None, .. } => {
                    return Err(unexpected(subject.as_bytes()));
                }
                Said::Message { reply: Some(subject), payload, .. } => {
                    publish(subject, "", payload, reply);
                }
                Said::Ping => reply.extend_from_slice(b"PONG\r\n"),
                Said::Pong => each(Received::Ready),
                Said::Other => {}
            }
            used += length;
        }
        Ok(used)
    }
}

/// Publishes. The subject of the reply may be empty.
fn publish(subject: &str, reply: &str, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("PUB {subject} {reply} {}\r\n", payload.len()).as_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

enum Said<'a> {
    Message { subject: &'a str, reply: Option<&'a str>, payload: &'a [u8] },
    Ping,
    Pong,
    Other,
}

/// The first thing that a server says, with its length in bytes, if it is complete.
fn next(input: &[u8]) -> io::Result<Option<(Said<'_>, usize)>> {
    let Some(line) = line(input) else { return Ok(None) };
    let mut words = str::from_utf8(line).unwrap_or_default().split_ascii_whitespace();
    let (subject, reply, size) = match words.next() {
        Some("INFO") => return Ok(Some((Said::Other, line.len()))),
        Some("PING") => return Ok(Some((Said::Ping, line.len()))),
        Some("PONG") => return Ok(Some((Said::Pong, line.len()))),
        // The subject, the number of the subscription, the subject of the reply if there is one, and the size.
        Some("MSG") => match (words.next(), words.next(), words.next(), words.next()) {
            (Some(subject), Some(_), Some(reply), Some(size)) => (subject, Some(reply), size),
            (Some(subject), Some(_), Some(size), None) => (subject, None, size),
            _ => return Err(unexpected(line)),
        },
        _ => return Err(unexpected(line)),
    };
    let end = line.len() + number(size.as_bytes())?;
    let said = |payload| (Said::Message { subject, reply, payload }, end + 2);
    // The line break after the payload has to be there, too.
    Ok(input.get(..end + 2).map(|whole| said(&whole[line.len()..end])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_belongs_to_the_batch_in_its_subject() {
        let mut asking = Asking { inbox: "_INBOX.b.1".to_owned(), batches: RefCell::default() };
        let mut out = Vec::new();
        asking.publish("s", Body::Lines(b"x\ny\n"), &mut out);
        assert_eq!(out, b"PUB s _INBOX.b.1.0.0 1\r\nx\r\nPUB s _INBOX.b.1.0.1 1\r\ny\r\n");
        let input =
            b"INFO {}\r\nMSG _INBOX.b.1.0.1 1 1\r\ny\r\nPING\r\nMSG _INBOX.b.1.0.0 1 1\r\nx\r\n";
        let (mut outcomes, mut begin) = (Vec::new(), 0);
        for end in 1..=input.len() {
            assert_eq!(outcomes, []);
            let each = &mut |outcome| outcomes.push(outcome);
            begin += asking.decode(&input[begin..end], each).unwrap();
        }
        assert_eq!(outcomes, [Outcome::Done]);
        let nobody = b"HMSG _INBOX.b.1.1.0 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";
        asking.decode(nobody, &mut |_| ()).unwrap_err();
    }

    #[test]
    fn a_responder_sends_payloads_back() {
        let mut responder = Serving { subject: "s".to_owned() };
        let (mut out, mut received) = (Vec::new(), Vec::new());
        let input = b"INFO {}\r\nPONG\r\nPING\r\nMSG s 1 _INBOX.b.1.0.0 3\r\nx\ny\r\n";
        let used = responder.decode(input, &mut out, &mut |what| received.push(what)).unwrap();
        assert_eq!((used, &*received), (input.len(), &[Received::Ready][..]));
        assert_eq!(out, b"PONG\r\nPUB _INBOX.b.1.0.0  3\r\nx\ny\r\n");
        responder.decode(b"MSG s 1 0\r\n\r\n", &mut out, &mut |_| ()).unwrap_err();
    }
}
