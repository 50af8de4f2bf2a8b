//! Requests to a service over `msgbus.v1`, and a responder. docs/protocol.md, 16.9.

use std::{cell::RefCell, io, str};

use memchr::memmem::{self, Finder};

use crate::{
    batches::Batches,
    frames::{Frame, Frames, write_text},
    http::Http,
    protocol::{Body, Follower, Outcome, Protocol, Received, Requester},
    response::invalid,
    services::{TOKEN, field},
    v1::{Line, handshake, in_json, lines},
};

/// A msgbus server whose requesters ask services, and whose followers serve them, over `msgbus.v1`. A topic is the name of
/// a service.
///
/// A batch is a frame with a request for each message, and is done when all replies are there. A follower replies to all
/// requests of a frame with one frame.
#[derive(Debug, Clone)]
pub struct ServicesV1(pub Http);

impl Protocol for ServicesV1 {
    fn encode_topic(&self, topic: &str) -> String {
        in_json(topic)
    }

    fn requester(&self) -> Box<dyn Requester> {
        Box::new(Asking {
            handshake: handshake(&self.0),
            frame: RefCell::default(),
            frames: Frames::default(),
            batches: RefCell::default(),
        })
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        let mut open = handshake(&self.0).into_bytes();
        let serve = format!(
            "{{\"op\":\"serve\",\"rid\":0,\"sid\":0,\"service\":{topic},\"max\":{MOST},\"payload\":\"text\"}}\n"
        );
        write_text(serve.as_bytes(), &mut open);
        Box::new(Serving {
            open,
            frames: Frames::default(),
            frame: Vec::new(),
            token: Finder::new(TOKEN),
            text: Finder::new(b"\"text\":\""),
        })
    }
}

/// How many requests a responder has at a time: as many as may wait of a service.
const MOST: usize = 1024;

struct Asking {
    handshake: String,
    /// A reused buffer for the content of one frame.
    frame: RefCell<Vec<u8>>,
    frames: Frames,
    /// The `rid` of a request is the number of its batch.
    batches: RefCell<Batches>,
}

impl Requester for Asking {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.handshake.as_bytes());
    }

    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let batch = self.batches.borrow_mut().begin(body.messages().count());
        let head = format!(
            "{{\"op\":\"request\",\"rid\":{batch},\"service\":{topic},\"payload\":\"text\",\"text\":\""
        );
        let mut frame = self.frame.borrow_mut();
        frame.clear();
        // Payloads are letters and digits, which need no escapes.
        for payload in body.messages() {
            for part in [head.as_bytes(), payload, b"\"}\n"] {
                frame.extend_from_slice(part);
            }
        }
        write_text(&frame, out);
    }

    fn pull(&self, _: &str, _: &mut Vec<u8>) {
        unreachable!("a service keeps no messages to pull");
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let Self { frames, batches, .. } = self;
        let batches = batches.get_mut();
        frames.decode(input, |frame| match frame {
            // Requests keep the connection alive, so pings need no answer.
            Frame::Open | Frame::Ping(_) => Ok(()),
            Frame::Data(content) => lines(content).try_for_each(|line| {
                let (batch, outcome) = answer(line)?;
                batches.reply(batch, outcome, each)
            }),
        })
    }
}

/// The `rid` and the outcome of an answer.
fn answer(line: &[u8]) -> io::Result<(u64, Outcome)> {
    let (rid, outcome) = match line.strip_prefix(b"{\"op\":\"ok\",\"rid\":") {
        Some(rest) => {
            let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
            (str::from_utf8(&rest[..end]).ok().and_then(|rid| rid.parse().ok()), Outcome::Done)
        }
        None => (Line::read(line)?.rid, Outcome::Refused),
    };
    Ok((rid.ok_or_else(|| invalid("an answer without rid"))?, outcome))
}

/// A responder that sends payloads back.
struct Serving {
    open: Vec<u8>,
    frames: Frames,
    /// A reused buffer for the content of one frame.
    frame: Vec<u8>,
    token: Finder<'static>,
    text: Finder<'static>,
}

impl Follower for Serving {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.open);
    }

    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let Self { frames, frame: replies, token, text, .. } = self;
        frames.decode(input, |frame| {
            let Some(content) = frame.data(reply) else { return Ok(()) };
            replies.clear();
            for line in lines(content) {
                if line.starts_with(b"{\"op\":\"request\"") {
                    // A reply is answered only if it is refused.
                    for part in [
                        b"{\"op\":\"reply\",\"token\":\"",
                        field(line, token)?,
                        b"\",\"text\":\"",
                        field(line, text)?,
                        b"\"}\n",
                    ] {
                        replies.extend_from_slice(part);
                    }
                } else if line.starts_with(b"{\"op\":\"ok\"") {
                    each(Received::Ready);
                } else if memmem::find(line, b"\"code\":\"reply_not_wanted\"").is_none() {
                    return Err(invalid(String::from_utf8_lossy(line).into_owned()));
                }
            }
            if !replies.is_empty() {
                write_text(replies, reply);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> ServicesV1 {
        ServicesV1(Http { host: "h".to_owned(), ..Http::default() })
    }

    fn frame(text: &str) -> Vec<u8> {
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        [&[0x81, 126], &length[..], text.as_bytes()].concat()
    }

    const OPEN: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

    #[test]
    fn a_batch_is_done_when_all_of_its_replies_are_there() {
        let mut asking = services().requester();
        let mut out = Vec::new();
        asking.publish("\"s\"", Body::Lines(b"a\nb\n"), &mut out);
        let line = |text| {
            format!(
                "{{\"op\":\"request\",\"rid\":0,\"service\":\"s\",\"payload\":\"text\",\"text\":\"{text}\"}}\n"
            )
        };
        assert!(out.ends_with((line("a") + &line("b")).as_bytes()));
        asking.publish("\"s\"", Body::Message(b"c"), &mut out);
        let busy = "{\"op\":\"error\",\"rid\":0,\"of\":\"request\",\"code\":\"no_responder\",\"retry_after\":1}\n";
        let input = [
            OPEN,
            &frame("{\"op\":\"ok\",\"rid\":1,\"text\":\"c\"}\n"),
            &frame(&format!("{{\"op\":\"ok\",\"rid\":0,\"text\":\"a\"}}\n{busy}")),
        ]
        .concat();
        let (mut outcomes, mut begin) = (Vec::new(), 0);
        for end in 1..=input.len() {
            let each = &mut |outcome| outcomes.push(outcome);
            begin += asking.decode(&input[begin..end], each).unwrap();
        }
        assert_eq!(outcomes, [Outcome::Refused, Outcome::Done]);
        asking.decode(&frame("{\"op\":\"ok\",\"rid\":1}\n"), &mut |_| ()).unwrap_err();
    }

    #[test]
    fn the_requests_of_a_frame_are_answered_with_one_frame() {
        let mut responder = services().follower("\"s\"");
        let request = |token, text| {
            format!(
                "{{\"op\":\"request\",\"sid\":0,\"reply\":\"{token}\",\"timeout\":\"5s\",\"text\":\"{text}\"}}\n"
            )
        };
        let not_wanted =
            "{\"op\":\"error\",\"of\":\"reply\",\"code\":\"reply_not_wanted\",\"text\":\"\"}\n";
        let input = [
            OPEN,
            &frame("{\"op\":\"ok\",\"rid\":0,\"sid\":0}\n"),
            &frame(&(request("t1", "a") + &request("t2", ""))),
            &frame(not_wanted),
        ]
        .concat();
        let (mut out, mut received) = (Vec::new(), Vec::new());
        let used = responder.decode(&input, &mut out, &mut |what| received.push(what)).unwrap();
        assert_eq!((used, &*received), (input.len(), &[Received::Ready][..]));
        let content = "{\"op\":\"reply\",\"token\":\"t1\",\"text\":\"a\"}\n\
                       {\"op\":\"reply\",\"token\":\"t2\",\"text\":\"\"}\n";
        assert_eq!(out[..2], [0x81, 0x80 | u8::try_from(content.len()).unwrap()]);
        assert_eq!(&out[6..], content.as_bytes());
        let end = frame("{\"op\":\"end\",\"sid\":0,\"reason\":\"closed\"}\n");
        responder.decode(&end, &mut out, &mut |_| ()).unwrap_err();
    }
}
