//! Those who publish: single messages and batches, some of which they do not see to their end.

use std::{io, rc::Rc, time::Duration};

use fastrand::Rng;
use tokio::time::{Instant, sleep};

use super::{
    Soak,
    books::Book,
    claims::Claim,
    payload::{self, Described, Origin},
    show,
    topics::Topic,
    wire::{Cut, Head, Wire},
};

/// The most lines in a batch; with [`LARGEST_LINE`] they fit a payload.
const MOST_LINES: usize = 100;
const LARGEST_LINE: usize = 200;
const LARGEST: usize = 20 << 10;
const TTLS: [&str; 4] = ["50ms", "300ms", "2s", "1h"];

pub(super) struct Publisher {
    soak: Rc<Soak>,
    rng: Rng,
    wire: Option<Wire>,
    /// When the server last answered.
    answered: Instant,
    /// Of the next message.
    origin: Origin,
}

/// A request, and what it would publish.
struct Request {
    bytes: Vec<u8>,
    topic: Topic,
    claim: Claim,
    count: u64,
}

impl Publisher {
    pub(super) fn new(soak: &Rc<Soak>, rng: Rng) -> Self {
        let origin = soak.new_origin();
        Self { soak: Rc::clone(soak), rng, wire: None, answered: Instant::now(), origin }
    }

    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            let request = self.request();
            let done = match self.rng.u8(..100) {
                0 => self.break_off(&request).await,
                1 => self.leave_without_an_answer(&request).await,
                _ => self.publish(&request).await,
            };
            if done.is_err() {
                self.wire = None;
                self.soak.books.borrow_mut().count("connections broken under a publisher", 1);
                sleep(Duration::from_millis(self.rng.u64(5..50))).await;
            }
            if self.rng.u8(..8) == 0 {
                sleep(Duration::from_millis(self.rng.u64(..30))).await;
            }
        }
    }

    fn request(&mut self) -> Request {
        let topic = Topic::any(&mut self.rng);
        let (claim, who) = {
            let keys = self.soak.keys.borrow();
            let who = keys.some(&mut self.rng);
            self.origin.reloads = keys.reloads();
            (keys.claim(who, &topic), show::header(&keys, who, &mut self.rng))
        };
        let lines = (self.rng.u8(..5) == 0).then(|| self.rng.usize(1..=MOST_LINES));
        self.origin.described = Described {
            has_type: self.rng.u8(..3) == 0,
            // Of lines there is none that is encoded.
            has_encoding: lines.is_none() && self.rng.u8(..6) == 0,
        };
        let mut body = Vec::new();
        for _ in 0..lines.unwrap_or(1) {
            let largest = match lines {
                Some(_) => LARGEST_LINE,
                None if self.rng.u8(..20) == 0 => LARGEST,
                None => 2 * LARGEST_LINE,
            };
            let size = self.rng.usize(..largest);
            payload::write(&mut body, topic.name(), self.origin, size);
            self.origin.sequence += 1;
            if lines.is_some() {
                body.push(b'\n');
            }
        }
        let mut query = if lines.is_some() { "split=lines" } else { "" }.to_owned();
        if !topic.is_kept() && self.rng.u8(..4) == 0 {
            query.push_str("&ttl=");
            query.push_str(TTLS[self.rng.usize(..TTLS.len())]);
        }
        let name = topic.name();
        let described = self.origin.described.headers(self.origin.publisher);
        let head = format!(
            "PUT /{name}?{} HTTP/1.1\r\nHost: soak.localhost\r\n{who}{described}Content-Length: {}\r\n\r\n",
            query.trim_start_matches('&'),
            body.len()
        );
        let bytes = [head.into_bytes(), body].concat();
        Request { bytes, topic, claim, count: lines.unwrap_or(1) as u64 }
    }

    /// A body that stops half-way publishes nothing, so nothing is noted.
    async fn break_off(&mut self, request: &Request) -> io::Result<()> {
        let mut wire = self.take_wire().await?;
        let length = self.rng.usize(1..request.bytes.len());
        wire.send(&request.bytes[..length]).await?;
        wire.cut(self.soak.some_cut(&mut self.rng));
        self.soak.books.borrow_mut().count("publishes broken off half-way", 1);
        Ok(())
    }

    async fn leave_without_an_answer(&mut self, request: &Request) -> io::Result<()> {
        let mut wire = self.take_wire().await?;
        self.nobody_knows(request);
        wire.send(&request.bytes).await?;
        if self.rng.bool() {
            sleep(Duration::from_millis(self.rng.u64(..3))).await;
        }
        wire.cut(self.soak.some_cut(&mut self.rng));
        self.soak.books.borrow_mut().count("publishes left without waiting for the answer", 1);
        Ok(())
    }

    /// Publishes, and waits for the answer. Some say with the request that it was their last one.
    async fn publish(&mut self, request: &Request) -> io::Result<()> {
        // A connection that was let in, and is not idle for so long that the server may just close it.
        let is_fresh = self.wire.is_some() && self.answered.elapsed() < Duration::from_secs(1);
        let is_last = is_fresh && self.rng.u8(..20) == 0;
        let mut wire = self.take_wire().await?;
        // Who is refused is told so even where not all could be sent.
        let is_sent = wire.send(&request.bytes).await.is_ok();
        let is_last = is_last && is_sent && wire.end_sending().await.is_ok();
        let answer = wire.answer(true).await;
        if is_last {
            self.note_last(answer.as_ref().err());
        }
        match answer {
            Ok((head, text)) => {
                self.note(request, &head, &text);
                self.answered = Instant::now();
                if head.goes_on() && !is_last {
                    self.wire = Some(wire);
                }
                Ok(())
            }
            Err(error) => {
                self.nobody_knows(request);
                self.soak.note_silence(&error, "a publish");
                wire.cut(Cut::Close);
                Err(error)
            }
        }
    }

    /// A request that arrived whole is answered, whether or not its client sends any more.
    fn note_last(&self, error: Option<&io::Error>) {
        let mut books = self.soak.books.borrow_mut();
        books.count("publishes with the last bytes of their connection", 1);
        books.check(Book::Answers, error.is_none(), || {
            format!("a publish with the last bytes of its connection: {error:?}")
        });
    }

    fn note(&self, request: &Request, head: &Head, text: &[u8]) {
        let mut books = self.soak.books.borrow_mut();
        let name = request.topic.name();
        let keys = self.soak.keys.borrow();
        if keys.check_answer(&mut books, &request.claim, head.status, &format!("PUT {name}")) {
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
                books.check(Book::Answers, count == request.count, || {
                    format!("{} messages for {name} became {count}", request.count)
                });
                books.count("messages published", count);
                books.told(name, epoch, ids);
            }
            (503, None, _) => books.count("publishes refused: no room for it on the bus", 1),
            (507, None, _) => books.count("publishes refused: the topic is full", 1),
            (status, ..) => books.check(Book::Answers, false, || {
                format!("PUT {name}: {status} {}", String::from_utf8_lossy(text))
            }),
        }
    }

    /// It may come later than what is sent next: from now on this is another publisher.
    fn nobody_knows(&mut self, request: &Request) {
        self.soak.books.borrow_mut().may_have_published(request.topic.name(), request.count);
        self.origin = self.soak.new_origin();
    }

    async fn take_wire(&mut self) -> io::Result<Wire> {
        match self.wire.take() {
            Some(wire) => Ok(wire),
            None => Wire::open(&self.soak.place).await,
        }
    }
}
