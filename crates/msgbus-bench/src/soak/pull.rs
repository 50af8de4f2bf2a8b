//! Those who pull: at once, waiting, several at a time; some leave before they have the answer.

use std::{collections::HashMap, io, rc::Rc, time::Duration};

use fastrand::Rng;
use msgbus_core::{Message, json};
use tokio::time::sleep;

use super::{
    Soak,
    books::Book,
    claims::Claim,
    payload, show,
    topics::Topic,
    wire::{Head, Wire},
};

pub(super) struct Puller {
    soak: Rc<Soak>,
    rng: Rng,
    wire: Option<Wire>,
    /// Of each life of a topic, known by its creation, the last id that came.
    last: HashMap<(String, u64), u64>,
}

struct Request {
    topic: Topic,
    claim: Claim,
    /// The header that says who asks.
    who: String,
    query: String,
    /// The most messages that it takes.
    most: u64,
    is_look: bool,
    /// Whether the answer is not waited for.
    leaves: bool,
}

impl Puller {
    pub(super) fn new(soak: &Rc<Soak>, rng: Rng) -> Self {
        Self { soak: Rc::clone(soak), rng, wire: None, last: HashMap::new() }
    }

    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            let request = self.request();
            if self.pull(&request).await.is_err() {
                self.wire = None;
                self.soak.books.borrow_mut().count("connections broken under a puller", 1);
                sleep(Duration::from_millis(self.rng.u64(5..50))).await;
            }
            if self.rng.u8(..4) == 0 {
                sleep(Duration::from_millis(self.rng.u64(..10))).await;
            }
        }
    }

    fn request(&mut self) -> Request {
        let topic = Topic::any_to_pull(&mut self.rng);
        let leaves = self.rng.u8(..50) == 0;
        // What becomes of an answer that nobody reads, nobody knows: it is not to be much.
        let max = self.rng.u64(1..if leaves { 8 } else { 200 });
        let wait = self.rng.u64(1..500);
        let (query, most, is_look) = match self.rng.u8(..10) {
            0..4 => (String::new(), 1, false),
            4..6 => (format!("wait={wait}ms"), 1, false),
            6..8 => (format!("max={max}"), max, false),
            8 => (format!("max={max}&wait={wait}ms"), max, false),
            _ => (format!("peek&max={max}"), 0, true),
        };
        let keys = self.soak.keys.borrow();
        let who = keys.some(&mut self.rng);
        let claim = keys.claim(who, &topic);
        let who = show::header(&keys, who, &mut self.rng);
        Request { topic, claim, who, query, most, is_look, leaves }
    }

    async fn pull(&mut self, request: &Request) -> io::Result<()> {
        let Request { topic, who, query, most, .. } = request;
        let name = topic.name();
        let head = format!("GET /{name}?{query} HTTP/1.1\r\nHost: soak.localhost\r\n{who}\r\n");
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::open(&self.soak.place).await?,
        };
        wire.send(head.as_bytes()).await?;
        if request.leaves {
            self.soak.books.borrow_mut().may_have_pulled(name, *most);
            // Before the answer, in the middle of it, or of the wait for it.
            sleep(Duration::from_millis(self.rng.u64(..5))).await;
            wire.cut(self.soak.some_cut(&mut self.rng));
            self.soak.books.borrow_mut().count("pulls left without waiting for the answer", 1);
            return Ok(());
        }
        match wire.answer(true).await {
            Ok((head, body)) => {
                self.note(request, &head, &body);
                if head.goes_on() {
                    self.wire = Some(wire);
                }
                Ok(())
            }
            Err(error) => {
                self.soak.books.borrow_mut().may_have_pulled(name, *most);
                self.soak.note_silence(&error, "a pull");
                Err(error)
            }
        }
    }

    fn note(&mut self, request: &Request, head: &Head, body: &[u8]) {
        let name = request.topic.name();
        let what = format!("GET {name}?{}", request.query);
        let is_refused = {
            let mut books = self.soak.books.borrow_mut();
            let keys = self.soak.keys.borrow();
            keys.check_answer(&mut books, &request.claim, head.status, &what)
        };
        match head.status {
            _ if is_refused => {}
            200 => {
                for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    match json::read_message(line) {
                        Ok(message) => self.take(request, &message),
                        Err(error) => self.complain(&format!("GET {name}: {error}")),
                    }
                }
            }
            204 | 404 => self.soak.books.borrow_mut().count("pulls that found nothing", 1),
            503 => self.soak.books.borrow_mut().count("pulls refused at a bound", 1),
            status => self.complain(&format!("GET {name}: {status}")),
        }
    }

    fn take(&mut self, request: &Request, message: &Message) {
        let name = request.topic.name();
        let mut books = self.soak.books.borrow_mut();
        let origin = payload::read(message.payload(), name);
        if let Some(origin) = origin {
            self.soak.keys.borrow().check_message(&mut books, &request.claim, origin, name);
        }
        let is_right = message.topic().name.as_str() == name
            && origin.is_some_and(|origin| origin.describes(message));
        books.check(Book::Payloads, is_right, || format!("GET {name}: #{}", message.id()));
        if request.is_look {
            return books.count("messages only looked at", 1);
        }
        let created = message.topic().created.timestamp_nanos_opt().unwrap_or_default();
        let life = created.unsigned_abs();
        books.pulled(name, life, message.id());
        books.count("messages pulled", 1);
        let last = self.last.insert((name.to_owned(), life), message.id());
        books.check(Book::Order, last.is_none_or(|last| last < message.id()), || {
            format!("GET {name}: #{} after {last:?}", message.id())
        });
    }

    fn complain(&self, what: &str) {
        self.soak.books.borrow_mut().check(Book::Answers, false, || what.to_owned());
    }
}
