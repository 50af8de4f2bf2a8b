//! The opening handshake (RFC 6455, section 4.2) on a listener whose door speaks only websockets: no page of another site
//! may connect, and a client that never completes its request is disconnected.

use std::{
    io::{self, ErrorKind},
    sync::Arc,
};

use hyper::{
    Request,
    header::{self, HeaderName, HeaderValue},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    select,
    time::sleep,
};
use tokio_tungstenite::tungstenite::handshake::{machine::TryParse as _, server};
use tracing::debug;

use super::transport::Transport;
use crate::{
    code::Code,
    config::Config,
    metrics::Deadline,
    net::{connection::Connection, peer::Peer},
    service::origin::{self, Page},
    worker::Worker,
};

/// The size from which the space for a head doubles, in bytes.
const MIN_SPACE: usize = 1 << 10;

/// The head of a request, and the bytes that were read after it.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) request: Request<()>,
    after: Vec<u8>,
}

/// Why a request is refused.
#[derive(Debug)]
struct Refusal {
    /// Status code and reason of HTTP.
    status: &'static str,
    code: Code,
    /// One line, without its end.
    text: String,
}

impl Refusal {
    fn new(status: &'static str, code: Code, text: impl Into<String>) -> Self {
        Self { status, code, text: text.into() }
    }

    /// A request that is no handshake.
    fn handshake(text: impl Into<String>) -> Self {
        Self::new("400 Bad Request", Code::BadHandshake, text)
    }
}

/// A client that has connected to a door with endpoints of its own.
pub(crate) struct Guest {
    pub(crate) worker: Arc<Worker>,
    pub(crate) connection: Connection,
    pub(crate) peer: Peer,
}

/// Waits for what a client has to do within the time for the head of a request. `None` if that is over, or the server
/// stops.
pub(crate) async fn in_time<T>(worker: &Worker, doing: impl Future<Output = T>) -> Option<T> {
    select! {
        done = doing => Some(done),
        () = sleep(worker.config.timeouts.header) => {
            worker.metrics.timeout(Deadline::Header);
            None
        }
        () = worker.tasks.stop.draining() => None,
    }
}

impl Guest {
    /// Completes the handshake of a client that sends messages of up to `max` bytes. `None` if there is none: what the
    /// client had to be told was told.
    pub(crate) async fn accept(mut self, max: usize) -> Option<Transport<Connection>> {
        let head = self.read().await?;
        self.upgrade(head, max).await
    }

    /// Reads the head of a request, within the time and the size that a request of HTTP may have. `None` if there is none.
    pub(crate) async fn read(&mut self) -> Option<Head> {
        let Self { worker, connection, peer } = self;
        match in_time(worker, read_head(connection, worker.config.max_header)).await? {
            Ok(Ok(head)) => Some(head),
            Ok(Err(refusal)) => {
                self.refuse(&refusal).await;
                None
            }
            Err(error) => {
                debug!(%peer, %error, "no handshake");
                None
            }
        }
    }

    /// Answers a handshake. `None` if it was refused, or the connection broke.
    pub(crate) async fn upgrade(mut self, head: Head, max: usize) -> Option<Transport<Connection>> {
        let answer = check(&head.request, self.peer, &self.worker).and_then(|()| {
            let answer = server::create_response(&head.request);
            answer.map_err(|error| Refusal::handshake(format!("bad websocket handshake: {error}")))
        });
        let answer = match answer {
            Ok(answer) => answer,
            Err(refusal) => {
                self.refuse(&refusal).await;
                return None;
            }
        };
        let mut bytes = Vec::new();
        // Writing to a Vec cannot fail, and all headers of the answer are ASCII.
        let _ = server::write_response(&mut bytes, &answer);
        self.connection.write_all(&bytes).await.ok()?;
        self.connection.flush().await.ok()?;
        Some(Transport::with_inbox(self.connection, head.after, max))
    }

    /// Answers a request that asks for no websocket, unless it is refused, and closes the connection.
    pub(crate) async fn answer(mut self, head: &Head, (status, kind, body): (&str, &str, &str)) {
        match check(&head.request, self.peer, &self.worker) {
            Ok(()) => self.respond(status, kind, body).await,
            Err(refusal) => self.refuse(&refusal).await,
        }
    }

    /// Sends a response, and closes the connection.
    async fn respond(&mut self, status: &str, kind: &str, body: &str) {
        let length = body.len();
        let response = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        if self.connection.write_all(response.as_bytes()).await.is_ok() {
            // If it fails, the client has already closed the connection.
            let _ = self.connection.shutdown().await;
        }
    }

    /// Refuses a request, and closes the connection.
    async fn refuse(&mut self, refusal: &Refusal) {
        self.worker.metrics.refusal(refusal.code);
        debug!(peer = %self.peer, refusal = refusal.text, "refused");
        let text = format!("{}\n", refusal.text);
        self.respond(refusal.status, "text/plain; charset=utf-8", &text).await;
    }
}

async fn read_head(connection: &mut Connection, max: usize) -> io::Result<Result<Head, Refusal>> {
    let mut bytes = Vec::new();
    loop {
        if bytes.len() >= max {
            let text = "the head of the request is too large";
            return Ok(Err(Refusal::new(
                "431 Request Header Fields Too Large",
                Code::HeaderTooLarge,
                text,
            )));
        }
        bytes.reserve(MIN_SPACE);
        let before = bytes.len();
        let space = (max - before).min(bytes.capacity() - before);
        if (&mut *connection).take(space as u64).read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        // Parsing anew after each byte of a slow client would take long.
        if !ends_in(&bytes, before) {
            continue;
        }
        match server::Request::try_parse(&bytes) {
            Ok(None) => {}
            Ok(Some((length, request))) => {
                return Ok(Ok(Head { request, after: bytes.split_off(length) }));
            }
            Err(error) => {
                let text = format!("this port speaks websockets: {error}");
                return Ok(Err(Refusal::new("400 Bad Request", Code::BadHttp, text)));
            }
        }
    }
}

/// Whether an empty line, which ends a head, may be among the bytes after `before`.
fn ends_in(bytes: &[u8], before: usize) -> bool {
    let new = &bytes[before.saturating_sub(3)..];
    new.windows(2).any(|two| two == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}

/// Refuses pages of other sites, and names that may belong to other sites.
fn check(request: &Request<()>, peer: Peer, worker: &Worker) -> Result<(), Refusal> {
    let config: &Config = &worker.config;
    let authority = one(request, &header::HOST)?
        .map(|host| String::from_utf8_lossy(host.as_bytes()).to_ascii_lowercase())
        .unwrap_or_default();
    if let Some(page) = one(request, &header::ORIGIN)? {
        let page = String::from_utf8_lossy(page.as_bytes()).to_ascii_lowercase();
        if origin::judge(&page, &authority, peer, config) == Page::Foreign {
            let page: String = page.chars().take(100).collect();
            return Err(Refusal::new(
                "403 Forbidden",
                Code::ForeignOrigin,
                format!("pages of {page} may not use this server; see --allow-origin"),
            ));
        }
    }
    // A page that made its own name point here has no key.
    let name = origin::host_name(&authority);
    let may_be_foreign = worker.keyring.is_none() && !peer.has_tls && !authority.is_empty();
    if may_be_foreign && !origin::is_known_host(name, config) {
        let name: String = name.chars().take(100).collect();
        return Err(Refusal::new(
            "421 Misdirected Request",
            Code::ForeignHost,
            format!("this server is not known as {name}; see --allow-host"),
        ));
    }
    Ok(())
}

/// The value of a header that may be there once.
fn one<'a>(
    request: &'a Request<()>,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Refusal> {
    let mut values = request.headers().get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(Refusal::handshake(format!("the header {name} is repeated")));
    }
    Ok(value)
}
