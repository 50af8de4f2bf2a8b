//! A subscriber that reconnects and resumes, and checks everything that it receives.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use msgbus_core::json;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::sleep};

use super::{
    LIFE, RETAINED, World,
    connection::{Door, Wire, between, header},
};
use crate::support::EVENT_SOURCE;

#[derive(Debug, Clone, Copy)]
enum Asked {
    All,
    New,
    Id(u64),
    After { epoch: u64, id: u64 },
}

/// One subscriber, and the message that it expects next.
pub(super) struct Subscriber {
    pub(super) world: Arc<World>,
    pub(super) door: Door,
    pub(super) proxy: SocketAddr,
    pub(super) rng: Rng,
    /// The last complete message.
    pub(super) last: Option<(u64, u64)>,
    pub(super) last_number: Option<u64>,
    /// The first requested id or, after a message, the id after it.
    pub(super) next: u64,
    pub(super) epoch: u64,
    /// The number of messages from `next` on that were reported as missed.
    pub(super) told: u64,
    pub(super) owes_restart: bool,
    /// The epoch of each life of the server, according to the messages.
    pub(super) lives: BTreeMap<u64, u64>,
    pub(super) seen: Arc<Seen>,
}

/// What happened to all subscribers: the test requires that enough happens.
#[derive(Default, Debug)]
pub(super) struct Seen {
    pub(super) messages: AtomicUsize,
    pub(super) resumed: AtomicUsize,
    pub(super) restarts: AtomicUsize,
    pub(super) gaps_at_start: AtomicUsize,
    pub(super) gaps_on_the_way: AtomicUsize,
}

impl Subscriber {
    pub(super) async fn run(mut self, published: Arc<Mutex<Vec<u64>>>) {
        while !self.follow().await {
            // Retries after a pause. Some pauses are long.
            let away = if self.rng.u8(0..8) == 0 { 150 } else { 10 };
            sleep(Duration::from_millis(self.rng.u64(0..away))).await;
        }
        let published = published.lock().unwrap();
        for (epoch, life) in self.lives {
            assert_eq!(Some(&epoch), published.get(usize::try_from(life).unwrap()));
        }
    }

    fn ask(&mut self) -> Asked {
        if self.rng.u8(0..20) == 0 {
            (self.last, self.last_number) = (None, None);
        }
        match (self.last, self.rng.u8(0..3)) {
            (Some((epoch, id)), _) => Asked::After { epoch, id },
            (None, 0) => Asked::All,
            (None, 1) => Asked::New,
            (None, _) => Asked::Id(self.rng.u64(0..=self.world.begun.load(SeqCst) % LIFE)),
        }
    }

    fn request(&self, asked: Asked) -> String {
        let (mut query, mut headers) = (String::new(), String::new());
        let by_header = matches!(self.door, Door::Sse | Door::Ndjson);
        match asked {
            Asked::All => query.push_str("&since=all"),
            Asked::New => query.push_str("&since=new"),
            Asked::Id(id) => query.push_str(&format!("&since={id}")),
            Asked::After { epoch, id } if by_header => {
                headers.push_str(&format!("Last-Event-ID: {epoch}-{id}\r\n"));
            }
            Asked::After { epoch, id } => query.push_str(&format!("&since={epoch}-{id}")),
        }
        let stream = match self.door {
            Door::Websocket => {
                headers.push_str(
                    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
                );
                "lag=skip"
            }
            Door::Sse => {
                headers.push_str(EVENT_SOURCE);
                "stream=sse"
            }
            Door::Ndjson => "stream=ndjson",
            Door::Raw => "stream=raw",
        };
        format!("GET /t?{stream}{query} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
    }

    /// Follows the topic on one connection; `true` when everything has been received.
    async fn follow(&mut self) -> bool {
        let asked = self.ask();
        let stops = self.world.stops.load(SeqCst);
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        // Errors show up when reading.
        let _ = stream.write_all(self.request(asked).as_bytes()).await;
        let (bytes, text) = (Vec::new(), Vec::new());
        let mut wire = Wire { door: self.door, stream, bytes, text, is_over: false };
        let Some(head) = wire.head().await else { return false };
        if head.starts_with("HTTP/1.1 503 ") {
            // By now, it may have been started again.
            assert!(self.world.stops.load(SeqCst) > stops, "only while it stops: {head}");
            return false;
        }
        self.begin(asked, &head);
        loop {
            while let Some(entry) = wire.entry() {
                self.note(&entry);
            }
            if self.world.end.get() == Some(&(self.epoch, self.next + self.told)) {
                return true;
            }
            if !wire.read().await {
                return false;
            }
        }
    }

    fn begin(&mut self, asked: Asked, head: &str) {
        let status = if self.door == Door::Websocket { "101" } else { "200" };
        assert_eq!(head.split(' ').nth(1), Some(status), "{head}");
        let missed = header(head, "msgbus-missed").unwrap_or(0);
        let restarted = head.contains("\r\nmsgbus-restarted: true");
        self.epoch = header(head, "msgbus-epoch").unwrap();
        self.next = header(head, "msgbus-next-id").unwrap() - missed;
        match asked {
            Asked::All | Asked::New => assert_eq!((missed, restarted), (0, false)),
            // It was an id of the previous life.
            Asked::Id(_) if restarted => assert_eq!(self.next, 0),
            Asked::Id(id) => assert_eq!(self.next, id),
            Asked::After { epoch, id } => {
                assert_eq!(restarted, epoch != self.epoch, "{asked:?}: {head}");
                assert_eq!(self.next, if restarted { 0 } else { id + 1 }, "{asked:?}: {head}");
                self.seen.resumed.fetch_add(1, SeqCst);
            }
        }
        self.owes_restart = restarted && self.reports_gaps();
        self.told = if self.reports_gaps() { 0 } else { missed };
        self.seen.restarts.fetch_add(usize::from(restarted), SeqCst);
        self.seen.gaps_at_start.fetch_add(usize::from(missed > 0), SeqCst);
    }

    /// Whether gaps and restarts are reported as events.
    fn reports_gaps(&self) -> bool {
        matches!(self.door, Door::Sse | Door::Ndjson)
    }

    fn note(&mut self, entry: &str) {
        match self.door {
            Door::Raw => {
                let number = entry.parse().unwrap();
                self.message(number % LIFE, number);
            }
            Door::Sse => self.event(entry),
            Door::Websocket => self.object(entry),
            Door::Ndjson => {
                let event = |name| between(entry, &format!("{{\"event\":\"{name}\","), "}");
                if let Some(fields) = event("gap").or_else(|| event("restart")) {
                    self.control_event(fields);
                } else if !entry.is_empty() {
                    self.object(entry);
                }
            }
        }
    }

    fn event(&mut self, event: &str) {
        let event = event.trim_start_matches(":\n");
        let Some((first, data)) = event.split_once("\ndata: ") else {
            let start = self.next.checked_sub(1).map_or("start".to_owned(), |id| id.to_string());
            assert_eq!(event, format!("id: {}-{start}", self.epoch), "it begins with its start");
            return;
        };
        if let Some(id) = first.strip_prefix("id: ") {
            self.object(data);
            let (epoch, last) = self.last.unwrap();
            assert_eq!(id, format!("{epoch}-{last}"));
        } else {
            assert!(["event: gap", "event: restart"].contains(&first), "{event}");
            // After a gap comes the id to resume with.
            let data = data.lines().next().unwrap();
            self.control_event(between(data, "{", "}").unwrap());
        }
    }

    /// A gap or a restart.
    fn control_event(&mut self, fields: &str) {
        assert!(self.reports_gaps());
        if let Some(count) = fields.strip_prefix("\"missed\":") {
            self.told += count.parse::<u64>().unwrap();
            assert!(!self.owes_restart, "the restart comes first");
        } else {
            assert_eq!(fields, format!("\"epoch\":\"{}\"", self.epoch));
            assert!(self.owes_restart, "a restart that is none");
            self.owes_restart = false;
        }
    }

    fn object(&mut self, object: &str) {
        let message = json::read_message(object.as_bytes()).unwrap();
        let number = std::str::from_utf8(message.payload()).unwrap().parse().unwrap();
        self.message(message.id(), number);
    }

    fn message(&mut self, id: u64, number: u64) {
        let door = self.door;
        let expected = self.next + self.told;
        assert_eq!(number % LIFE, id, "{door:?}: the payload of another message");
        assert!(!self.owes_restart, "{door:?}: the restart was not told");
        if self.reports_gaps() {
            assert_eq!(id, expected, "{door:?}: {} were told to be gone", self.told);
        }
        assert!(id >= expected, "{door:?}: {id} instead of {expected}");
        if id > self.next {
            self.overtaken(number);
        }
        assert!(self.last_number.is_none_or(|last| last < number), "{door:?}: {number} again");
        assert_eq!(*self.lives.entry(self.epoch).or_insert(number / LIFE), number / LIFE);
        (self.next, self.told) = (id + 1, 0);
        self.last = Some((self.epoch, id));
        self.last_number = Some(number);
        self.seen.messages.fetch_add(1, SeqCst);
    }

    /// Checks a gap before this message: only retention may cause one, when it has reached the message.
    fn overtaken(&self, number: u64) {
        let begun = self.world.begun.load(SeqCst);
        let door = self.door;
        assert!(
            number + RETAINED <= begun,
            "{door:?}: a gap from {} to {number}, of {begun} that were published",
            self.next
        );
        self.seen.gaps_on_the_way.fetch_add(1, SeqCst);
    }
}
