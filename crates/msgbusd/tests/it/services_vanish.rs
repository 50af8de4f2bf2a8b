//! Requesters and responders that vanish at every moment: 17.2 to 17.6.

mod ledger;
mod requester;
mod responder;
mod wire;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use tokio::{task::JoinSet, time::sleep};

use self::{
    ledger::{Ledger, Outcome},
    requester::Requester,
    responder::Responder,
};
use crate::{
    resume::{all, seeded},
    support::{Daemon, until},
};

const REQUESTERS: usize = 24;
const RESPONDERS: usize = 16;
/// How many clients vanish at least, and how many of each kind.
const VANISHED: u64 = 1_000;
const VANISHED_OF_EACH: u64 = 300;
/// How many requests end in each way at least.
const EACH: usize = 5;

/// The state that all clients share.
struct World {
    server: SocketAddr,
    ledger: Ledger,
    /// Whether responders stop.
    is_over: AtomicBool,
}

impl World {
    /// Whether too little has happened yet. On a machine that is too slow for replies in time, there is an end, too.
    fn needs_more(&self) -> bool {
        let ledger = &self.ledger;
        let has = |is_so: fn(Outcome) -> bool| ledger.count(is_so) >= EACH;
        let vanished = [&ledger.vanished_requesters, &ledger.vanished_responders];
        let vanished = vanished.map(|count| count.load(SeqCst));
        let has_all = vanished.iter().sum::<u64>() >= VANISHED
            && vanished.iter().all(|count| *count >= VANISHED_OF_EACH)
            && has(|outcome| matches!(outcome, Outcome::Replied(_)))
            && has(|outcome| matches!(outcome, Outcome::Failed(_)))
            && has(|outcome| outcome == Outcome::Left)
            && has(|outcome| outcome == Outcome::TimedOut)
            && has(|outcome| outcome == Outcome::NoResponder);
        !has_all && vanished.iter().sum::<u64>() < 3 * VANISHED
    }
}

/// The accounts balance at every moment: 17.6.
async fn watch(daemon: &Daemon) {
    loop {
        for service in daemon.bus.services() {
            let counters = service.counters;
            let over = counters.replied + counters.failed + counters.timed_out + counters.refused;
            let open = (service.queued + service.in_hand) as u64;
            assert_eq!(counters.asked, over + counters.given_up + open, "{service:?}");
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// The sum of a counter over all services, from `/metrics`.
async fn counter(daemon: &Daemon, name: &str) -> u64 {
    let page = daemon.get("/metrics").await;
    let prefix = format!("msgbus_service_{name}_total{{");
    let samples = page.text().lines().filter(|line| line.starts_with(&prefix));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Compares the counters of the server with what the clients know.
async fn compare(daemon: &Daemon, ledger: &Ledger) {
    let known = ledger.check();
    let mut ended = 0;
    for (name, least) in [
        ("replied", known.replied),
        ("failed", known.failed),
        ("timed_out", known.timed_out),
        // Requests to a service that does not exist are counted nowhere.
        ("refused", 0),
        ("given_up", 0),
    ] {
        let count = counter(daemon, name).await;
        assert!((least..=least + known.unknown).contains(&count) || least == 0, "{name} {count}");
        ended += count;
    }
    assert_eq!(counter(daemon, "asked").await, ended);
    let least = ledger.not_wanted.load(SeqCst);
    let most = least + ledger.maybe_not_wanted.load(SeqCst);
    let not_wanted = counter(daemon, "not_wanted").await;
    assert!((least..=most).contains(&not_wanted), "{not_wanted}, not {least} to {most}");
    assert!(counter(daemon, "refused").await <= known.refused + known.unknown);
    assert!(counter(daemon, "given_up").await <= known.unknown);
}

async fn ask_serve_and_vanish(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let daemon = Daemon::start();
    let (ledger, is_over) = (Ledger::default(), AtomicBool::default());
    let world = Arc::new(World { server: daemon.address, ledger, is_over });
    let (mut requesters, mut responders) = (JoinSet::new(), JoinSet::new());
    for _ in 0..REQUESTERS {
        let requester = Requester { world: Arc::clone(&world), rng: rng.fork(), wire: None };
        requesters.spawn(requester.run());
    }
    for _ in 0..RESPONDERS {
        let responder = Responder { world: Arc::clone(&world), rng: rng.fork(), wire: None };
        responders.spawn(responder.run());
    }
    let clients = async {
        let end = async {
            all(requesters).await;
            world.is_over.store(true, SeqCst);
        };
        tokio::join!(end, all(responders));
        // The server may not have noticed yet that the last ones have vanished.
        let is_over =
            || daemon.bus.services().iter().all(|s| s.queued + s.in_hand + s.responders == 0);
        until(is_over).await;
    };
    tokio::select! {
        () = clients => {}
        () = watch(&daemon) => {}
    }
    // A reply may still be on its way to a requester that has vanished.
    until(|| daemon.bus.stats().bytes == 0).await;
    compare(&daemon, &world.ledger).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_ends_once_whoever_vanishes() {
    seeded(ask_serve_and_vanish).await;
}
