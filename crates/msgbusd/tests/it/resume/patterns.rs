//! The same for patterns over topics that come and go: section 15.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use msgbus_core::{MessageBus, Position, TopicPattern, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

use super::{
    LIVES, RETAINED, World, all,
    connection::{Door, Wire, between, header},
    proxy::proxy,
    seeded, start,
};
use crate::support::{Daemon, EVENT_SOURCE, HANDSHAKE, free_address, soon, until};

const SUBSCRIBERS: usize = 12;
const CUTS_PER_LIFE: usize = 255;
const TOPICS: u8 = 5;

/// What all subscribers have seen.
#[derive(Default, Debug)]
struct Seen {
    /// The payload at each position: the order is the same for everybody.
    order: Mutex<HashMap<(u64, u64), u64>>,
    resumed: AtomicUsize,
    restarts: AtomicUsize,
    gaps: AtomicUsize,
}

struct Subscriber {
    world: Arc<World>,
    seen: Arc<Seen>,
    door: Door,
    proxy: SocketAddr,
    rng: Rng,
    /// The position of the last message.
    last: Option<(u64, u64)>,
    epoch: u64,
    /// The id after the last message, or the first one that was asked for.
    next: u64,
    /// The number of messages from `next` on that were told to be missed.
    told: u64,
    /// The latest payload of each topic since the last restart.
    latest: HashMap<String, u64>,
}

impl Subscriber {
    async fn run(mut self) {
        while !self.follow().await {
            let away = if self.rng.u8(0..8) == 0 { 150 } else { 10 };
            sleep(Duration::from_millis(self.rng.u64(0..away))).await;
        }
    }

    fn request(&mut self) -> String {
        if self.rng.u8(0..30) == 0 {
            self.last = None;
        }
        let (mut query, mut headers) = (String::new(), String::new());
        match self.last {
            Some((epoch, id)) if self.door == Door::Sse => {
                headers.push_str(&format!("Last-Event-ID: {epoch}-{id}\r\n"));
            }
            Some((epoch, id)) => query.push_str(&format!("&since={epoch}-{id}")),
            None => query.push_str(if self.rng.bool() { "&since=all" } else { "" }),
        }
        let stream = match self.door {
            Door::Websocket => {
                headers.push_str(HANDSHAKE);
                "gaps"
            }
            Door::Sse => {
                headers.push_str(EVENT_SOURCE);
                "stream=sse"
            }
            Door::Ndjson | Door::Raw => "stream=ndjson",
        };
        format!("GET /t/*?{stream}{query} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
    }

    /// Follows the pattern on one connection; `true` when everything has been received.
    async fn follow(&mut self) -> bool {
        let request = self.request();
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        // Errors show up when reading.
        let _ = stream.write_all(request.as_bytes()).await;
        let (bytes, text) = (Vec::new(), Vec::new());
        let mut wire = Wire { door: self.door, stream, bytes, text, is_over: false };
        let Some(head) = wire.head().await else { return false };
        if head.starts_with("HTTP/1.1 503 ") {
            return false;
        }
        self.begin(&head);
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

    fn begin(&mut self, head: &str) {
        let status = if self.door == Door::Websocket { "101" } else { "200" };
        assert_eq!(head.split(' ').nth(1), Some(status), "{head}");
        let restarted = head.contains("\r\nmsgbus-restarted: true");
        self.epoch = header(head, "msgbus-epoch").unwrap();
        self.next =
            header(head, "msgbus-next-id").unwrap() - header(head, "msgbus-missed").unwrap_or(0);
        self.told = 0;
        match self.last {
            Some((epoch, _)) if restarted => {
                assert_ne!(epoch, self.epoch, "it is the same order: {head}");
                self.seen.restarts.fetch_add(1, SeqCst);
            }
            Some(last) => {
                assert_eq!((self.epoch, self.next), (last.0, last.1 + 1), "{head}");
                self.seen.resumed.fetch_add(1, SeqCst);
                return;
            }
            None => assert!(!restarted, "{head}"),
        }
        self.latest.clear();
    }

    fn note(&mut self, entry: &str) {
        let entry = entry.trim_start_matches(":\n");
        let gap = between(entry, "{\"event\":\"gap\",", "}")
            .or_else(|| between(entry, "event: gap\ndata: {", ""));
        if let Some(gap) = gap {
            let count = gap.strip_prefix("\"missed\":").unwrap();
            let digits = count.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            self.told += digits.parse::<u64>().unwrap();
            self.seen.gaps.fetch_add(1, SeqCst);
            return;
        }
        // The other events are tested elsewhere.
        if let Some(start) = entry.find("{\"id\":") {
            self.message(&entry[start..]);
        }
    }

    fn message(&mut self, object: &str) {
        let message = json::read_message(object.as_bytes()).unwrap();
        let number: u64 = str::from_utf8(message.payload()).unwrap().parse().unwrap();
        let position = object.split_once(",\"position\":\"").unwrap().1.split_once('"').unwrap().0;
        let (epoch, id) = position.split_once('-').unwrap();
        let position: (u64, u64) = (epoch.parse().unwrap(), id.parse().unwrap());
        let door = self.door;
        assert_eq!(position, (self.epoch, self.next + self.told), "{door:?}: {}", self.told);
        let known = *self.seen.order.lock().unwrap().entry(position).or_insert(number);
        assert_eq!(known, number, "{door:?}: another order");
        let before = self.latest.insert(message.topic().name.to_string(), number);
        assert!(before.is_none_or(|before| before < number), "{door:?}: {before:?}, {number}");
        (self.next, self.told, self.last) = (position.1 + 1, 0, Some(position));
    }
}

/// Publishes in one life of the server until it has had its share of cuts.
async fn publish(world: &World, bus: &MessageBus, life: u64, rng: &mut Rng) {
    let cuts = CUTS_PER_LIFE * usize::try_from(life + 1).unwrap();
    while world.cuts.load(SeqCst) < cuts {
        let topic = format!("t/{}", rng.u8(0..TOPICS)).parse().unwrap();
        if rng.u8(0..25) == 0 {
            bus.delete(&topic).await.unwrap();
        }
        let burst = if rng.u8(0..40) == 0 { RETAINED + 100 } else { rng.u64(1..30) };
        let width = rng.usize(0..300);
        for _ in 0..burst {
            let number = world.begun.fetch_add(1, SeqCst);
            bus.put(&topic, format!("{number:0width$}")).unwrap();
        }
        sleep(Duration::from_millis(rng.u64(1..20))).await;
    }
}

/// Runs all lives of the server; the last one is still running, for a subscriber that is between two connections.
async fn run_lives(world: &World, rng: &mut Rng) -> Daemon {
    let pattern: TopicPattern = "t/*".parse().unwrap();
    let mut daemon = start(free_address());
    for life in 0..LIVES {
        *world.server.lock().unwrap() = Some(daemon.address);
        publish(world, &daemon.bus, life, rng).await;
        if life + 1 < LIVES {
            *world.server.lock().unwrap() = None;
            let address = daemon.address;
            soon(daemon.stop()).await.unwrap();
            daemon = start(address);
        }
    }
    world.calm.store(true, SeqCst);
    soon(until(|| daemon.bus.pattern(&pattern).is_some())).await;
    let epoch = daemon.bus.subscribe_pattern(&pattern, Position::New).unwrap().epoch();
    let next_id = daemon.bus.pattern(&pattern).unwrap().next_id;
    world.end.set((epoch, next_id)).unwrap();
    daemon
}

async fn cut_and_resume(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let (world, seen) = (Arc::<World>::default(), Arc::<Seen>::default());
    let (mut proxies, mut subscribers) = (JoinSet::new(), JoinSet::new());
    for door in [Door::Websocket, Door::Sse, Door::Ndjson].into_iter().cycle().take(SUBSCRIBERS) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let subscriber = Subscriber {
            world: Arc::clone(&world),
            seen: Arc::clone(&seen),
            door,
            proxy: listener.local_addr().unwrap(),
            rng: rng.fork(),
            last: None,
            epoch: 0,
            next: 0,
            told: 0,
            latest: HashMap::new(),
        };
        proxies.spawn(proxy(Arc::clone(&world), listener, rng.fork()));
        subscribers.spawn(subscriber.run());
    }
    let (daemon, ()) = tokio::join!(run_lives(&world, &mut rng), all(subscribers));
    drop(proxies);
    soon(until(|| daemon.bus.stats().subscribers == 0)).await;
    assert!(world.cuts.load(SeqCst) >= 1000);
    for count in [&seen.resumed, &seen.restarts, &seen.gaps] {
        assert!(count.load(SeqCst) >= 20, "too little happened: {count:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_pattern_is_missed_through_a_thousand_cuts() {
    seeded(cut_and_resume).await;
}
