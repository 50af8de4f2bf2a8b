//! The protocol of msgbus for workers: leases of a group and their acknowledgements, or plain pulls.

use std::io;

use memchr::memmem::Finder;

use crate::{
    http::Http,
    protocol::{Follower, Protocol, Requester, Step, Worker},
    response::{ResponseHead, invalid},
};

/// The group of all workers.
const GROUP: &str = "bench";

/// Workers that pull without a group: there is nothing to acknowledge.
#[derive(Debug, Clone)]
pub struct PlainPulls(pub Http);

impl Protocol for PlainPulls {
    fn encode_topic(&self, topic: &str) -> String {
        self.0.encode_topic(topic)
    }

    fn requester(&self) -> Box<dyn Requester> {
        self.0.requester()
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        self.0.follower(topic)
    }

    fn worker(&self) -> Option<Box<dyn Worker>> {
        Some(Box::new(HttpWorker::new(self.0.headers(), false)))
    }
}

/// A worker of a group, or one that pulls plainly.
pub(crate) struct HttpWorker {
    headers: String,
    has_group: bool,
    /// The tokens of the last response, one in each line.
    tokens: Vec<u8>,
    count: u64,
    /// Whether the next response is the one to an acknowledgement.
    is_acking: bool,
    lease: Finder<'static>,
}

impl HttpWorker {
    pub(crate) fn new(headers: String, has_group: bool) -> Self {
        let lease = Finder::new(b"\"lease\":\"");
        Self { headers, has_group, tokens: Vec::new(), count: 0, is_acking: false, lease }
    }

    fn record_taken(&mut self, head: &ResponseHead<'_>, body: &[u8]) -> io::Result<Step> {
        match head.status() {
            200 => {}
            404 => return Ok(Step::Empty),
            _ => return Err(unexpected(head, body)),
        }
        let lines = memchr::memchr_iter(b'\n', body).count() as u64;
        if !self.has_group {
            return Ok(Step::Done(lines.max(1)));
        }
        self.tokens.clear();
        match head.header("msgbus-lease") {
            Some(token) => {
                self.tokens.extend_from_slice(token.as_bytes());
                self.count = 1;
            }
            None => self.count = self.read_tokens(body),
        }
        if self.count < lines {
            return Err(invalid("a message without a lease"));
        }
        Ok(Step::Taken(self.count))
    }

    fn read_tokens(&mut self, body: &[u8]) -> u64 {
        let mut count = 0;
        for begin in self.lease.find_iter(body) {
            let token = &body[begin + self.lease.needle().len()..];
            let end = memchr::memchr(b'"', token).unwrap_or(token.len());
            self.tokens.extend_from_slice(&token[..end]);
            self.tokens.push(b'\n');
            count += 1;
        }
        count
    }
}

fn unexpected(head: &ResponseHead<'_>, body: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    invalid(format!("the server answered {}: {}", head.status(), text.trim_end()))
}

impl Worker for HttpWorker {
    fn take(&mut self, topic: &str, most: usize, out: &mut Vec<u8>) {
        let group = if self.has_group { format!("group={GROUP}") } else { String::new() };
        let max = if most > 1 { format!("&max={most}") } else { String::new() };
        let query = format!("{group}{max}");
        for part in ["GET ", topic, "?", query.trim_start_matches('&')] {
            out.extend_from_slice(part.as_bytes());
        }
        for part in [" HTTP/1.1\r\n", &self.headers, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        self.is_acking = false;
    }

    fn ack(&mut self, out: &mut Vec<u8>) {
        let is_one = !self.tokens.ends_with(b"\n");
        let (target, body): (&[u8], &[u8]) =
            if is_one { (&self.tokens, b"") } else { (b"", &self.tokens) };
        out.extend_from_slice(if is_one { b"POST /-/ack/" } else { b"POST /-/ack" });
        out.extend_from_slice(target);
        let rest = format!(" HTTP/1.1\r\n{}Content-Length: {}\r\n\r\n", self.headers, body.len());
        out.extend_from_slice(rest.as_bytes());
        out.extend_from_slice(body);
        self.is_acking = true;
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Step)) -> io::Result<usize> {
        let Some(head) = ResponseHead::parse(input)? else { return Ok(0) };
        let whole = head.length() + head.body_length()?;
        let Some(body) = input.get(head.length()..whole) else { return Ok(0) };
        each(if !self.is_acking {
            self.record_taken(&head, body)?
        } else if matches!(head.status(), 200 | 204) && body.is_empty() {
            Step::Done(self.count)
        } else {
            // The body names leases that were not settled.
            return Err(unexpected(&head, body));
        });
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(has_group: bool) -> HttpWorker {
        HttpWorker::new("Host: h\r\n".to_owned(), has_group)
    }

    /// The outcome of a response that arrives in two pieces.
    fn step(worker: &mut HttpWorker, response: &str) -> io::Result<Option<Step>> {
        let mut step = None;
        let part = &response.as_bytes()[..response.len() - 1];
        assert_eq!(worker.decode(part, &mut |done| step = Some(done))?, 0);
        let used = worker.decode(response.as_bytes(), &mut |done| step = Some(done))?;
        assert_eq!(used, response.len());
        Ok(step)
    }

    fn requested(ask: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        ask(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_message_is_acknowledged_by_the_token_of_its_header() {
        let mut worker = worker(true);
        let take = requested(|out| worker.take("/t", 1, out));
        assert_eq!(take, "GET /t?group=bench HTTP/1.1\r\nHost: h\r\n\r\n");
        let response = "HTTP/1.1 200 OK\r\nMsgbus-Lease: tok\r\nContent-Length: 3\r\n\r\n{}\n";
        assert_eq!(step(&mut worker, response).unwrap(), Some(Step::Taken(1)));
        let ack = requested(|out| worker.ack(out));
        assert!(
            ack.starts_with("POST /-/ack/tok HTTP/1.1\r\nHost: h\r\nContent-Length: 0"),
            "{ack}"
        );
        let done = "HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(step(&mut worker, done).unwrap(), Some(Step::Done(1)));
        step(&mut worker, "HTTP/1.1 410 Gone\r\nContent-Length: 1\r\n\r\nx").unwrap_err();
    }

    #[test]
    fn many_messages_are_acknowledged_at_once() {
        let mut worker = worker(true);
        let take = requested(|out| worker.take("/t", 100, out));
        assert!(take.starts_with("GET /t?group=bench&max=100 HTTP/1.1\r\n"), "{take}");
        let body = "{\"id\":0,\"lease\":\"a\",\"deliveries\":1}\n{\"id\":1,\"lease\":\"b\"}\n";
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(step(&mut worker, &response).unwrap(), Some(Step::Taken(2)));
        let ack = requested(|out| worker.ack(out));
        assert!(
            ack.starts_with("POST /-/ack HTTP/1.1\r\n") && ack.ends_with("\r\n\r\na\nb\n"),
            "{ack}"
        );
        let done = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(step(&mut worker, done).unwrap(), Some(Step::Done(2)));
        let lost = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx";
        step(&mut worker, lost).unwrap_err();
    }

    #[test]
    fn plain_pulls_need_no_acknowledgement() {
        let mut worker = worker(false);
        let take = requested(|out| worker.take("/t", 100, out));
        assert!(take.starts_with("GET /t?max=100 HTTP/1.1\r\n"), "{take}");
        let response = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n{}\n{}\n";
        assert_eq!(step(&mut worker, response).unwrap(), Some(Step::Done(2)));
        let none = "HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx";
        assert_eq!(step(&mut worker, none).unwrap(), Some(Step::Empty));
    }
}
