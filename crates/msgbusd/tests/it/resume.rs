//! Nothing is missed and nothing comes twice, however connections end: sections 2.1, 2.2, 5.4, 5.6,
//! 6.2 to 6.6 and 6.10 to 6.14.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::BufRead as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use msgbus_core::{MessageBus, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::support::{Connection, Daemon, EVENT_SOURCE, soon, until};

/// The number of messages that the topic retains: so few that retention overtakes readers.
const RETAINED: u64 = 256;
/// How often the server is restarted, and the number of cuts in each of its lives.
const LIVES: u64 = 4;
const CUTS_PER_LIFE: usize = 275;
/// Payloads are sequence numbers: the life of the server times this, plus the id.
const LIFE: u64 = 1_000_000;
const SUBSCRIBERS: usize = 16;
const SEED: u64 = 0x6d73_6762_7573;

/// Runs a test in a separate task, so that a failure of any part can name the seed.
async fn seeded<F>(test: impl FnOnce(u64) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let seed = std::env::var("MSGBUS_TEST_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    if let Err(error) = soon(tokio::spawn(test(seed))).await {
        panic!("with MSGBUS_TEST_SEED={seed}: {error}");
    }
}

async fn all(mut tasks: JoinSet<()>) {
    while let Some(ended) = soon(tasks.join_next()).await {
        ended.unwrap();
    }
}

/// The state that the parts of the test share.
#[derive(Default)]
struct World {
    /// The address of the server, while it runs.
    server: Mutex<Option<SocketAddr>>,
    cuts: AtomicUsize,
    /// Whether new connections are no longer cut.
    calm: AtomicBool,
    /// The number after the last one that has been published or is being published.
    begun: AtomicU64,
    /// The epoch of the last life, and its number of messages, when all are published.
    end: OnceLock<(u64, u64)>,
}

// The proxy

/// What the proxy does to one connection.
struct Fate {
    /// The number of bytes that pass to the server, and from it.
    up: usize,
    down: usize,
    time: Duration,
    /// After how many bytes from the server reading pauses, and for how long.
    pause: (usize, Duration),
    /// Whether each side sees a reset instead of an orderly end.
    reset_near: bool,
    reset_far: bool,
}

impl Fate {
    const ENDLESS: Duration = Duration::from_secs(3600);

    fn calm() -> Self {
        Self {
            up: usize::MAX,
            down: usize::MAX,
            time: Self::ENDLESS,
            pause: (usize::MAX, Duration::ZERO),
            reset_near: false,
            reset_far: false,
        }
    }

    fn draw(rng: &mut Rng) -> Self {
        let mut fate = Self {
            time: Duration::from_millis(rng.u64(50..250)),
            reset_near: rng.bool(),
            reset_far: rng.bool(),
            ..Self::calm()
        };
        match rng.u8(0..10) {
            // In the head of the request or the response, and anywhere in frames and chunks.
            0 => fate.up = rng.usize(0..250),
            1 => fate.down = rng.usize(0..350),
            2..=6 => {
                let magnitude = rng.u8(4..18);
                fate.down = 250 + rng.usize(0..1 << magnitude);
            }
            _ => fate.time = Duration::from_micros(rng.u64(0..100_000)),
        }
        if rng.u8(0..4) == 0 {
            fate.pause = (rng.usize(0..20_000), Duration::from_millis(rng.u64(10..200)));
            fate.time += fate.pause.1;
        }
        fate
    }
}

/// A proxy for one subscriber. What it does depends only on the seed.
async fn proxy(world: Arc<World>, listener: TcpListener, mut rng: Rng) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        let server = *world.server.lock().unwrap();
        let fate = if world.calm.load(SeqCst) { Fate::calm() } else { Fate::draw(&mut rng) };
        // While the server is down, the connection ends at once.
        let Some(server) = server else { continue };
        let socket = TcpSocket::new_v4().unwrap();
        // Small, so that a pause blocks the server.
        socket.set_recv_buffer_size(4 << 10).unwrap();
        let Ok(far) = socket.connect(server).await else { continue };
        pass(&world, near, far, fate).await;
    }
}

async fn pass(world: &World, mut near: TcpStream, mut far: TcpStream, fate: Fate) {
    let (mut near_read, mut near_write) = near.split();
    let (mut far_read, mut far_write) = far.split();
    let never = (usize::MAX, Duration::ZERO);
    let is_cut = tokio::select! {
        is_cut = carry(&mut near_read, &mut far_write, fate.up, never) => is_cut,
        is_cut = carry(&mut far_read, &mut near_write, fate.down, fate.pause) => is_cut,
        () = sleep(fate.time) => true,
    };
    if !is_cut {
        return;
    }
    for (socket, reset) in [(&mut near, fate.reset_near), (&mut far, fate.reset_far)] {
        if reset {
            socket.set_zero_linger().unwrap();
        } else {
            // The other side may have closed first.
            let _ = socket.shutdown().await;
        }
    }
    world.cuts.fetch_add(1, SeqCst);
}

/// Forwards a number of bytes. Returns whether that number was reached, and neither side ended before.
async fn carry(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    most: usize,
    pause: (usize, Duration),
) -> bool {
    let mut buffer = [0; 4 << 10];
    let mut passed = 0;
    let mut is_paused = false;
    while passed < most {
        if passed >= pause.0 && !is_paused {
            is_paused = true;
            sleep(pause.1).await;
        }
        let space = buffer.len().min(most - passed);
        let Ok(count @ 1..) = from.read(&mut buffer[..space]).await else { return false };
        if to.write_all(&buffer[..count]).await.is_err() {
            return false;
        }
        passed += count;
    }
    true
}

// A connection as a client sees it

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Websocket,
    Sse,
    Ndjson,
    Raw,
}

struct Wire {
    door: Door,
    stream: TcpStream,
    /// The received bytes, and those without the framing of HTTP or the websocket.
    bytes: Vec<u8>,
    text: Vec<u8>,
    is_over: bool,
}

impl Wire {
    /// Waits up to 50 ms for more bytes; `false` at the end of the connection.
    async fn read(&mut self) -> bool {
        const READ_TIMEOUT: Duration = Duration::from_millis(50);
        let read = timeout(READ_TIMEOUT, self.stream.read_buf(&mut self.bytes)).await;
        !self.is_over && !matches!(read, Ok(Ok(0) | Err(_)))
    }

    async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(head) = take_until(&mut self.bytes, b"\r\n\r\n") {
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// The next whole line or, in SSE, event.
    fn entry(&mut self) -> Option<String> {
        let end: &[u8] = if self.door == Door::Sse { b"\n\n" } else { b"\n" };
        loop {
            if let Some(entry) = take_until(&mut self.text, end) {
                return Some(String::from_utf8(entry).unwrap());
            }
            let part = if self.door == Door::Websocket { self.frame()? } else { self.chunk()? };
            self.text.extend(part);
        }
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
        let (start, size) = match *self.bytes.get(1)? {
            126 => (4, usize::from(u16::from_be_bytes(self.bytes.get(2..4)?.try_into().unwrap()))),
            127 => (10, self.bytes.get(2..10)?.iter().fold(0, |n, b| n << 8 | usize::from(*b))),
            size => (2, usize::from(size)),
        };
        let payload = self.bytes.get(start..start + size)?.to_vec();
        match self.bytes[0] {
            0x81 => {}
            0x88 if payload.starts_with(&1001_u16.to_be_bytes()) => self.is_over = true,
            other => panic!("a frame that begins with {other:#x}: {payload:?}"),
        }
        self.bytes.drain(..start + size);
        if self.is_over { None } else { Some(payload) }
    }

    fn chunk(&mut self) -> Option<Vec<u8>> {
        let end = self.bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&self.bytes[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let start = end + 2;
        let chunk =
            self.bytes.get(start..start + size + 2)?.strip_suffix(b"\r\n").unwrap().to_vec();
        self.bytes.drain(..start + size + 2);
        self.is_over = size == 0;
        if self.is_over { None } else { Some(chunk) }
    }
}

/// Takes the bytes before `end`, which ends with a line feed, and drops `end`.
fn take_until(bytes: &mut Vec<u8>, end: &[u8]) -> Option<Vec<u8>> {
    let (mut taken, mut rest) = (Vec::new(), &bytes[..]);
    while !taken.ends_with(end) {
        if rest.read_until(b'\n', &mut taken).unwrap() == 0 {
            return None;
        }
    }
    bytes.drain(..taken.len());
    taken.truncate(taken.len() - end.len());
    Some(taken)
}

fn header(head: &str, name: &str) -> Option<u64> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok())
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_suffix(after)
}

// A subscriber

#[derive(Debug, Clone, Copy)]
enum Asked {
    All,
    New,
    Id(u64),
    After { epoch: u64, id: u64 },
}

/// One subscriber, and the message that it expects next.
struct Subscriber {
    world: Arc<World>,
    door: Door,
    proxy: SocketAddr,
    rng: Rng,
    /// The last complete message.
    last: Option<(u64, u64)>,
    last_number: Option<u64>,
    /// The first requested id or, after a message, the id after it.
    next: u64,
    epoch: u64,
    /// The number of messages from `next` on that were reported as missed.
    told: u64,
    owes_restart: bool,
    /// The epoch of each life of the server, according to the messages.
    lives: BTreeMap<u64, u64>,
    seen: Arc<Seen>,
}

/// What happened to all subscribers: the test requires that enough happens.
#[derive(Default, Debug)]
struct Seen {
    messages: AtomicUsize,
    resumed: AtomicUsize,
    restarts: AtomicUsize,
    gaps_at_start: AtomicUsize,
    gaps_on_the_way: AtomicUsize,
}

impl Subscriber {
    async fn run(mut self, published: Arc<Mutex<Vec<u64>>>) {
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
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        // Errors show up when reading.
        let _ = stream.write_all(self.request(asked).as_bytes()).await;
        let (bytes, text) = (Vec::new(), Vec::new());
        let mut wire = Wire { door: self.door, stream, bytes, text, is_over: false };
        let Some(head) = wire.head().await else { return false };
        if head.starts_with("HTTP/1.1 503 ") {
            assert_eq!(*self.world.server.lock().unwrap(), None, "only while it stops: {head}");
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

// The test

/// Publishes in one life of the server until it has had its share of cuts.
async fn publish(world: &World, bus: &MessageBus, life: u64, rng: &mut Rng) -> (u64, u64) {
    let topic = "t".parse().unwrap();
    let cuts = CUTS_PER_LIFE * usize::try_from(life + 1).unwrap();
    let (mut epoch, mut count) = (0, 0);
    while world.cuts.load(SeqCst) < cuts {
        // Sometimes more than is retained, at once; sometimes large enough to fill buffers.
        let burst = if rng.u8(0..40) == 0 { RETAINED + 100 } else { rng.u64(1..30) };
        let width = if rng.u8(0..10) == 0 { 4 << 10 } else { rng.usize(0..300) };
        for _ in 0..burst {
            let number = life * LIFE + count;
            world.begun.store(number + 1, SeqCst);
            let published = bus.put(&topic, format!("{number:0width$}")).unwrap();
            assert_eq!(published.id, count);
            (epoch, count) = (published.epoch, count + 1);
        }
        sleep(Duration::from_millis(rng.u64(1..30))).await;
    }
    (epoch, count)
}

fn start(address: SocketAddr) -> Daemon {
    Daemon::with(|config| {
        config.bind = vec![msgbusd::Bind::Tcp(address)];
        config.bus.topic.max_messages = usize::try_from(RETAINED).unwrap();
        config.timeouts.drain = Duration::from_millis(300);
    })
}

async fn subscribers(
    world: &Arc<World>,
    published: &Arc<Mutex<Vec<u64>>>,
    seen: &Arc<Seen>,
    rng: &mut Rng,
) -> (JoinSet<()>, JoinSet<()>) {
    let (mut proxies, mut subscribers) = (JoinSet::new(), JoinSet::new());
    for door in
        [Door::Websocket, Door::Sse, Door::Ndjson, Door::Raw].into_iter().cycle().take(SUBSCRIBERS)
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let subscriber = Subscriber {
            world: Arc::clone(world),
            door,
            proxy: listener.local_addr().unwrap(),
            rng: rng.fork(),
            last: None,
            last_number: None,
            next: 0,
            epoch: 0,
            told: 0,
            owes_restart: false,
            lives: BTreeMap::new(),
            seen: Arc::clone(seen),
        };
        proxies.spawn(proxy(Arc::clone(world), listener, rng.fork()));
        subscribers.spawn(subscriber.run(Arc::clone(published)));
    }
    (proxies, subscribers)
}

/// Runs all lives of the server; the last one is still running.
async fn run_lives(world: &World, published: &Mutex<Vec<u64>>, rng: &mut Rng) -> Daemon {
    let mut daemon = start(([127, 0, 0, 1], 0).into());
    let address = daemon.address;
    for life in 0.. {
        *world.server.lock().unwrap() = Some(address);
        let (epoch, count) = publish(world, &daemon.bus, life, rng).await;
        published.lock().unwrap().push(epoch);
        if life + 1 == LIVES {
            world.calm.store(true, SeqCst);
            world.end.set((epoch, count)).unwrap();
            break;
        }
        *world.server.lock().unwrap() = None;
        soon(daemon.stop()).await.unwrap();
        daemon = start(address);
    }
    daemon
}

async fn cut_and_resume(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let (world, published, seen) =
        (Arc::<World>::default(), Arc::<Mutex<Vec<u64>>>::default(), Arc::<Seen>::default());
    let (proxies, subscribers) = subscribers(&world, &published, &seen, &mut rng).await;
    // Together, so that a subscriber that fails ends the test at once.
    let (daemon, ()) = tokio::join!(run_lives(&world, &published, &mut rng), all(subscribers));
    drop(proxies);
    soon(until(|| daemon.bus.stats().subscribers == 0)).await;
    assert!(world.cuts.load(SeqCst) >= 1000);
    for count in [&seen.resumed, &seen.restarts, &seen.gaps_at_start, &seen.gaps_on_the_way] {
        assert!(count.load(SeqCst) >= 20, "too little happened: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_through_a_thousand_cuts() {
    seeded(cut_and_resume).await;
}

// Waiting pulls

/// A waiting pull, and the maximum number of messages that it takes.
struct Waiting {
    connection: Connection,
    most: usize,
}

impl Waiting {
    async fn begin(daemon: &Daemon, topic: &str, rng: &mut Rng) -> Self {
        let mut connection = daemon.connect().await;
        let (max, most) = if rng.bool() { ("&max=3", 3) } else { ("", 1) };
        let head = format!("GET /{topic}?wait=20s{max} HTTP/1.1\r\nHost: localhost\r\n");
        connection.write(format!("{head}Connection: close\r\n\r\n").as_bytes()).await;
        Self { connection, most }
    }

    fn vanish(self, rng: &mut Rng) {
        if rng.bool() {
            self.connection.0.set_zero_linger().unwrap();
        }
    }

    async fn ids(mut self) -> Vec<u64> {
        let reply = self.connection.reply().await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let lines = reply.text().lines();
        lines.map(|line| json::read_message(line.as_bytes()).unwrap().id()).collect()
    }
}

async fn waiting(daemon: &Daemon, topic: &str, count: usize, rng: &mut Rng) -> Vec<Waiting> {
    let mut waiting = Vec::new();
    for _ in 0..count {
        waiting.push(Waiting::begin(daemon, topic, rng).await);
    }
    waiting
}

/// One topic: some pulls wait to the end, some vanish before anything is published, some meanwhile.
async fn pull_and_vanish(daemon: &Daemon, topic: &str, rng: &mut Rng) {
    let name = topic.parse().unwrap();
    let bus = &daemon.bus;
    let waiters = || bus.topic(&name).map_or(0, |stats| stats.waiters);
    let mut group = async |count| waiting(daemon, topic, count, rng).await;
    let (early, staying, late) = (group(4).await, group(4).await, group(4).await);
    soon(until(|| waiters() == 12)).await;
    for client in early {
        client.vanish(rng);
    }
    soon(until(|| waiters() == 8)).await;

    let at_most_lost: usize = late.iter().map(|client| client.most).sum();
    let mut pulls = JoinSet::new();
    for client in staying {
        pulls.spawn(client.ids());
    }
    let mut published = 0;
    let mut late = late.into_iter();
    let mut ids = Vec::new();
    while !pulls.is_empty() {
        match rng.u8(0..3) {
            0 => published = bus.put(&name, "x").unwrap().id + 1,
            1 => late.next().into_iter().for_each(|client| client.vanish(rng)),
            _ => sleep(Duration::from_micros(rng.u64(0..500))).await,
        }
        while let Some(pulled) = pulls.try_join_next() {
            ids.extend(pulled.unwrap());
        }
    }
    late.for_each(|client| client.vanish(rng));
    soon(until(|| waiters() == 0)).await;
    while let Some(message) = bus.get(&name).unwrap() {
        ids.push(message.id());
    }
    let different: BTreeSet<_> = ids.iter().copied().collect();
    assert_eq!(different.len(), ids.len(), "pulled twice: {ids:?}");
    assert!(different.iter().all(|id| *id < published));
    let lost = usize::try_from(published).unwrap() - ids.len();
    assert!(lost <= at_most_lost, "{lost} of {published} are lost: {ids:?}");
}

async fn wait_and_vanish(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let daemon = Daemon::start();
    for round in 0..40 {
        pull_and_vanish(&daemon, &format!("t/{round}"), &mut rng).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_pulls_that_vanish_take_no_messages() {
    seeded(wait_and_vanish).await;
}
