//! Nothing is missed and nothing comes twice, however connections end: sections 2.1, 2.2, 5.4, 5.6,
//! 6.2 to 6.6 and 6.10 to 6.14.

mod connection;
mod patterns;
mod proxy;
mod subscriber;
mod waiting_pulls;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use msgbus_core::MessageBus;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use self::{
    connection::Door,
    proxy::proxy,
    subscriber::{Seen, Subscriber},
};
use crate::support::{Daemon, free_address, soon, until};

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
pub(crate) async fn seeded<F>(test: impl FnOnce(u64) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let seed = std::env::var("MSGBUS_TEST_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    if let Err(error) = soon(tokio::spawn(test(seed))).await {
        panic!("with MSGBUS_TEST_SEED={seed}: {error}");
    }
}

pub(crate) async fn all(mut tasks: JoinSet<()>) {
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
    /// How often the server has begun to stop.
    stops: AtomicUsize,
    /// Whether new connections are no longer cut.
    calm: AtomicBool,
    /// The number after the last one that has been published or is being published.
    begun: AtomicU64,
    /// The epoch of the last life, and its number of messages, when all are published.
    end: OnceLock<(u64, u64)>,
}

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
    let address = free_address();
    let mut daemon = start(address);
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
        world.stops.fetch_add(1, SeqCst);
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
