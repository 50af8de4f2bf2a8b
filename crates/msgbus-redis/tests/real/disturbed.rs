//! Servers that are killed, restarted and emptied.

use std::{sync::Arc, time::Duration};

use msgbus_core::{
    BatchLimit, Event, MessageBus, Position, PublishError, RecvError, Settlement, Subscription,
    TopicName,
    engine::{Begin, Engine as _, EngineError, Fetch},
    store::StoreError,
};
use msgbus_engine_testkit::{accounts, bus, fresh, jobs, soon, until_ok};
use msgbus_redis::RedisOptions;
use redis::Value;
use tokio::time::sleep;

use crate::server::{Redis as _, Server, programs};

/// After a restart, numbers go on at a higher one, which comes from the time.
const JUMP: u64 = 1_000_000_000;

async fn buses(server: &Server, options: &RedisOptions) -> Vec<MessageBus> {
    let mut buses = Vec::new();
    for _ in 0..3 {
        buses.push(bus(Arc::new(server.engine(options.clone()).await)));
    }
    buses
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
async fn what_retention_has_taken_is_announced_with_its_count() {
    for program in programs() {
        let mut server = Server::start(&program);
        let options = RedisOptions { max_messages_per_topic: Some(20), ..server.options() };
        let buses = buses(&server, &options).await;
        let plan = accounts::Plan::new(buses, "retention", 200, 200);
        let restart = accounts::restart(&mut server, 1, Server::kill, Server::run);
        let (report, seen) = accounts::check(&plan, restart).await;
        assert_eq!((report.restarts, report.uncounted), (0, 0), "{report:?}");
        let last = 4 * 200 + 1;
        let stats = until_ok(|| plan.buses[0].engine_stats(&plan.topic)).await.unwrap();
        let ordinal = |id: u64| if id > JUMP { last + 1 + id - stats.next } else { id };
        // Each follower has received or missed each message, from its first one on.
        for seen in seen {
            let (mut number, mut start) = (0, 0);
            for event in seen {
                match event {
                    accounts::Seen::Start { id, .. } => start = ordinal(id),
                    accounts::Seen::Message { .. } => number += 1,
                    accounts::Seen::Missed { count, .. } => number += count,
                }
            }
            assert_eq!(start + number, last + 1, "{stats:?}");
        }
    }
}

/// Publishes until the engine serves again.
async fn publish(bus: &MessageBus, topic: &TopicName, text: &'static str) -> (u64, u64) {
    let published = until_ok(|| bus.publish(topic, text)).await;
    (published.epoch, published.id)
}

async fn follow(bus: &MessageBus, topic: &TopicName, from: Position) -> Subscription {
    until_ok(|| bus.follow(topic, from)).await
}

/// The follower has to begin anew, and gets what is in the new epoch.
async fn begins_anew(
    bus: &MessageBus,
    topic: &TopicName,
    mut follower: Subscription,
    before: (u64, u64),
    now: (u64, u64),
) {
    assert!(now.0 > before.0, "{now:?} after {before:?}");
    let ended = soon(follower.recv()).await.unwrap_err();
    assert!(matches!(ended, RecvError::Deleted), "{ended:?}");
    let from = Position::After { epoch: before.0, id: before.1 };
    let mut follower = follow(bus, topic, from).await;
    assert!(follower.start().restarted);
    assert_eq!(follower.epoch(), now.0);
    let event = soon(follower.recv()).await.unwrap();
    assert!(
        matches!(event, Event::Message { id, message } if id == now.1 && message.payload() == "two")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_lost_everything_is_another_epoch() {
    for program in programs() {
        let mut server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let topic = fresh("emptied");
        let first = publish(&bus, &topic, "one").await;
        let mut follower = follow(&bus, &topic, Position::All).await;
        let event = soon(follower.recv()).await.unwrap();
        assert!(matches!(event, Event::Message { id, .. } if id == first.1));
        server.kill();
        server.empty();
        let refused = soon(bus.publish(&topic, "lost")).await.unwrap_err();
        let PublishError::Store(StoreError::Engine(error)) = refused else { panic!("{refused}") };
        assert!(matches!(error, EngineError::Unavailable | EngineError::Unknown), "{error:?}");
        server.run();
        let second = publish(&bus, &topic, "two").await;
        begins_anew(&bus, &topic, follower, first, second).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushing_is_noticed() {
    for program in programs() {
        let server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let topic = fresh("flushed");
        let mut first = (0, 0);
        for _ in 0..3 {
            first = publish(&bus, &topic, "one").await;
        }
        let mut follower = follow(&bus, &topic, Position::All).await;
        for _ in 0..3 {
            assert!(matches!(soon(follower.recv()).await.unwrap(), Event::Message { .. }));
        }
        server.ask("FLUSHALL").await;
        let second = publish(&bus, &topic, "two").await;
        assert_eq!(second.1, 1);
        begins_anew(&bus, &topic, follower, first, second).await;
    }
}

/// Without an fsync for each write, a power cut takes the last messages. Here the end of the file is cut off.
const NO_FSYNC: [&str; 2] = ["--appendfsync", "no"];

async fn is_message(follower: &mut Subscription, expected: u64) {
    let event = soon(follower.recv()).await.unwrap();
    assert!(matches!(event, Event::Message { id, .. } if id == expected), "{event:?}");
}

/// Something may be missed, and nobody knows how much.
async fn is_doubt(follower: &mut Subscription, next: u64) {
    let event = soon(follower.recv()).await.unwrap();
    let Event::Missed { count, next_id } = event else { panic!("{event:?}") };
    assert_eq!((count, next_id), (0, next));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_lost_messages_are_not_given_again() {
    for program in programs() {
        let mut server = Server::start_with(&program, &NO_FSYNC);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let (topic, other) = (fresh("rollback"), fresh("kept"));
        publish(&bus, &other, "one").await;
        let (epoch, _) = publish(&bus, &topic, "kept").await;
        let kept = server.log_size();
        for _ in 0..5 {
            publish(&bus, &topic, "lost").await;
        }
        let mut follower = follow(&bus, &topic, Position::All).await;
        for id in 1..=6 {
            is_message(&mut follower, id).await;
        }
        server.kill();
        server.cut_log(kept);
        server.run();
        let second = publish(&bus, &topic, "two").await;
        assert!(second.0 == epoch && second.1 > JUMP, "{second:?}");
        bus.purge_expired();
        // Neither who has seen what was lost knows what came after it, nor who has not seen it.
        is_doubt(&mut follower, second.1).await;
        is_message(&mut follower, second.1).await;
        let from = Position::After { epoch, id: 1 };
        let mut behind = follow(&bus, &topic, from).await;
        is_doubt(&mut behind, second.1).await;
        is_message(&mut behind, second.1).await;
        // It may be so with a topic that has lost nothing, too.
        let (_, id) = publish(&bus, &other, "two").await;
        assert!(id > JUMP, "{id}");
        let mut all = follow(&bus, &other, Position::All).await;
        is_message(&mut all, 1).await;
        is_doubt(&mut all, id).await;
        is_message(&mut all, id).await;
    }
}

/// What says which numbers were given after the first loss is lost with the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_not_given_again_after_a_second_loss_either() {
    for program in programs() {
        let mut server = Server::start_with(&program, &NO_FSYNC);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let (topic, empty) = (fresh("twice"), fresh("empty"));
        drop(follow(&bus, &empty, Position::New).await);
        let (epoch, first) = publish(&bus, &topic, "kept").await;
        let kept = server.log_size();
        let mut given = vec![(epoch, first)];
        for run in 0..3 {
            if run > 0 {
                server.kill();
                server.cut_log(kept);
                server.run();
            }
            // Each run has more messages than the one before.
            for _ in 0..=run {
                given.push(publish(&bus, &topic, "lost").await);
            }
            given.push(publish(&bus, &empty, "lost").await);
        }
        let count = given.len();
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), count, "{given:?}");
        // Who has seen the last message of the second run gets all of the third one.
        let seen = given.iter().filter(|(of, _)| *of == epoch).map(|(_, id)| *id);
        let seen: Vec<u64> = seen.collect();
        let mut follower = follow(&bus, &topic, Position::After { epoch, id: seen[3] }).await;
        is_doubt(&mut follower, seen[4]).await;
        for id in &seen[4..] {
            is_message(&mut follower, *id).await;
        }
    }
}

/// What a server promises when it starts says nothing of the run before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_last_run_may_have_lost_is_announced() {
    for program in programs() {
        for has_replica in [false, true] {
            // It has each write on its disk before it answers.
            let mut server = Server::start(&program);
            let replica = Server::start(&program);
            let bus = bus(Arc::new(server.engine(server.options()).await));
            let topic = fresh("changed");
            let (_, first) = publish(&bus, &topic, "one").await;
            if has_replica {
                replica.ask(&format!("REPLICAOF 127.0.0.1 {}", server.port())).await;
            } else {
                server.ask("CONFIG SET appendfsync no").await;
            }
            let noted = async {
                while server.ask("HGET {msgbus:}:server safe").await
                    != Value::BulkString(b"0".into())
                {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            soon(noted).await;
            server.kill();
            server.run();
            let (_, second) = publish(&bus, &topic, "two").await;
            let mut follower = follow(&bus, &topic, Position::All).await;
            is_message(&mut follower, first).await;
            is_doubt(&mut follower, second).await;
            is_message(&mut follower, second).await;
            // This run was safe from its beginning.
            if !has_replica {
                server.kill();
                server.run();
                let (_, third) = publish(&bus, &topic, "three").await;
                is_message(&mut follower, third).await;
            }
        }
    }
}

/// Who begins after a restart begins at a number that the next restart leaves out. Nothing was published in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_between_two_restarts_has_missed_nothing() {
    for program in programs() {
        let mut server = Server::start(&program);
        let buses = buses(&server, &server.options()).await;
        let topic = fresh("between");
        let (epoch, first) = publish(&buses[0], &topic, "one").await;
        server.kill();
        server.run();
        let mut follower = follow(&buses[1], &topic, Position::New).await;
        let start = follower.start().next_id;
        assert!(start > JUMP, "{start}");
        server.kill();
        server.run();
        let (_, second) = publish(&buses[0], &topic, "two").await;
        is_message(&mut follower, second).await;
        for id in [first, start - 1] {
            let from = Position::After { epoch, id };
            is_message(&mut follow(&buses[2], &topic, from).await, second).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_the_server_has_lost_ends_no_other_one() {
    for program in programs() {
        let mut server = Server::start_with(&program, &NO_FSYNC);
        let engine = server.engine(server.options()).await;
        let topic = fresh("lost-lease");
        soon(engine.publish(&topic, vec!["job".into()])).await.unwrap();
        let kept = server.log_size();
        let (limit, lease) = (BatchLimit::ONE, Duration::from_secs(600));
        let fetch = Fetch { limit, lease, wait: Duration::ZERO, from: Begin::First };
        let first = soon(engine.fetch(&topic, None, fetch)).await.unwrap().messages.remove(0);
        server.kill();
        server.cut_log(kept);
        server.run();
        let mut leases = until_ok(|| engine.fetch(&topic, None, fetch)).await;
        let second = leases.messages.remove(0);
        assert_eq!((first.deliveries, second.deliveries), (1, 1));
        let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
        for settlement in [&back, &Settlement::Ack] {
            let keys = vec![first.key.clone()];
            let settled = soon(engine.settle(&topic, None, keys, settlement)).await.unwrap();
            assert_eq!(settled.lost, [0], "{settlement:?}");
        }
        let settled = engine.settle(&topic, None, vec![second.key], &Settlement::Ack);
        assert!(soon(settled).await.unwrap().lost.is_empty());
    }
}

async fn do_jobs(server: &mut Server, restarts: usize, kills: bool) {
    let options = server.options();
    let plan = jobs::Plan {
        buses: buses(server, &options).await,
        topic: fresh("jobs"),
        jobs: 100,
        workers: 6,
        // So long that no worker stands still for it.
        lease: Duration::from_secs(10),
        failures: 4,
        keeps_leases: true,
        keeps_acks: true,
        seed: fastrand::u64(..),
    };
    let disturb = async {
        for _ in 0..restarts {
            sleep(Duration::from_millis(400)).await;
            if kills {
                server.kill();
            } else {
                server.stop();
            }
            sleep(Duration::from_millis(200)).await;
            server.run();
        }
    };
    let report = jobs::check(&plan, disturb).await;
    assert_eq!(report.done + report.dead, 100, "{report:?}");
}

/// With an fsync for each write, no lease is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_workers_have_a_job_although_the_server_is_killed() {
    for program in programs() {
        do_jobs(&mut Server::start(&program), 2, true).await;
        do_jobs(&mut Server::start(&program), 2, false).await;
    }
}
