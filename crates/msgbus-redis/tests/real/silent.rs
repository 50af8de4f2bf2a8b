//! Servers and connections that stay open and say nothing.

use std::{sync::Arc, time::Duration};

use msgbus_core::{
    BatchLimit, Event, MessageBus, Position, Settlement, Subscription, TopicName,
    engine::{Begin, Engine, EngineError, Fetch},
};
use msgbus_engine_testkit::{Proxy, bus, fresh, soon, until_ok};
use msgbus_redis::{Acknowledge, RedisEngine, RedisOptions};
use tokio::time::sleep;

use crate::server::{Redis as _, Server, programs};

/// How long an engine waits for an answer here.
const TIMEOUT: Duration = Duration::from_secs(3);

const FETCH: Fetch = Fetch {
    limit: BatchLimit::ONE,
    lease: Duration::from_secs(60),
    wait: Duration::ZERO,
    from: Begin::First,
};

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon(waiting).await;
}

async fn publish(bus: &MessageBus, topic: &TopicName, text: &'static str) {
    until_ok(|| bus.publish(topic, text)).await;
}

async fn gets(follower: &mut Subscription, text: &str) {
    loop {
        // A message may be there twice: its first publish was not answered.
        match soon(follower.recv()).await.unwrap() {
            Event::Message { message, .. } if message.payload() == text => return,
            Event::Message { .. } => {}
            other @ Event::Missed { .. } => panic!("{other:?}"),
        }
    }
}

/// A firewall that forgets a connection tells nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_connection_that_falls_silent_is_replaced() {
    for program in programs() {
        // That of requests, that of news, and that of publishes which wait for replicas.
        for silent in 0..3 {
            let server = Server::start(&program);
            let proxy = Proxy::to(server.port(), Duration::ZERO).await;
            let options = RedisOptions {
                url: format!("redis://{}", proxy.address),
                timeout: TIMEOUT,
                acknowledge: Acknowledge::Replicas(0),
                ..server.options()
            };
            let engine = server.engine(options).await;
            let behind = bus(Arc::new(engine.clone()));
            let other = bus(Arc::new(server.engine(server.options()).await));
            let topic = fresh("silent");
            let mut follower = soon(behind.follow(&topic, Position::New)).await.unwrap();
            publish(&other, &topic, "before").await;
            gets(&mut follower, "before").await;
            assert_eq!((proxy.accepted(), engine.health().reconnects), (3, 0));
            proxy.silence(silent..=silent);
            publish(&other, &topic, "meanwhile").await;
            until(|| engine.health().reconnects > 0).await;
            gets(&mut follower, "meanwhile").await;
            publish(&behind, &topic, "after").await;
            gets(&mut follower, "after").await;
        }
    }
}

/// What everybody is answered while a server says nothing, as soon as that is known.
async fn is_away(engine: &RedisEngine, bus: &MessageBus, topic: &TopicName) {
    let refused = EngineError::Unavailable;
    assert_eq!(soon(engine.publish(topic, vec!["x".into()])).await.unwrap_err(), refused);
    let page = engine.history(topic, Begin::First, BatchLimit::ONE);
    assert_eq!(soon(page).await.unwrap_err(), refused);
    assert_eq!(soon(engine.fetch(topic, None, FETCH)).await.unwrap_err(), refused);
    assert_eq!(bus.engine_window(topic).unwrap().stalled, Some(refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_notices_a_server_that_falls_silent_and_goes_on_when_it_is_back() {
    for program in programs() {
        let server = Server::start(&program);
        let options = RedisOptions { timeout: TIMEOUT, ..server.options() };
        let engine = server.engine(options).await;
        let bus = bus(Arc::new(engine.clone()));
        let topic = fresh("stopped");
        let idle = fresh("idle");
        let mut follower = soon(bus.follow(&topic, Position::New)).await.unwrap();
        let waiting = tokio::spawn(bus.pull_wait(&idle, BatchLimit::ONE).unwrap());
        // Nobody asks for anything: it is noticed all the same.
        server.signal("-STOP");
        until(|| !engine.health().is_up()).await;
        is_away(&engine, &bus, &topic).await;
        soon(waiting).await.unwrap().unwrap_err();
        // Who comes now does not wait either.
        assert!(soon(bus.follow(&fresh("new"), Position::New)).await.is_err());
        server.signal("-CONT");
        publish(&bus, &topic, "after").await;
        gets(&mut follower, "after").await;
        assert!(engine.health().is_up());
        until(|| bus.engine_window(&topic).unwrap().stalled.is_none()).await;
    }
}

/// Only some reads are sent at a time. Those that wait for their turn do not ask a connection that is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_wait_for_their_turn_notice_it_too() {
    for program in programs() {
        let server = Server::start(&program);
        let options = RedisOptions { timeout: TIMEOUT, ..server.options() };
        let engine: Arc<dyn Engine> = Arc::new(server.engine(options).await);
        let topic = fresh("turns");
        server.signal("-STOP");
        let fetch = |_| tokio::spawn(engine.fetch(&topic, None, FETCH));
        let fetches: Vec<_> = (0..3000).map(fetch).collect();
        for fetch in fetches {
            soon(fetch).await.unwrap().unwrap_err();
        }
        server.signal("-CONT");
        until_ok(|| engine.history(&topic, Begin::First, BatchLimit::ONE)).await;
    }
}

/// What was on its way may have been done, although nobody has answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_without_an_answer_may_have_been_done() {
    for program in programs() {
        let server = Server::start(&program);
        let options = RedisOptions { timeout: TIMEOUT, ..server.options() };
        let engine = server.engine(options).await;
        let (topic, group) = (fresh("unanswered"), "workers".parse().unwrap());
        soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
        let leased = soon(engine.fetch(&topic, Some(&group), FETCH)).await.unwrap();
        let keys: Vec<_> = leased.messages.into_iter().map(|leased| leased.key).collect();
        server.signal("-STOP");
        let (published, deleted, moved, removed, settled, shown) = tokio::join!(
            engine.publish(&topic, vec!["x".into()]),
            engine.delete(&topic),
            engine.set_group(&topic, &group, Some(Begin::First)),
            engine.remove_group(&topic, &group),
            engine.settle(&topic, Some(&group), keys, &Settlement::Ack),
            engine.group(&topic, &group),
        );
        server.signal("-CONT");
        assert_eq!(published, Err(EngineError::Unknown));
        assert_eq!(deleted, Err(EngineError::Unknown));
        assert_eq!(moved, Err(EngineError::Unknown));
        assert_eq!(removed, Err(EngineError::Unknown));
        assert_eq!(settled, Err(EngineError::Unknown));
        assert_eq!(shown, Err(EngineError::Unavailable), "nothing was to be done");
    }
}
