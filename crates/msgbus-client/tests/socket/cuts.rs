//! Connections are cut, topics come and go, the server is restarted: nothing is missing, nothing comes twice and nothing
//! out of the order of its topic, except what is announced with its exact count. Seeded: `MSGBUS_TEST_SEED`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use futures_util::StreamExt as _;
use msgbus_client::{
    Client, ClientError, Event, Message, Position, Socket, SocketStatus, SocketSubscription,
    TopicPattern,
};
use msgbus_testkit::{Daemon, Proxy, free_address, name, soon, until};
use tokio::{task::JoinSet, time::sleep};

/// The server is restarted in between.
const LIVES: u64 = 4;
const SOCKETS: usize = 16;
/// So few that retention overtakes readers.
const RETAINED: usize = 300;
/// The last one is deleted from time to time.
const TOPICS: [&str; 4] = ["t/0", "t/1", "other", "t/gone"];
const PATTERNS: [&str; 2] = ["t/*", "**"];
/// The test ends after this time, with fewer cuts.
const MAX_TIME: Duration = Duration::from_secs(60);
const SEED: u64 = 0x6d73_6762_7573;

fn cuts() -> usize {
    if env::var_os("MSGBUS_TEST_ALL").is_some() { 1000 } else { 300 }
}

#[derive(Default)]
struct World {
    cuts: AtomicUsize,
    /// Whether no connection is cut.
    is_calm: AtomicBool,
}

/// A message: the life of the server, the existence of its topic in this life, and its place in that, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u64, u64, u64);

impl Place {
    fn text(self) -> String {
        format!("{} {} {}", self.0, self.1, self.2)
    }

    fn read(payload: &[u8]) -> Self {
        let text = str::from_utf8(payload).unwrap();
        let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
        Self(numbers[0], numbers[1], numbers[2])
    }
}

/// What was published in one life of the server.
#[derive(Debug, Default, Clone)]
struct Published {
    /// For each topic its existence, and the number of messages in that.
    topics: BTreeMap<&'static str, (u64, u64)>,
    /// The number of messages that each pattern matched, deleted ones included.
    patterns: BTreeMap<&'static str, u64>,
}

impl Published {
    /// The number of messages that a subscription has to account for.
    fn of(&self, topics: &str) -> u64 {
        match self.patterns.get(topics) {
            Some(count) => *count,
            None => self.topics.get(topics).map_or(0, |(_, count)| *count),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_repeated_however_connections_end() {
    let seed = env::var("MSGBUS_TEST_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    if let Err(error) = soon(tokio::spawn(run(Rng::with_seed(seed)))).await {
        panic!("with MSGBUS_TEST_SEED={seed}: {error}");
    }
}

async fn run(mut rng: Rng) {
    let begin = Instant::now();
    let world = Arc::new(World::default());
    let address = free_address();
    let mut daemon = start(address);
    let (mut subscribers, mut cutters) = (JoinSet::new(), JoinSet::new());
    for _ in 0..SOCKETS {
        let proxy = Proxy::to(address).await;
        let socket = Client::new(&proxy.uri()).unwrap().connect().await.unwrap();
        for topics in TOPICS.into_iter().chain(PATTERNS) {
            let pattern: TopicPattern = topics.parse().unwrap();
            let subscription = socket.subscribe(pattern, Position::All).await.unwrap();
            let account = Account::new(topics);
            subscribers.spawn(account.follow(subscription));
        }
        cutters.spawn(cut(Arc::clone(&world), proxy, socket, rng.fork()));
    }
    let mut published = Published::default();
    for life in 0..LIVES {
        let goal = cuts() * usize::try_from(life + 1).unwrap() / usize::try_from(LIVES).unwrap();
        let is_over = || world.cuts.load(SeqCst) >= goal || begin.elapsed() > MAX_TIME;
        world.is_calm.store(true, SeqCst);
        everybody_follows(&daemon).await;
        world.is_calm.store(false, SeqCst);
        published = publish(&daemon, life, is_over, &mut rng).await;
        if life + 1 < LIVES {
            daemon.stop().await;
            daemon = start(address);
        }
    }
    world.is_calm.store(true, SeqCst);
    // A last message tells each subscription that all messages were published.
    for topic in TOPICS {
        daemon.put(topic, "end");
    }
    while let Some(account) = soon(subscribers.join_next()).await {
        let account = account.unwrap();
        let (topics, received, missed) = (account.topics, account.received, account.missed);
        assert_eq!(received + missed, published.of(topics), "{topics}: {received} and {missed}");
    }
    // How many there are in this time depends on the machine.
    assert!(world.cuts.load(SeqCst) >= SOCKETS, "too few cuts in this time");
    cutters.shutdown().await;
}

fn start(address: SocketAddr) -> Daemon {
    Daemon::at(address, |config| {
        config.bus.topic.max_messages = RETAINED;
        config.timeouts.drain = Duration::from_millis(300);
    })
}

/// Waits until all have subscribed. From then on all that they miss is counted: what topics have lost before somebody
/// follows a pattern is not.
async fn everybody_follows(daemon: &Daemon) {
    let topics = TOPICS.map(name);
    let patterns: Vec<TopicPattern> = PATTERNS.map(|text| text.parse().unwrap()).into();
    until(|| {
        let follow = |topic| daemon.bus.topic(topic).is_some_and(|one| one.subscribers == SOCKETS);
        let follow_all = |pattern| {
            let stats = daemon.bus.pattern(pattern);
            stats.is_some_and(|stats| stats.subscribers.len() == SOCKETS)
        };
        topics.iter().all(follow) && patterns.iter().all(follow_all)
    })
    .await;
}

/// Publishes in one life of the server.
async fn publish(
    daemon: &Daemon,
    life: u64,
    is_over: impl Fn() -> bool,
    rng: &mut Rng,
) -> Published {
    let mut published = Published::default();
    while !is_over() {
        if rng.u8(0..20) == 0 {
            let gone = published.topics.entry("t/gone").or_default();
            if daemon.bus.delete(&name("t/gone")).wait().is_ok() && gone.1 > 0 {
                *gone = (gone.0 + 1, 0);
            }
        }
        let topic = TOPICS[rng.usize(0..TOPICS.len())];
        // Sometimes more than is retained.
        let burst = if rng.u8(0..30) == 0 { 2 * RETAINED as u64 } else { rng.u64(1..20) };
        for _ in 0..burst {
            let (existence, count) = published.topics.entry(topic).or_default();
            daemon.put(topic, Place(life, *existence, *count).text());
            *count += 1;
        }
        for pattern in PATTERNS {
            if pattern == "**" || topic.starts_with("t/") {
                *published.patterns.entry(pattern).or_default() += burst;
            }
        }
        sleep(Duration::from_millis(rng.u64(1..20))).await;
    }
    published
}

/// Cuts the connections of a socket again and again.
async fn cut(world: Arc<World>, proxy: Proxy, socket: Socket, mut rng: Rng) {
    let mut statuses = Box::pin(socket.statuses());
    loop {
        // Some are cut while they resume.
        sleep(Duration::from_millis(rng.u64(0..60))).await;
        if world.is_calm.load(SeqCst) {
            continue;
        }
        proxy.cut();
        while let Some(status) = soon(statuses.next()).await {
            match status {
                SocketStatus::Connected => break,
                _ => world.cuts.fetch_add(1, SeqCst),
            };
        }
    }
}

/// What one subscription has received.
struct Account {
    topics: &'static str,
    /// The last message of each topic.
    last: BTreeMap<String, Place>,
    /// Messages since the topic or the order of the pattern began anew.
    received: u64,
    missed: u64,
    ends: usize,
}

impl Account {
    fn new(topics: &'static str) -> Self {
        Self { topics, last: BTreeMap::new(), received: 0, missed: 0, ends: 0 }
    }

    /// Follows until the last message of each topic.
    async fn follow(mut self, mut subscription: SocketSubscription) -> Self {
        let pattern: TopicPattern = self.topics.parse().unwrap();
        let ends = TOPICS.iter().filter(|topic| pattern.matches(&name(topic))).count();
        while self.ends < ends {
            match subscription.next().await.unwrap() {
                Event::Message(message) if message.payload() == "end" => self.ends += 1,
                Event::Message(message) => {
                    let place = Place::read(message.payload());
                    let topic = message.topic().name.to_string();
                    let last = self.last.insert(topic, place);
                    assert!(last < Some(place), "{}: {place:?} after {last:?}", self.topics);
                    self.received += 1;
                }
                Event::Missed(count) => self.missed += count,
                Event::Restarted => (self.received, self.missed) = (0, 0),
                other => panic!("{other:?}"),
            }
        }
        self
    }
}

/// Each message that was accepted is there once. Whether one was published whose answer was lost, is not known.
#[tokio::test]
async fn publishes_are_accepted_once_or_their_answer_is_lost() {
    const ROUNDS: u64 = 30;
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let socket = Client::new(&proxy.uri()).unwrap().connect().await.unwrap();
    let (once, again) = (name("once"), name("again"));
    let (mut answers, mut lost) = (BTreeMap::new(), 0);
    for round in 0..ROUNDS {
        let mut pending = Vec::new();
        for n in 0..200 {
            let text = (round * 200 + n).to_string();
            let publishing = socket.begin_publish(&once, text.clone()).await.unwrap();
            pending.push((text, publishing));
        }
        let again = socket.publish_at_least_once(&again, round.to_string());
        proxy.cut();
        soon(again).await.unwrap();
        for (text, publishing) in pending {
            match soon(publishing).await {
                Ok(published) => _ = answers.insert(published.id.unwrap(), text),
                Err(ClientError::Lost { .. }) => lost += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    let direct = Client::new(&daemon.uri()).unwrap();
    let all = direct.peek(&once, Some(Position::All), 10_000).await.unwrap().messages;
    let mut before = None;
    for message in &all {
        let text = str::from_utf8(message.payload()).unwrap();
        assert!(answers.remove(&message.id()).is_none_or(|answered| answered == text), "{text}");
        let number: u64 = text.parse().unwrap();
        assert!(before < Some(number), "once, and in order: {number} after {before:?}");
        before = Some(number);
    }
    assert!(answers.is_empty(), "accepted and not there: {answers:?}");
    assert!(lost > 0 && (all.len() as u64) < ROUNDS * 200 + 1);
    let again = direct.peek(&again, Some(Position::All), 10_000).await.unwrap().messages;
    let again: BTreeSet<_> = again.iter().map(Message::payload).collect();
    assert_eq!(again.len() as u64, ROUNDS);
}
