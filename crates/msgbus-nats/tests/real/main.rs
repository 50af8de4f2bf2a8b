//! The engine on real servers of NATS.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod cluster;
mod cuts;
mod forgotten;
mod history;
mod lanes;
mod marks;
mod publish;
mod refusing;
mod services;
mod shared;
mod silent;
mod windows;

use std::{path::Path, sync::Arc, time::Duration};

use msgbus_core::{
    BatchLimit, Event, GroupConfig, LeaseOptions, MessageBus, NewMessage, Position, PublishError,
    Settlement,
    engine::{Engine, EngineError},
    store::StoreError,
};
use msgbus_engine_testkit::{
    accounts, bus,
    conformance::{self, Subject},
    fresh, jobs,
    server::{Kind, Program, Server, free_port},
    soon, until_ok,
};
use msgbus_nats::{ConnectOptions, NatsEngine, NatsOptions};
use tokio::{runtime::Handle, time::sleep};

/// What tests need of a server beyond running it.
trait Connect {
    fn options(&self) -> NatsOptions;

    /// An engine that is connected.
    async fn engine(&self, options: NatsOptions) -> NatsEngine;
}

impl Connect for Server {
    fn options(&self) -> NatsOptions {
        NatsOptions {
            lease: Duration::from_secs(3),
            timeout: Duration::from_secs(5),
            ..NatsOptions::new(self.url())
        }
    }

    async fn engine(&self, options: NatsOptions) -> NatsEngine {
        let engine = NatsEngine::connect(options, ConnectOptions::new()).await.unwrap();
        until_up(&engine, true).await;
        engine
    }
}

/// Waits until an engine can be used, or cannot.
async fn until_up(engine: &NatsEngine, is_up: bool) {
    let so = async {
        while engine.health().is_up() != is_up {
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon(so).await;
}

/// How many connections a server has.
fn connections(server: &Server) -> usize {
    let port = format!(":{:04X}", server.port());
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is_of_server = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some("01")
    };
    sockets.lines().filter(is_of_server).count()
}

fn programs() -> Vec<Program> {
    Kind::Nats.programs()
}

fn is_current(program: &Path) -> bool {
    let version = std::process::Command::new(program).arg("--version").output().unwrap();
    !String::from_utf8_lossy(&version.stdout).contains("v2.9.")
}

/// Buses that publish on the connections of their engines, and one that does so on another one.
async fn buses(server: &Server, options: &NatsOptions) -> Vec<MessageBus> {
    let mut buses = Vec::new();
    for publish_from in [vec![], vec![], vec![Handle::current()]] {
        let options = NatsOptions { publish_from, ..options.clone() };
        buses.push(bus(Arc::new(server.engine(options).await)));
    }
    buses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_keeps_the_contract() {
    for program in programs() {
        let server = Server::start(&program);
        // Leases are as long as the options of the engine say.
        let long = NatsOptions { lease: Duration::from_secs(60), ..server.options() };
        let long = subject(&server, &program, &long).await;
        conformance::all_with_long_leases(&long).await;
        conformance::messages_gather_while_followers_are_busy(&long).await;
        let short = subject(&server, &program, &server.options()).await;
        conformance::jobs_come_back_when_their_worker_is_gone(&short).await;
        conformance::an_extended_lease_goes_on(&short).await;
    }
}

async fn subject(server: &Server, program: &Path, options: &NatsOptions) -> Subject {
    Subject {
        one: Arc::new(server.engine(options.clone()).await),
        other: Arc::new(server.engine(options.clone()).await),
        knows_repeats: true,
        knows_ttl: is_current(program),
        lease: Duration::from_secs(3),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_unavailable() {
    for program in programs() {
        let mut server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        server.kill();
        let never = NatsEngine::connect(server.options(), ConnectOptions::new()).await.unwrap();
        for engine in [engine, never] {
            let engine: Arc<dyn Engine> = Arc::new(engine);
            let subject = Subject {
                one: Arc::clone(&engine),
                other: engine,
                knows_repeats: true,
                knows_ttl: false,
                lease: Duration::from_secs(3),
            };
            conformance::refuses_while_it_is_away(&subject).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_get_everything_although_the_server_is_killed() {
    for program in programs() {
        let mut server = Server::start(&program);
        let buses = buses(&server, &server.options()).await;
        let restarts = accounts::restart(&mut server, 3, Server::kill, Server::run);
        accounts::followers_get_everything(buses, restarts).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_has_taken_is_announced() {
    for program in programs() {
        let mut server = Server::start(&program);
        let options = NatsOptions { max_messages_per_topic: Some(20), ..server.options() };
        let buses = buses(&server, &options).await;
        let plan = accounts::Plan::new(buses, "retention", 200, 200);
        let restart = accounts::restart(&mut server, 1, Server::kill, Server::run);
        let (report, _) = accounts::check(&plan, restart).await;
        assert_eq!(report.restarts, 0, "{report:?}");
    }
}

/// Other topics take the room, while the window of this one is behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_topics_have_displaced_is_announced() {
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { max_bytes: Some(256 << 10), ..server.options() };
        let buses = buses(&server, &options).await;
        let plan = accounts::Plan::new(buses, "displaced", 200, 100);
        let flood = async {
            let other = fresh("flood");
            for _ in 0..60 {
                let batch = (0..20).map(|_| NewMessage::new(vec![0; 8 << 10])).collect();
                let _ = soon(plan.buses[0].publish_batch(&other, batch)).await;
            }
        };
        let (report, _) = accounts::check(&plan, flood).await;
        assert_eq!(report.restarts, 0, "{report:?}");
    }
}

/// The stream has holes, because other topics were deleted. They are not holes of this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_topic_has_no_gap_after_a_restart() {
    for program in programs() {
        let mut server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let (topic, other) = (fresh("quiet"), fresh("other"));
        soon(bus.publish(&topic, "one")).await.unwrap();
        for _ in 0..3 {
            soon(bus.publish(&other, "x")).await.unwrap();
        }
        soon(bus.delete(&other)).await.unwrap();
        soon(bus.publish(&other, "x")).await.unwrap();
        let mut follower = soon(bus.follow(&topic, Position::New)).await.unwrap();
        soon(bus.publish(&other, "x")).await.unwrap();
        server.stop();
        server.run();
        until_ok(|| bus.publish(&topic, "two")).await;
        let event = soon(follower.recv()).await.unwrap();
        assert!(
            matches!(&event, Event::Message { message, .. } if message.payload() == "two"),
            "{event:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_lost_everything_is_another_epoch() {
    for program in programs() {
        let mut server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let topic = fresh("emptied");
        let first = soon(bus.publish(&topic, "one")).await.unwrap();
        let mut follower = soon(bus.follow(&topic, Position::All)).await.unwrap();
        let event = soon(follower.recv()).await.unwrap();
        assert!(matches!(event, Event::Message { id, .. } if id == first.id));
        server.kill();
        server.empty();
        let refused = soon(bus.publish(&topic, "lost")).await.unwrap_err();
        let PublishError::Store(StoreError::Engine(error)) = refused else { panic!("{refused}") };
        assert!(matches!(error, EngineError::Unavailable | EngineError::Unknown), "{error:?}");
        server.run();
        let second = until_ok(|| bus.publish(&topic, "two")).await;
        assert!(second.epoch > first.epoch, "{second:?} after {first:?}");
        assert!(soon(follower.recv()).await.is_err(), "the follower has to begin anew");
        let from = Position::After { epoch: first.epoch, id: first.id };
        let mut follower = until_ok(|| bus.follow(&topic, from)).await;
        assert!(follower.start().restarted);
        assert_eq!(follower.epoch(), second.epoch);
        let event = soon(follower.recv()).await.unwrap();
        assert!(matches!(event, Event::Message { message, .. } if message.payload() == "two"));
    }
}

async fn do_jobs(server: &mut Server, restarts: usize, keeps_leases: bool) {
    let options = server.options();
    let plan = jobs::Plan {
        buses: buses(server, &options).await,
        topic: fresh("jobs"),
        jobs: 100,
        workers: 6,
        lease: options.lease,
        failures: 6,
        keeps_leases,
        keeps_acks: keeps_leases,
        seed: fastrand::u64(..),
    };
    let disturb = async {
        for _ in 0..restarts {
            sleep(Duration::from_millis(400)).await;
            if keeps_leases {
                server.stop();
            } else {
                server.kill();
            }
            sleep(Duration::from_millis(200)).await;
            server.run();
        }
    };
    let report = jobs::check(&plan, disturb).await;
    assert_eq!(report.done + report.dead, 100, "{report:?}");
}

/// A server that is killed may not have kept which leases it has given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_is_done_although_the_server_is_killed() {
    for program in programs() {
        do_jobs(&mut Server::start(&program), 2, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_workers_have_a_job() {
    for program in programs() {
        // A server that is restarted may forget some of what it has delivered, and some acks too.
        do_jobs(&mut Server::start(&program), 0, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_without_a_runtime_may_block() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = Arc::new(server.engine(server.options()).await);
        conformance::threads_without_a_runtime_may_block(engine).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_with_the_limit() {
    for program in programs() {
        let server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let topic = fresh("large");
        let refused = soon(bus.publish(&topic, vec![0; 1 << 20])).await;
        soon(bus.publish(&topic, vec![0; (1 << 20) - 4096])).await.unwrap();
        if let Err(error) = refused {
            let limit = EngineError::TooLarge { limit: 1 << 20 };
            assert_eq!(error, PublishError::Store(StoreError::Engine(limit)));
        }
        if !is_current(&program) {
            let ttl = NewMessage::new("x").ttl(Duration::from_secs(1));
            let refused = soon(bus.publish(&topic, ttl)).await.unwrap_err();
            assert!(refused.to_string().contains("nats-server 2.11"), "{refused}");
        }
    }
}

/// A dead letter has more headers than its message. If it is too large with all of them, it has its own; if it is too large
/// with those, the message is delivered without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_large_for_a_dead_letter_is_not_stuck() {
    for program in programs() {
        let server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let config = GroupConfig { max_deliveries: Some(1), ..GroupConfig::default() };
        let (topic, group) = (fresh("huge"), "g".parse().unwrap());
        let lead = |size| NewMessage::new(vec![0; size]);
        let with_headers = lead((1 << 20) - 3000).header("lead", &"x".repeat(2800)).unwrap();
        soon(bus.publish(&topic, with_headers)).await.unwrap();
        soon(bus.publish(&topic, lead((1 << 20) - 20))).await.unwrap();
        soon(bus.set_group(&topic, &group, &config)).await.unwrap();
        let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
        for expected in [1, 2, 2, 2] {
            let waiting = bus.lease_wait(&topic, &group, LeaseOptions::default()).unwrap();
            let leased = soon(waiting).await.unwrap().pop().unwrap();
            assert_eq!(leased.message.headers().is_empty(), expected == 2);
            soon(bus.settle(&leased.token, &back)).await.unwrap();
        }
        let dead = topic.dead_letters().unwrap();
        let letters =
            soon(bus.pull(&dead, BatchLimit { events: 9, bytes: 9 << 20 })).await.unwrap();
        assert_eq!(letters.len(), 1);
        let header = |name| letters[0].headers().get(name);
        assert_eq!((header("dead-letter-id").is_some(), header("lead")), (true, None));
    }
}
