//! Services of buses that share an engine, which fails.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use msgbus_core::{
    BatchLimit, MessageBus, NewRequest, Options, RequestError, TopicName,
    engine::{EngineError, EngineRule},
};
use msgbus_engine_testkit::{Faults, MemoryEngine, Numbers, bus, fresh, soon};
use tokio::{
    task::{JoinHandle, JoinSet, yield_now},
    time::sleep,
};

/// Ends what is due at buses, as programs do.
fn timer(buses: &[MessageBus]) -> JoinHandle<()> {
    let buses = buses.to_vec();
    tokio::spawn(async move {
        loop {
            for bus in &buses {
                bus.run_due();
                let stats = bus.services();
                for service in &stats {
                    let counters = &service.counters;
                    let over = counters.replied + counters.failed + counters.timed_out;
                    let over = over + counters.refused + counters.given_up;
                    let open = service.queued + service.in_hand + service.away;
                    assert_eq!(counters.asked, over + open as u64, "{service:?}");
                }
            }
            sleep(Duration::from_millis(5)).await;
        }
    })
}

fn buses(engine: &MemoryEngine) -> Vec<MessageBus> {
    (0..3).map(|_| bus(Arc::new(engine.clone()))).collect()
}

/// How often each request was given to a responder.
type Served = Arc<Mutex<BTreeMap<String, usize>>>;

/// A responder that comes and goes at changing buses, and does all that responders do.
async fn respond(buses: Vec<MessageBus>, service: TopicName, served: Served, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    loop {
        let bus = &buses[random.usize(..buses.len())];
        let wait = Duration::from_millis(random.u64(1..60));
        let pull = bus.serve(&service, BatchLimit::ONE).unwrap();
        let Ok(requests) = tokio::time::timeout(wait, pull).await else { continue };
        for request in requests.unwrap() {
            let payload = String::from_utf8(request.payload().to_vec()).unwrap();
            *served.lock().unwrap().entry(payload.clone()).or_default() += 1;
            sleep(Duration::from_millis(random.u64(0..4))).await;
            match random.u8(..12) {
                0 => request.fail("no").unwrap_or_default(),
                1 => drop(request),
                2 => drop(request.into_token()),
                3 => request.put_back(),
                _ => request.reply(payload).unwrap_or_default(),
            }
        }
    }
}

/// What a requester asks, and how often each outcome was seen.
async fn ask(buses: Vec<MessageBus>, service: TopicName, name: usize) -> BTreeMap<String, usize> {
    let mut random = fastrand::Rng::with_seed(name as u64);
    let mut seen = BTreeMap::new();
    for n in 0..60 {
        let payload = format!("{name} {n}");
        let timeout = Duration::from_millis(random.u64(20..400));
        let request = NewRequest::new(payload.clone()).timeout(timeout);
        let asked = buses[random.usize(..buses.len())].request(&service, request);
        let outcome = if random.u8(..10) == 0 {
            // It leaves.
            let _ = tokio::time::timeout(Duration::from_millis(2), asked).await;
            "left"
        } else {
            match soon(asked).await {
                Ok(reply) => {
                    assert_eq!(reply.payload, payload, "that of another one");
                    "replied"
                }
                Err(RequestError::Failed { .. } | RequestError::ResponderGone) => "failed",
                Err(RequestError::TimedOut) => "timed out",
                Err(RequestError::NoResponder | RequestError::Engine(_)) => "refused",
                Err(error) => panic!("{error:?}"),
            }
        };
        *seen.entry(outcome.to_owned()).or_default() += 1;
    }
    seen
}

/// Every request has one outcome, and is counted once; without `may_repeat` a responder gets it once, unless it was put back.
#[tokio::test]
async fn accounts_balance_whatever_goes_wrong() {
    for seed in 0..4 {
        let engine = MemoryEngine::new(Numbers::Shared, seed);
        let buses = buses(&engine);
        let (timer, service) = (timer(&buses), fresh("services"));
        let served = Served::default();
        let mut responders = JoinSet::new();
        for n in 0..4 {
            let (buses, served) = (buses.clone(), Arc::clone(&served));
            responders.spawn(respond(buses, service.clone(), served, seed * 10 + n));
        }
        let mut requesters = JoinSet::new();
        for name in 0..8 {
            requesters.spawn(ask(buses.clone(), service.clone(), name));
        }
        let faults = Faults { lost_requests: 30, lost_answers: 30, delays: 5, ..Faults::default() };
        let disturb = async {
            loop {
                engine.set_faults(faults);
                sleep(Duration::from_millis(40)).await;
                engine.set_faults(Faults { error: Some(EngineError::Unavailable), ..faults });
                sleep(Duration::from_millis(10)).await;
            }
        };
        let asked = async {
            let mut seen = BTreeMap::<String, usize>::new();
            while let Some(of_one) = requesters.join_next().await {
                for (outcome, count) in of_one.unwrap() {
                    *seen.entry(outcome).or_default() += count;
                }
            }
            seen
        };
        let seen = tokio::select! {
            seen = soon(asked) => seen,
            () = disturb => unreachable!(),
        };
        responders.shutdown().await;
        let stats: Vec<_> = buses.iter().filter_map(|bus| bus.service(&service)).collect();
        let sum = |count: fn(&msgbus_core::ServiceCounters) -> u64| {
            stats.iter().map(|stats| count(&stats.counters)).sum::<u64>()
        };
        assert_eq!(sum(|counters| counters.asked), 8 * 60, "{stats:?}");
        let of = |outcome: &str| seen.get(outcome).copied().unwrap_or_default() as u64;
        // One that leaves may have an outcome by then.
        assert!(sum(|counters| counters.given_up) <= of("left"));
        assert!(
            sum(|counters| counters.replied) >= of("replied") && of("replied") > 50,
            "{seen:?}"
        );
        assert!(sum(|counters| counters.timed_out) >= of("timed out"));
        assert!(stats.iter().all(|stats| stats.queued + stats.in_hand + stats.away == 0));
        timer.abort();
        assert!(!timer.await.is_err_and(|error| error.is_panic()), "accounts balance at all times");
    }
}

/// A service that lives in no engine is that of its own bus.
#[tokio::test]
async fn a_rule_says_which_services_are_shared() {
    let engine = MemoryEngine::new(Numbers::Shared, 1);
    let rule = || {
        let engine: Arc<dyn msgbus_core::engine::Engine> = Arc::new(engine.clone());
        vec![EngineRule { pattern: "shared/**".parse().unwrap(), engine: Some(engine) }]
    };
    let bus = || MessageBus::with_engines(Options::default(), None, rule()).unwrap();
    let (one, other) = (bus(), bus());
    let (shared, own) = ("shared/a".parse().unwrap(), "own/a".parse().unwrap());
    let _responders = [&shared, &own].map(|service| other.serve(service, BatchLimit::ONE).unwrap());
    assert!(one.may_be_served(&shared) && !one.may_be_served(&own));
    assert_eq!(soon(one.is_served_anywhere(&shared)).await, Ok(true));
    assert_eq!(soon(one.is_served_anywhere(&own)).await, Ok(false));
    assert_eq!(soon(one.request(&own, "x")).await, Err(RequestError::NoResponder));
    assert_eq!(one.services().len(), 0);
}

/// Nothing is kept of what nobody serves, however long the requester would have waited.
#[tokio::test]
async fn a_request_that_nobody_serves_leaves_nothing() {
    let bus = bus(Arc::new(MemoryEngine::new(Numbers::Shared, 1)));
    let request = NewRequest::new("x").timeout(Duration::from_secs(60));
    let asked = bus.request(&fresh("nobody"), request);
    assert_eq!(soon(asked).await, Err(RequestError::NoResponder));
    assert_eq!((bus.services().len(), bus.run_due().next), (0, None));
}

/// A bus that is closed hands on what no responder was given, and says so of the rest.
#[tokio::test]
async fn a_bus_that_is_closed_keeps_no_requests() {
    let engine = MemoryEngine::new(Numbers::Shared, 1);
    let buses = buses(&engine);
    let (timer, service) = (timer(&buses), fresh("closed"));
    let responder = buses[1].serve(&service, BatchLimit::ONE).unwrap();
    let patient = |text: &'static str| NewRequest::new(text).timeout(Duration::from_secs(60));
    let in_hand = tokio::spawn(buses[0].request(&service, patient("in hand")));
    let request = soon(responder).await.unwrap();
    let waiting = tokio::spawn(buses[0].request(&service, patient("waiting")));
    let is_there = async {
        while buses[1].service(&service).unwrap().visiting < 2 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    soon(is_there).await;
    let responder = buses[2].serve(&service, BatchLimit::ONE).unwrap();
    buses[1].close().unwrap();
    assert_eq!(soon(in_hand).await.unwrap(), Err(RequestError::Closed));
    for request in soon(responder).await.unwrap() {
        assert_eq!(request.payload(), "waiting");
        request.reply("elsewhere").unwrap();
    }
    assert_eq!(soon(waiting).await.unwrap().unwrap().payload, "elsewhere");
    drop(request);
    timer.abort();
}

/// An engine may take a request just when its requester has left. By then the next one has its place.
#[tokio::test]
async fn a_search_that_is_over_takes_no_other_request() {
    let engine = MemoryEngine::new(Numbers::Shared, 1);
    let buses = buses(&engine);
    let service = fresh("over");
    let busy = buses[0].serve(&service, BatchLimit::ONE).unwrap();
    let _in_hand = buses[0].request(&service, "in hand");
    let _request = soon(busy).await.unwrap();
    let _elsewhere = buses[1].serve(&service, BatchLimit::ONE).unwrap();
    let mut leaves = buses[0].request(&service, "leaves");
    assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut leaves).poll(cx))).await.is_pending());
    drop(leaves);
    let responder = buses[0].serve(&service, BatchLimit::ONE).unwrap();
    let asked = tokio::spawn(buses[0].request(&service, "next"));
    // The engine takes.
    yield_now().await;
    assert_eq!(buses[0].service(&service).unwrap().queued, 1);
    for request in soon(responder).await.unwrap() {
        assert_eq!(request.payload(), "next");
        request.reply("here").unwrap();
    }
    assert_eq!(soon(asked).await.unwrap().unwrap().payload, "here");
}

/// Threads wait for replies of other buses, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_may_block_on_requests_to_other_buses() {
    let engine = MemoryEngine::new(Numbers::Shared, 1);
    let buses = buses(&engine);
    let service = fresh("blocking");
    let responder = buses[1].serve(&service, BatchLimit::ONE).unwrap();
    let runtime = tokio::runtime::Handle::current();
    let (bus, name) = (buses[0].clone(), service.clone());
    let thread = std::thread::spawn(move || {
        let _runtime = runtime.enter();
        let late = NewRequest::new("late").timeout(Duration::from_millis(100));
        (bus.request(&name, "x").wait(), bus.request(&name, late).wait())
    });
    for request in soon(responder).await.unwrap() {
        request.reply("y").unwrap();
    }
    let joined = tokio::task::spawn_blocking(move || thread.join().unwrap());
    let (reply, late) = soon(joined).await.unwrap();
    assert_eq!((reply.unwrap().payload.as_ref(), late), (&b"y"[..], Err(RequestError::TimedOut)));
}
