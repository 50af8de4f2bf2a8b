//! Requests to a service and their replies, which the generator serves itself.

use std::{io, rc::Rc};

use tokio::{select, task::JoinSet, time::Instant};

use crate::{
    connection::Connection,
    http::Http,
    load::{Load, Target},
    protocol::{Body, Follower, Outcome, Protocol, Requester, Step, Worker},
    report::{Meters, Report},
    requests::{connect, drive},
    response::{ResponseHead, invalid},
    run_state::{RunState, Work},
};

/// Asks a service, which `responders` connections serve: each sends the payload of a request back. A publish is a
/// request, which is done when its reply is there. The name of the service is the first topic of the load.
///
/// # Errors
/// See [`publish`](crate::publish), and if the protocol has no services.
pub async fn request(target: &Target, load: &Load, responders: usize) -> io::Result<Report> {
    let state = Rc::new(RunState::new(load));
    let mut serving = JoinSet::new();
    for _ in 0..responders {
        serving.spawn_local(Responder::connect(target, load).await?.run());
    }
    let clients = connect(target, load).await?;
    let meters = Meters::start(target)?;
    let begin = Instant::now();
    select! {
        driven = drive(clients, load, &state, Work::Publish) => driven?,
        Some(ended) = serving.join_next() => ended.map_err(io::Error::other)??,
    }
    let time = begin.elapsed();
    state.report(time, meters)
}

/// A connection that serves.
struct Responder {
    connection: Connection,
    worker: Box<dyn Worker>,
    service: String,
    out: Vec<u8>,
}

impl Responder {
    /// Connects. From then on the service counts as served.
    async fn connect(target: &Target, load: &Load) -> io::Result<Self> {
        let none = || io::Error::new(io::ErrorKind::Unsupported, "no services");
        let worker = target.protocol.worker().ok_or_else(none)?;
        let service = load.topics.first().ok_or_else(none)?;
        let service = target.protocol.encode_topic(service);
        let connection = Connection::open(&*target.connector).await?;
        let mut responder = Self { connection, worker, service, out: Vec::new() };
        // Without a wait.
        responder.worker.take(&responder.service, 0, &mut responder.out);
        if responder.exchange().await? == Step::Empty {
            return Ok(responder);
        }
        Err(invalid("a request that nobody has sent"))
    }

    /// Replies until it is dropped.
    async fn run(mut self) -> io::Result<()> {
        loop {
            self.worker.take(&self.service, 1, &mut self.out);
            if let Step::Taken(_) = self.exchange().await? {
                self.worker.ack(&mut self.out);
                self.exchange().await?;
            }
        }
    }

    /// Sends a request, and waits for its response.
    async fn exchange(&mut self) -> io::Result<Step> {
        let Self { connection, worker, out, .. } = self;
        connection.write(out).await?;
        out.clear();
        let mut step = None;
        loop {
            connection.read(|input| worker.decode(input, &mut |done| step = Some(done))).await?;
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }
}

/// A msgbus server, whose requesters ask services, and whose workers serve them. A topic is the name of a service.
#[derive(Debug, Clone)]
pub struct Services(pub Http);

impl Protocol for Services {
    fn encode_topic(&self, topic: &str) -> String {
        // Without the slash.
        self.0.encode_topic(topic).split_off(self.0.prefix.len() + 1)
    }

    fn requester(&self) -> Box<dyn Requester> {
        let path = format!("{}/-/request/", self.0.prefix);
        Box::new(Asking { http: self.0.requester(), path })
    }

    fn follower(&self, topic: &str) -> Box<dyn Follower> {
        self.0.follower(topic)
    }

    fn worker(&self) -> Option<Box<dyn Worker>> {
        Some(Box::new(Serving {
            prefix: self.0.prefix.clone(),
            headers: self.0.headers(),
            token: String::new(),
            payload: Vec::new(),
        }))
    }
}

struct Asking {
    http: Box<dyn Requester>,
    path: String,
}

impl Requester for Asking {
    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let (Body::Message(payload) | Body::Lines(payload)) = body;
        self.http.publish(&format!("{}{topic}", self.path), Body::Message(payload), out);
    }

    fn pull(&self, topic: &str, out: &mut Vec<u8>) {
        self.http.pull(topic, out);
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        self.http.decode(input, each)
    }
}

/// A responder that sends payloads back.
struct Serving {
    prefix: String,
    headers: String,
    /// Of the last request; empty when its reply was written.
    token: String,
    payload: Vec<u8>,
}

impl Worker for Serving {
    /// With `most` 0 it does not wait.
    fn take(&mut self, topic: &str, most: usize, out: &mut Vec<u8>) {
        let wait = if most > 0 { "?wait=60s" } else { "" };
        let Self { prefix, headers, .. } = self;
        let head = format!("GET {prefix}/-/serve/{topic}{wait} HTTP/1.1\r\n{headers}\r\n");
        out.extend_from_slice(head.as_bytes());
    }

    fn ack(&mut self, out: &mut Vec<u8>) {
        let Self { prefix, headers, token, payload } = self;
        let length = payload.len();
        let head = format!(
            "POST {prefix}/-/reply/{token} HTTP/1.1\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(payload);
        token.clear();
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Step)) -> io::Result<usize> {
        let Some(head) = ResponseHead::parse(input)? else { return Ok(0) };
        let whole = head.length() + head.body_length()?;
        let Some(body) = input.get(head.length()..whole) else { return Ok(0) };
        each(match (head.status(), head.header("msgbus-reply")) {
            (200, Some(token)) => {
                token.clone_into(&mut self.token);
                self.payload.clear();
                self.payload.extend_from_slice(body);
                Step::Taken(1)
            }
            // Nothing to serve, or the reply was accepted.
            (204, _) => Step::Empty,
            // The reply came too late.
            (410, _) => Step::Done(1),
            (status, _) => {
                let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
                return Err(invalid(format!("the server answered {status}: {}", text.trim_end())));
            }
        });
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_and_sent_back() {
        let http = Http { host: "h".to_owned(), prefix: "/bus".to_owned(), ..Http::default() };
        let services = Services(http);
        let service = services.encode_topic("a b/c");
        let mut out = Vec::new();
        services.requester().publish(&service, Body::Message(b"x"), &mut out);
        assert!(out.starts_with(b"PUT /bus/-/request/a%20b/c HTTP/1.1\r\nHost: h\r\n"));

        let mut worker = services.worker().unwrap();
        out.clear();
        worker.take(&service, 1, &mut out);
        assert_eq!(out, b"GET /bus/-/serve/a%20b/c?wait=60s HTTP/1.1\r\nHost: h\r\n\r\n");
        let taken = b"HTTP/1.1 200 OK\r\nMsgbus-Reply: t\r\nContent-Length: 1\r\n\r\nx";
        let mut step = None;
        assert_eq!(worker.decode(&taken[..taken.len() - 1], &mut |s| step = Some(s)).unwrap(), 0);
        assert_eq!(worker.decode(taken, &mut |s| step = Some(s)).unwrap(), taken.len());
        assert_eq!(step, Some(Step::Taken(1)));
        out.clear();
        worker.ack(&mut out);
        assert!(
            out.starts_with(b"POST /bus/-/reply/t HTTP/1.1\r\n") && out.ends_with(b"\r\n\r\nx")
        );
        worker.decode(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", &mut |_| ()).unwrap_err();
    }
}
