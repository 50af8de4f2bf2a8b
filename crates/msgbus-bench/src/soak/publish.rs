//! Publishers: single messages and batches, some of which are broken off.

use std::{io, rc::Rc, time::Duration};

use fastrand::Rng;
use tokio::time::{Instant, sleep};

use super::{
    Soak,
    acl_model::Access,
    credentials,
    invariants::Invariant,
    payload::{self, Described, Origin},
    raw_client::{Cut, Head, RawClient},
    topics::Topic,
};

/// The maximum number of lines in a batch. With [`MAX_LINE`] they fit into a payload.
const MAX_LINES: usize = 100;
const MAX_LINE: usize = 200;
const MAX_BODY: usize = 20 << 10;
const TTLS: [&str; 4] = ["50ms", "300ms", "2s", "1h"];

pub(super) struct Publisher {
    soak: Rc<Soak>,
    rng: Rng,
    client: Option<RawClient>,
    /// When the server last answered.
    answered: Instant,
    /// The origin of the next message.
    origin: Origin,
}

/// A publish request.
struct Request {
    bytes: Vec<u8>,
    topic: Topic,
    access: Access,
    count: u64,
}

impl Publisher {
    pub(super) fn new(soak: &Rc<Soak>, rng: Rng) -> Self {
        let origin = soak.new_origin();
        Self { soak: Rc::clone(soak), rng, client: None, answered: Instant::now(), origin }
    }

    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            let request = self.request();
            let done = match self.rng.u8(..100) {
                0 => self.break_off(&request).await,
                1 => self.leave_before_response(&request).await,
                _ => self.publish(&request).await,
            };
            if done.is_err() {
                self.client = None;
                self.soak.invariants.borrow_mut().count("publisher connections broken", 1);
                sleep(Duration::from_millis(self.rng.u64(5..50))).await;
            }
            if self.rng.u8(..8) == 0 {
                sleep(Duration::from_millis(self.rng.u64(..30))).await;
            }
        }
    }

    fn request(&mut self) -> Request {
        let topic = Topic::any(&mut self.rng);
        let (access, principal) = {
            let keys = self.soak.keys.borrow();
            let principal = keys.random_principal(&mut self.rng);
            self.origin.reloads = keys.reloads();
            (keys.access(principal, &topic), credentials::header(&keys, principal, &mut self.rng))
        };
        let lines = (self.rng.u8(..5) == 0).then(|| self.rng.usize(1..=MAX_LINES));
        self.origin.described = Described {
            has_type: self.rng.u8(..3) == 0,
            // A content encoding does not go with ?split=lines.
            has_encoding: lines.is_none() && self.rng.u8(..6) == 0,
        };
        let mut body = Vec::new();
        for _ in 0..lines.unwrap_or(1) {
            let largest = match lines {
                Some(_) => MAX_LINE,
                None if self.rng.u8(..20) == 0 => MAX_BODY,
                None => 2 * MAX_LINE,
            };
            let size = self.rng.usize(..largest);
            payload::write(&mut body, topic.name(), self.origin, size);
            self.origin.sequence += 1;
            if lines.is_some() {
                body.push(b'\n');
            }
        }
        let mut query = if lines.is_some() { "split=lines" } else { "" }.to_owned();
        if !topic.is_kept() && !topic.is_for_jobs() && self.rng.u8(..4) == 0 {
            query.push_str("&ttl=");
            query.push_str(TTLS[self.rng.usize(..TTLS.len())]);
        }
        let name = topic.name();
        let described = self.origin.described.headers(self.origin.publisher);
        let head = format!(
            "PUT /{name}?{} HTTP/1.1\r\nHost: soak.localhost\r\n{principal}{described}Content-Length: {}\r\n\r\n",
            query.trim_start_matches('&'),
            body.len()
        );
        let bytes = [head.into_bytes(), body].concat();
        Request { bytes, topic, access, count: lines.unwrap_or(1) as u64 }
    }

    /// Sends an incomplete request. It publishes nothing, so nothing is recorded.
    async fn break_off(&mut self, request: &Request) -> io::Result<()> {
        let mut client = self.take_client().await?;
        let length = self.rng.usize(1..request.bytes.len());
        client.send(&request.bytes[..length]).await?;
        client.cut(self.soak.random_cut(&mut self.rng));
        self.soak.invariants.borrow_mut().count("publishes broken off half-way", 1);
        Ok(())
    }

    async fn leave_before_response(&mut self, request: &Request) -> io::Result<()> {
        let mut client = self.take_client().await?;
        self.record_unknown(request);
        client.send(&request.bytes).await?;
        if self.rng.bool() {
            sleep(Duration::from_millis(self.rng.u64(..3))).await;
        }
        client.cut(self.soak.random_cut(&mut self.rng));
        self.soak.invariants.borrow_mut().count("publishes without waiting for the response", 1);
        Ok(())
    }

    /// Publishes, and waits for the response. Sometimes shuts down the sending side after the request.
    async fn publish(&mut self, request: &Request) -> io::Result<()> {
        // An accepted connection that has not been idle long enough for the server to close it.
        let is_fresh = self.client.is_some() && self.answered.elapsed() < Duration::from_secs(1);
        let is_last = is_fresh && self.rng.u8(..20) == 0;
        let mut client = self.take_client().await?;
        // A refusal arrives even if not all of the request could be sent.
        let is_sent = client.send(&request.bytes).await.is_ok();
        let is_last = is_last && is_sent && client.end_sending().await.is_ok();
        let answer = client.read_response(true).await;
        if is_last {
            self.note_last(answer.as_ref().err());
        }
        match answer {
            Ok((head, text)) => {
                self.record(request, &head, &text);
                self.answered = Instant::now();
                if head.keeps_alive() && !is_last {
                    self.client = Some(client);
                }
                Ok(())
            }
            Err(error) => {
                self.record_unknown(request);
                self.soak.record_error(&error, "a publish");
                client.cut(Cut::Close);
                Err(error)
            }
        }
    }

    /// A complete request must be answered, even if the client has shut down its sending side.
    fn note_last(&self, error: Option<&io::Error>) {
        let mut invariants = self.soak.invariants.borrow_mut();
        invariants.count("publishes followed by a half-close", 1);
        invariants.check(Invariant::Responses, error.is_none(), || {
            format!("a publish followed by a half-close: {error:?}")
        });
    }

    fn record(&self, request: &Request, head: &Head, text: &[u8]) {
        let mut invariants = self.soak.invariants.borrow_mut();
        let name = request.topic.name();
        let keys = self.soak.keys.borrow();
        if keys.check_response(
            &mut invariants,
            &request.access,
            head.status,
            &format!("PUT {name}"),
        ) {
            return;
        }
        let ids = match (head.number("msgbus-id"), head.number("msgbus-first-id")) {
            (Some(id), _) => Some(id..=id),
            (None, Some(first)) => head.number("msgbus-last-id").map(|last| first..=last),
            (None, None) => None,
        };
        match (head.status, ids, head.number("msgbus-epoch")) {
            (202, Some(ids), Some(epoch)) => {
                let count = (ids.end() + 1).saturating_sub(*ids.start());
                invariants.check(Invariant::Responses, count == request.count, || {
                    format!(
                        "{} messages were published to {name}, but {count} confirmed",
                        request.count
                    )
                });
                invariants.count("messages published", count);
                invariants.record_published(name, epoch, ids);
            }
            (503, None, _) => invariants.count("publishes refused: a limit of the server", 1),
            (507, None, _) => invariants.count("publishes refused: the topic is full", 1),
            (status, ..) => invariants.check(Invariant::Responses, false, || {
                format!("PUT {name}: {status} {}", String::from_utf8_lossy(text))
            }),
        }
    }

    /// Records an unknown outcome. The messages may arrive after later ones, so the next request gets a
    /// new origin.
    fn record_unknown(&mut self, request: &Request) {
        self.soak.invariants.borrow_mut().may_have_published(request.topic.name(), request.count);
        self.origin = self.soak.new_origin();
    }

    async fn take_client(&mut self) -> io::Result<RawClient> {
        match self.client.take() {
            Some(client) => Ok(client),
            None => RawClient::open(&self.soak.endpoint).await,
        }
    }
}
