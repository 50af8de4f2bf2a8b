//! HTTP connections that stay open without being a websocket: streams, and idle keep-alive connections.

use std::io;

use crate::{
    http::Http,
    protocol::{Follower, Protocol, Received, Requester},
    response::{ResponseHead, invalid},
};

/// What an open connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Server-sent events.
    Sse,
    /// Lines of JSON (NDJSON).
    Ndjson,
    /// The next request: a keep-alive connection after its first request.
    NextRequest,
}

/// A msgbus server with idle followers. They do not parse messages, so topics must be empty.
#[derive(Debug)]
pub struct Streaming {
    /// The server.
    pub http: Http,
    /// What each follower's connection waits for.
    pub waiting: Waiting,
}

impl Protocol for Streaming {
    fn encode_topic(&self, topic: &str) -> String {
        self.http.encode_topic(topic)
    }

    fn requester(&self) -> Box<dyn Requester> {
        self.http.requester()
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        let query = match self.waiting {
            Waiting::Sse => "?stream=sse",
            Waiting::Ndjson => "?stream=ndjson",
            Waiting::NextRequest => "",
        };
        let request = format!("GET {topic}{query} HTTP/1.1\r\n{}\r\n", self.http.headers());
        Box::new(IdleFollower { request, waiting: self.waiting, is_open: false })
    }
}

struct IdleFollower {
    request: String,
    waiting: Waiting,
    is_open: bool,
}

impl Follower for IdleFollower {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.request.as_bytes());
    }

    fn decode(
        &mut self,
        input: &[u8],
        _: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        if self.is_open {
            // Keep-alive data of a stream.
            return Ok(input.len());
        }
        let Some(head) = ResponseHead::parse(input)? else { return Ok(0) };
        // A pull from an empty topic is answered with 404, and the connection stays open.
        let is_right = head.status() == 200
            || self.waiting == Waiting::NextRequest && matches!(head.status(), 204 | 404);
        if !is_right {
            return Err(invalid(format!("the server answered {}", head.status())));
        }
        if self.waiting == Waiting::NextRequest
            && input.len() < head.length() + head.body_length()?
        {
            return Ok(0);
        }
        self.is_open = true;
        each(Received::Ready);
        Ok(input.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(waiting: Waiting, responses: &[&str]) -> io::Result<Vec<Received>> {
        let http = Http { host: "h".to_owned(), ..Http::default() };
        let mut follower = Streaming { http, waiting }.follower("/t");
        let (mut tally_of_all, mut rest) = (Vec::new(), Vec::new());
        for part in responses {
            rest.extend_from_slice(part.as_bytes());
            let used =
                follower.decode(&rest, &mut Vec::new(), &mut |what| tally_of_all.push(what))?;
            rest.drain(..used);
        }
        Ok(tally_of_all)
    }

    #[test]
    fn a_stream_is_open_with_its_head() {
        let parts = ["HTTP/1.1 200 OK\r\n", "\r\n", "2\r\n:\n\r\n", "2\r\n:\n\r\n"];
        assert_eq!(received(Waiting::Sse, &parts).unwrap(), [Received::Ready]);
        assert!(received(Waiting::Ndjson, &["HTTP/1.1 404 Not Found\r\n\r\n"]).is_err());
    }

    #[test]
    fn a_connection_is_idle_when_its_request_was_answered() {
        let parts = ["HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nn", "o\n"];
        assert_eq!(received(Waiting::NextRequest, &parts[..1]).unwrap(), []);
        assert_eq!(received(Waiting::NextRequest, &parts).unwrap(), [Received::Ready]);
    }
}
