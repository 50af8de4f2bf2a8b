//! Requests to a service and their replies, which the generator serves itself.

use std::{io, mem, rc::Rc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use memchr::{memchr, memmem::Finder};
use tokio::{
    select,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    connection::Connection,
    http::Http,
    load::{Load, Target},
    protocol::{Body, Follower, Outcome, Protocol, Received, Requester},
    report::{Meters, Report},
    requests::{connect, drive},
    response::{ResponseHead, invalid},
    run_state::{RESPONSE_TIMEOUT, RunState, Work},
    v1::lines,
};

/// Asks a service, which `responders` connections serve: each sends the payload of a request back. A publish is a
/// request, which is done when its reply is there. The name of the service is the first topic of the load. The followers
/// of the protocol must serve, such as those of [`Services`].
///
/// # Errors
/// See [`publish`](crate::publish).
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
    follower: Box<dyn Follower>,
    out: Vec<u8>,
}

impl Responder {
    /// Connects. From then on the service counts as served.
    async fn connect(target: &Target, load: &Load) -> io::Result<Self> {
        let service = load.topics.first().ok_or(io::ErrorKind::InvalidInput)?;
        let follower = target.protocol.follower(&target.protocol.encode_topic(service));
        let mut connection = Connection::open(&*target.connector).await?;
        let mut out = Vec::new();
        follower.open(&mut out);
        connection.write(&out).await?;
        let mut responder = Self { connection, follower, out };
        let ready = async {
            while !responder.step().await? {}
            io::Result::Ok(())
        };
        timeout(RESPONSE_TIMEOUT, ready).await??;
        Ok(responder)
    }

    /// Replies until it is dropped.
    async fn run(mut self) -> io::Result<()> {
        loop {
            self.step().await?;
        }
    }

    /// Reads what the server has sent, and replies to all requests in it with one write. Returns whether the server
    /// has said that the service is served.
    async fn step(&mut self) -> io::Result<bool> {
        let Self { connection, follower, out } = self;
        out.clear();
        let mut is_ready = false;
        let mut each = |received| is_ready |= received == Received::Ready;
        connection.read(|input| follower.decode(input, out, &mut each)).await?;
        if !out.is_empty() {
            connection.write(out).await?;
        }
        Ok(is_ready)
    }
}

/// A msgbus server, whose requesters ask services, and whose followers serve them. A topic is the name of a service.
///
/// A follower long-polls for up to 64 requests. It replies to all of them, and polls again, with one write of pipelined
/// requests.
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
        let Http { prefix, .. } = &self.0;
        let headers = self.0.headers();
        let take = |wait| {
            format!("GET {prefix}/-/serve/{topic}?max={MOST}{wait} HTTP/1.1\r\n{headers}\r\n")
        };
        Box::new(Serving {
            open: take(""),
            take: take("&wait=60s"),
            reply: format!("POST {prefix}/-/reply/"),
            headers: format!(" HTTP/1.1\r\n{headers}Content-Length: "),
            is_ready: false,
            unconfirmed: 0,
            token: Finder::new(TOKEN),
            payload: Finder::new(b"\"payload\":\""),
            decoded: Vec::new(),
        })
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
    /// The first request for requests, which does not wait.
    open: String,
    /// The others.
    take: String,
    /// The parts of a reply before and after its token.
    reply: String,
    headers: String,
    is_ready: bool,
    /// The number of replies whose responses are still to come, before the next requests.
    unconfirmed: usize,
    token: Finder<'static>,
    payload: Finder<'static>,
    /// A reused buffer for a payload.
    decoded: Vec<u8>,
}

/// The maximum number of requests that a responder takes at a time.
const MOST: usize = 64;
/// What is in front of the token of a request.
pub(crate) const TOKEN: &[u8] = b"\"reply\":\"";

impl Serving {
    /// Replies to each request in a response.
    fn reply_to(&mut self, requests: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        for line in lines(requests) {
            let token = field(line, &self.token)?;
            self.decoded.clear();
            let payload = field(line, &self.payload)?;
            BASE64_STANDARD.decode_vec(payload, &mut self.decoded).map_err(invalid)?;
            let length = self.decoded.len().to_string();
            for part in [
                self.reply.as_bytes(),
                token,
                self.headers.as_bytes(),
                length.as_bytes(),
                b"\r\n\r\n",
                &self.decoded,
            ] {
                out.extend_from_slice(part);
            }
            self.unconfirmed += 1;
        }
        Ok(())
    }
}

/// The value of a text field without escapes.
pub(crate) fn field<'a>(json: &'a [u8], name: &Finder<'_>) -> io::Result<&'a [u8]> {
    let value = name.find(json).map(|begin| &json[begin + name.needle().len()..]);
    let value = value.and_then(|value| value.get(..memchr(b'"', value)?));
    value.ok_or_else(|| invalid("a request without a token or a payload"))
}

impl Follower for Serving {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.open.as_bytes());
    }

    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let mut used = 0;
        while let Some(head) = ResponseHead::parse(&input[used..])? {
            let whole = head.length() + head.body_length()?;
            let Some(body) = input[used..].get(head.length()..whole) else { break };
            used += whole;
            match (head.status(), self.unconfirmed) {
                // 410: it came too late.
                (204 | 410, 1..) => {
                    self.unconfirmed -= 1;
                    continue;
                }
                (200, 0) => self.reply_to(body, reply)?,
                // Nothing to serve.
                (204, 0) => {}
                (status, _) => {
                    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
                    let text = text.trim_end();
                    return Err(invalid(format!("the server answered {status}: {text}")));
                }
            }
            reply.extend_from_slice(self.take.as_bytes());
            if !mem::replace(&mut self.is_ready, true) {
                each(Received::Ready);
            }
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_together_and_sent_back() {
        let http = Http { host: "h".to_owned(), prefix: "/bus".to_owned(), ..Http::default() };
        let services = Services(http);
        let service = services.encode_topic("a b/c");
        let mut out = Vec::new();
        services.requester().publish(&service, Body::Message(b"x"), &mut out);
        assert!(out.starts_with(b"PUT /bus/-/request/a%20b/c HTTP/1.1\r\nHost: h\r\n"));

        let mut responder = services.follower(&service);
        out.clear();
        responder.open(&mut out);
        let end = " HTTP/1.1\r\nHost: h\r\n\r\n";
        assert_eq!(out, format!("GET /bus/-/serve/a%20b/c?max=64{end}").as_bytes());
        let take = format!("GET /bus/-/serve/a%20b/c?max=64&wait=60s{end}");
        let none = "HTTP/1.1 204 No Content\r\n\r\n";
        let body = "{\"reply\":\"t1\",\"timeout\":\"5s\",\"payload\":\"eHg=\"}\n\
                    {\"reply\":\"t2\",\"timeout\":\"5s\",\"payload\":\"\"}\n";
        let two = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let late = "HTTP/1.1 410 Gone\r\nContent-Length: 1\r\n\r\nx";
        let input = [none, &two, none, late, none].concat();
        let (mut received, mut begin) = (Vec::new(), 0);
        out.clear();
        for end in 1..=input.len() {
            let input = &input.as_bytes()[begin..end];
            begin += responder.decode(input, &mut out, &mut |what| received.push(what)).unwrap();
        }
        assert_eq!((begin, &*received), (input.len(), &[Received::Ready][..]));
        let post = |token, payload: &str| {
            let length = payload.len();
            format!(
                "POST /bus/-/reply/{token} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{payload}"
            )
        };
        let expected = [&*take, &post("t1", "xx"), &post("t2", ""), &take, &take].concat();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let refused = b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n";
        responder.decode(refused, &mut Vec::new(), &mut |_| ()).unwrap_err();
    }
}
