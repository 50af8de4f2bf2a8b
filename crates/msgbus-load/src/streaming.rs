//! Connections of HTTP that stay open without being a websocket: streams, and keep-alive connections
//! on which nothing is asked.

use std::io;

use crate::{
    http::Http,
    protocol::{Follower, Heard, Protocol, Requester},
    response::{ResponseHead, invalid},
};

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Server-sent events.
    Sse,
    /// Lines of JSON.
    Ndjson,
    /// Its next request: the connection is kept alive after a first one.
    NextRequest,
}

/// A msgbus server whose followers hold a connection open and are not sent anything: what they receive
/// is not parsed, so this is for idle connections only.
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
        Box::new(Idler { request, waiting: self.waiting, is_open: false })
    }
}

struct Idler {
    request: String,
    waiting: Waiting,
    is_open: bool,
}

impl Follower for Idler {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.request.as_bytes());
    }

    fn hear(
        &mut self,
        input: &[u8],
        _: &mut Vec<u8>,
        each: &mut dyn FnMut(Heard),
    ) -> io::Result<usize> {
        if self.is_open {
            // Keep-alives of a stream.
            return Ok(input.len());
        }
        let Some(head) = ResponseHead::parse(input)? else { return Ok(0) };
        // There is nothing to pull from an empty topic, and the connection stays.
        let is_right = head.status() == 200
            || self.waiting == Waiting::NextRequest && matches!(head.status(), 204 | 404);
        if !is_right {
            return Err(invalid(format!("the server answers {}", head.status())));
        }
        if self.waiting == Waiting::NextRequest
            && input.len() < head.length() + head.body_length()?
        {
            return Ok(0);
        }
        self.is_open = true;
        each(Heard::Ready);
        Ok(input.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(waiting: Waiting, responses: &[&str]) -> io::Result<Vec<Heard>> {
        let http = Http { host: "h".to_owned(), ..Http::default() };
        let mut follower = Streaming { http, waiting }.follower("/t");
        let (mut heard, mut rest) = (Vec::new(), Vec::new());
        for part in responses {
            rest.extend_from_slice(part.as_bytes());
            let used = follower.hear(&rest, &mut Vec::new(), &mut |what| heard.push(what))?;
            rest.drain(..used);
        }
        Ok(heard)
    }

    #[test]
    fn a_stream_is_open_with_its_head() {
        let parts = ["HTTP/1.1 200 OK\r\n", "\r\n", "2\r\n:\n\r\n", "2\r\n:\n\r\n"];
        assert_eq!(heard(Waiting::Sse, &parts).unwrap(), [Heard::Ready]);
        assert!(heard(Waiting::Ndjson, &["HTTP/1.1 404 Not Found\r\n\r\n"]).is_err());
    }

    #[test]
    fn a_connection_is_idle_when_its_request_was_answered() {
        let parts = ["HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nn", "o\n"];
        assert_eq!(heard(Waiting::NextRequest, &parts[..1]).unwrap(), []);
        assert_eq!(heard(Waiting::NextRequest, &parts).unwrap(), [Heard::Ready]);
    }
}
