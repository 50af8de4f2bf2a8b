//! A stream of NATS on disk, which acknowledges each publish.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use memchr::memmem;
use msgbus_load::{Body, Follower, Outcome, Protocol, Received, Requester, Trace, Worker};

use super::{
    jetstream_worker::{JetStreamWorker, NAME},
    line, number, unexpected,
};

/// A stream and its pull consumer. <https://docs.nats.io/reference/reference-protocols/nats_api_reference>
#[derive(Debug)]
pub(in crate::compare) struct JetStream;

impl Protocol for JetStream {
    fn requester(&self) -> Box<dyn Requester> {
        Box::new(Client { inbox: inbox() })
    }

    fn worker(&self) -> Option<Box<dyn Worker>> {
        Some(Box::new(JetStreamWorker::new(inbox())))
    }

    fn publishes_lines(&self) -> bool {
        false
    }

    fn follower(&self, _: &str) -> Box<dyn Follower> {
        Box::new(Consumer { inbox: inbox(), is_ready: false })
    }
}

/// A subject of its own for each connection.
pub(super) fn inbox() -> String {
    static CLIENTS: AtomicU64 = AtomicU64::new(0);
    format!("_INBOX.bench.{}", CLIENTS.fetch_add(1, Relaxed))
}

struct Client {
    /// The subject of the acknowledgements.
    inbox: String,
}

const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n";

impl Requester for Client {
    fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{CONNECT}SUB {} 1\r\n", self.inbox).as_bytes());
    }

    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let (Body::Message(bytes) | Body::Lines(bytes)) = body;
        let head = format!("PUB {topic} {} {}\r\n", self.inbox, bytes.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
    }

    fn pull(&self, _: &str, _: &mut Vec<u8>) {
        unreachable!("a pull takes two requests");
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let mut used = 0;
        while let Some((said, length)) = next(&input[used..])? {
            match said {
                Said::Message(ack) if is_error(ack) => each(Outcome::Refused),
                Said::Message(_) => each(Outcome::Done),
                Said::Other => {}
            }
            used += length;
        }
        Ok(used)
    }
}

/// A follower: a consumer that the server pushes to.
struct Consumer {
    inbox: String,
    is_ready: bool,
}

impl Follower for Consumer {
    fn open(&self, out: &mut Vec<u8>) {
        let inbox = &self.inbox;
        let request = format!(
            "{{\"stream_name\":\"{NAME}\",\"config\":{{\"deliver_subject\":\"{inbox}\",\
             \"deliver_policy\":\"new\",\"ack_policy\":\"none\"}}}}"
        );
        let text = format!(
            "{CONNECT}SUB {inbox} 1\r\nSUB {inbox}.created 2\r\n\
             PUB $JS.API.CONSUMER.CREATE.{NAME} {inbox}.created {}\r\n{request}\r\n",
            request.len()
        );
        out.extend_from_slice(text.as_bytes());
    }

    fn decode(
        &mut self,
        input: &[u8],
        _: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize> {
        let mut used = 0;
        while let Some((said, length)) = next(&input[used..])? {
            match said {
                Said::Message(payload) if self.is_ready => {
                    each(Received::Message(Trace::read(payload)));
                }
                Said::Message(created) if is_error(created) => return Err(unexpected(created)),
                Said::Message(_) => {
                    self.is_ready = true;
                    each(Received::Ready);
                }
                Said::Other => {}
            }
            used += length;
        }
        Ok(used)
    }
}

enum Said<'a> {
    Message(&'a [u8]),
    Other,
}

/// The first thing that a server says, with its length in bytes, if it is complete.
fn next(input: &[u8]) -> io::Result<Option<(Said<'_>, usize)>> {
    let Some(line) = line(input) else { return Ok(None) };
    if line.starts_with(b"INFO") || line.starts_with(b"PING") {
        return Ok(Some((Said::Other, line.len())));
    }
    if !line.starts_with(b"MSG ") {
        return Err(unexpected(line));
    }
    let size =
        number(line.trim_ascii_end().rsplit(|byte| *byte == b' ').next().unwrap_or_default())?;
    let end = line.len() + size;
    let whole = (input.len() >= end + 2).then(|| (Said::Message(&input[line.len()..end]), end + 2));
    Ok(whole)
}

fn is_error(response: &[u8]) -> bool {
    memmem::find(response, b"\"error\":").is_some()
}

/// Whether this version, such as `nats-server: v2.10.1`, has the setting `sync_interval: always`.
pub(in crate::compare) fn can_sync_always(version: &str) -> bool {
    let numbers = version.rsplit('v').next().unwrap_or_default();
    let mut numbers = numbers.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(2), Some(10))
}

/// Creates a stream for a topic, and a consumer for workers.
pub(in crate::compare) fn create_stream(
    server: SocketAddr,
    topic: &str,
    storage: &str,
    max_messages: Option<u32>,
) -> io::Result<()> {
    let most = max_messages.map_or(-1, i64::from);
    let stream = format!(
        "{{\"name\":\"{NAME}\",\"subjects\":[\"{topic}\"],\"storage\":\"{storage}\",\"retention\":\"limits\",\
         \"discard\":\"old\",\"max_msgs\":-1,\"max_msgs_per_subject\":{most},\
         \"max_bytes\":-1,\"max_age\":0,\"max_consumers\":-1,\"num_replicas\":1}}"
    );
    ask(server, &format!("$JS.API.STREAM.CREATE.{NAME}"), &stream)?;
    let consumer = format!(
        "{{\"stream_name\":\"{NAME}\",\"config\":{{\"durable_name\":\"{NAME}\",\"deliver_policy\":\"all\",\
         \"ack_policy\":\"explicit\",\"ack_wait\":30000000000,\"max_ack_pending\":100000}}}}"
    );
    ask(server, &format!("$JS.API.CONSUMER.DURABLE.CREATE.{NAME}.{NAME}"), &consumer)?;
    Ok(())
}

/// Sends a request, and waits for its response.
pub(crate) fn ask(server: SocketAddr, subject: &str, request: &str) -> io::Result<Vec<u8>> {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let length = request.len();
    write!(
        stream,
        "{CONNECT}SUB _INBOX.create 1\r\nPUB {subject} _INBOX.create {length}\r\n{request}\r\n"
    )?;
    let (mut received, mut used) = (Vec::new(), 0);
    loop {
        while let Some((said, length)) = next(&received[used..])? {
            match said {
                Said::Message(response) if is_error(response) => return Err(unexpected(response)),
                Said::Message(response) => return Ok(response.to_vec()),
                Said::Other => used += length,
            }
        }
        let mut part = [0; 4096];
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => received.extend_from_slice(&part[..count]),
        }
    }
}
