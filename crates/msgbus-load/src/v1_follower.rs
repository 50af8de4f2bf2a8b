//! Subscribers that use `msgbus.v1`. docs/protocol.md, section 16.

use std::io;

use memchr::memmem::Finder;

use crate::{
    frames::{Frames, write_text},
    http::{Http, trace_in},
    protocol::{Follower, Protocol, Received, Requester},
    response::invalid,
    v1::{handshake, lines},
};

/// A msgbus server whose followers subscribe over `msgbus.v1`. Requests are those of [`Http`].
#[derive(Debug, Clone)]
pub struct FollowV1 {
    /// The server.
    pub http: Http,
    /// The number of subscriptions of each connection: one to the topic, and the others to `topic/1` and so on.
    pub subscriptions: usize,
}

impl Protocol for FollowV1 {
    fn encode_topic(&self, topic: &str) -> String {
        self.http.encode_topic(topic)
    }

    fn requester(&self) -> Box<dyn Requester> {
        self.http.requester()
    }

    /// The topics of this crate need no encoding, neither in a path nor in JSON.
    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        let topic = topic.trim_start_matches('/');
        let mut open = handshake(&self.http).into_bytes();
        let mut frame = String::new();
        for sid in (0..self.subscriptions).rev() {
            // Only the last one is answered.
            let (rid, end) =
                if sid == 0 { ("\"rid\":0,", String::new()) } else { ("", format!("/{sid}")) };
            frame.push_str(&format!(
                "{{\"op\":\"sub\",{rid}\"sid\":{sid},\"topic\":\"{topic}{end}\"}}\n"
            ));
        }
        write_text(frame.as_bytes(), &mut open);
        let payload = Finder::new(b"\"payload\":\"");
        Box::new(Subscriber { open, frames: Frames::default(), payload })
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
        frames.decode(input, |frame| {
            let Some(content) = frame.data(reply) else { return Ok(()) };
            for line in lines(content) {
                if line.starts_with(b"{\"op\":\"msg\"") {
                    each(Received::Message(trace_in(line, payload)));
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
