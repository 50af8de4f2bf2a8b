//! Pullers: with and without waiting, in batches, sometimes disconnecting before the response.

use std::{collections::HashMap, io, rc::Rc, time::Duration};

use fastrand::Rng;
use msgbus_core::{Message, json};
use tokio::time::sleep;

use super::{
    Soak,
    acl_model::Access,
    credentials,
    invariants::Invariant,
    payload,
    raw_client::{Head, RawClient},
    topics::Topic,
};

pub(super) struct Puller {
    soak: Rc<Soak>,
    rng: Rng,
    client: Option<RawClient>,
    /// The last id of each epoch of a topic, which is identified by its creation time.
    last: HashMap<(String, u64), u64>,
}

struct Request {
    topic: Topic,
    access: Access,
    /// The header that authenticates.
    principal: String,
    query: String,
    /// The maximum number of messages that it takes.
    most: u64,
    is_peek: bool,
    /// Whether to disconnect before the response.
    leaves: bool,
}

impl Puller {
    pub(super) fn new(soak: &Rc<Soak>, rng: Rng) -> Self {
        Self { soak: Rc::clone(soak), rng, client: None, last: HashMap::new() }
    }

    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            let request = self.request();
            if self.pull(&request).await.is_err() {
                self.client = None;
                self.soak.invariants.borrow_mut().count("puller connections broken", 1);
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
        // The outcome of an unread response is unknown, so keep it small.
        let max = self.rng.u64(1..if leaves { 8 } else { 200 });
        let wait = self.rng.u64(1..500);
        let (query, most, is_peek) = match self.rng.u8(..10) {
            0..4 => (String::new(), 1, false),
            4..6 => (format!("wait={wait}ms"), 1, false),
            6..8 => (format!("max={max}"), max, false),
            8 => (format!("max={max}&wait={wait}ms"), max, false),
            _ => (format!("peek&max={max}"), 0, true),
        };
        let keys = self.soak.keys.borrow();
        let principal = keys.random_principal(&mut self.rng);
        let access = keys.access(principal, &topic);
        let principal = credentials::header(&keys, principal, &mut self.rng);
        Request { topic, access, principal, query, most, is_peek, leaves }
    }

    async fn pull(&mut self, request: &Request) -> io::Result<()> {
        let Request { topic, principal, query, most, .. } = request;
        let name = topic.name();
        let head =
            format!("GET /{name}?{query} HTTP/1.1\r\nHost: soak.localhost\r\n{principal}\r\n");
        let mut client = match self.client.take() {
            Some(client) => client,
            None => RawClient::open(&self.soak.endpoint).await?,
        };
        client.send(head.as_bytes()).await?;
        if request.leaves {
            self.soak.invariants.borrow_mut().may_have_pulled(name, *most);
            // Before or during the response, or while the server waits for a message.
            sleep(Duration::from_millis(self.rng.u64(..5))).await;
            client.cut(self.soak.random_cut(&mut self.rng));
            self.soak.invariants.borrow_mut().count("pulls without waiting for the response", 1);
            return Ok(());
        }
        match client.read_response(true).await {
            Ok((head, body)) => {
                self.record(request, &head, &body);
                if head.keeps_alive() {
                    self.client = Some(client);
                }
                Ok(())
            }
            Err(error) => {
                self.soak.invariants.borrow_mut().may_have_pulled(name, *most);
                self.soak.record_error(&error, "a pull");
                Err(error)
            }
        }
    }

    fn record(&mut self, request: &Request, head: &Head, body: &[u8]) {
        let name = request.topic.name();
        let what = format!("GET {name}?{}", request.query);
        let is_refused = {
            let mut invariants = self.soak.invariants.borrow_mut();
            let keys = self.soak.keys.borrow();
            keys.check_response(&mut invariants, &request.access, head.status, &what)
        };
        match head.status {
            _ if is_refused => {}
            200 => {
                for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    match json::read_message(line) {
                        Ok(message) => self.take(request, &message),
                        Err(error) => self.soak.record_fault(&format!("GET {name}: {error}")),
                    }
                }
            }
            204 | 404 => self.soak.invariants.borrow_mut().count("pulls without a message", 1),
            503 => self.soak.invariants.borrow_mut().count("pulls refused at a limit", 1),
            status => self.soak.record_fault(&format!("GET {name}: {status}")),
        }
    }

    fn take(&mut self, request: &Request, message: &Message) {
        let name = request.topic.name();
        let mut invariants = self.soak.invariants.borrow_mut();
        let origin = payload::read(message.payload(), name);
        if let Some(origin) = origin {
            self.soak.keys.borrow().check_message(&mut invariants, &request.access, origin, name);
        }
        let is_right = message.topic().name.as_str() == name
            && origin.is_some_and(|origin| origin.describes(message));
        invariants
            .check(Invariant::Payloads, is_right, || format!("GET {name}: #{}", message.id()));
        if request.is_peek {
            return invariants.count("messages peeked", 1);
        }
        let created = message.topic().created.timestamp_nanos_opt().unwrap_or_default();
        let life = created.unsigned_abs();
        invariants.record_pulled(name, life, message.id());
        invariants.count("messages pulled", 1);
        let last = self.last.insert((name.to_owned(), life), message.id());
        invariants.check(Invariant::Order, last.is_none_or(|last| last < message.id()), || {
            format!("GET {name}: #{} after {last:?}", message.id())
        });
    }
}
