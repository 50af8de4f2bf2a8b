//! Streams that somebody else changes.

use std::{sync::Arc, time::Duration};

use msgbus_core::{
    BatchLimit, Event, MessageBus, NewMessage, Position, RecvError, Subscription, TopicName,
    engine::{Begin, Engine as _, EngineError, Fetch, Receipt},
};
use msgbus_engine_testkit::{bus, fresh, soon};
use msgbus_redis::{RedisEngine, RedisOptions};
use redis::Value;

use crate::server::{Redis as _, Server, programs};

const MANY: BatchLimit = BatchLimit { events: 1000, bytes: 1 << 20 };

async fn publish(engine: &RedisEngine, topic: &TopicName, texts: &[&'static str]) -> Receipt {
    let messages = texts.iter().map(|text| NewMessage::new(*text)).collect();
    soon(engine.publish(topic, messages)).await.unwrap()
}

async fn follow(bus: &MessageBus, topic: &TopicName) -> Subscription {
    soon(bus.follow(topic, Position::All)).await.unwrap()
}

async fn gets(follower: &mut Subscription, expected: &str) -> u64 {
    let event = soon(follower.recv()).await.unwrap();
    let Event::Message { id, message } = event else { panic!("{event:?}") };
    assert_eq!(message.payload(), expected);
    id
}

/// What a group is given that is new to it.
async fn fetched(engine: &RedisEngine, topic: &TopicName) -> Vec<String> {
    let (lease, wait) = (Duration::from_secs(60), Duration::ZERO);
    let fetch = Fetch { limit: MANY, lease, wait, from: Begin::First };
    let leases = soon(engine.fetch(topic, None, fetch)).await.unwrap();
    let texts = leases.messages.into_iter().map(|lease| lease.message.payload.to_vec());
    texts.map(|text| String::from_utf8(text).unwrap()).collect()
}

/// Numbers go on after what somebody else has written, which is no message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_go_on_after_what_somebody_else_has_added() {
    for program in programs() {
        // The next id; a later one; one that is gone again.
        for change in ["XADD STREAM * a b", "XADD STREAM EPOCH-40 a b", "XSETID STREAM EPOCH-40"] {
            let server = Server::start(&program);
            let engine = server.engine(server.options()).await;
            let bus = bus(Arc::new(engine.clone()));
            let topic = fresh("foreign");
            let Receipt { epoch, .. } = publish(&engine, &topic, &["1", "2"]).await;
            let mut follower = follow(&bus, &topic).await;
            gets(&mut follower, "1").await;
            gets(&mut follower, "2").await;
            let change = change.replace("STREAM", &format!("{{msgbus:{topic}}}:stream"));
            server.ask(&change.replace("EPOCH", &epoch.to_string())).await;
            // A group may look at it before anybody publishes.
            assert_eq!(fetched(&engine, &topic).await, ["1", "2"]);
            let refused = engine.publish(&topic, vec!["no".into(), "no".into()]);
            assert_eq!(soon(refused).await, Err(EngineError::Unavailable), "{change}");
            let next = publish(&engine, &topic, &["3", "4"]).await;
            assert!(next.epoch == epoch && next.first > 2, "{next:?}");
            // Nobody knows whether something is missing in between.
            let event = soon(follower.recv()).await.unwrap();
            assert!(matches!(event, Event::Missed { count: 0, .. }), "{change}: {event:?}");
            assert_eq!(gets(&mut follower, "3").await, next.first);
            assert_eq!(gets(&mut follower, "4").await, next.last);
            assert_eq!(fetched(&engine, &topic).await, ["3", "4"]);
            let page = soon(engine.history(&topic, Begin::First, MANY)).await.unwrap();
            let texts = page.messages.iter().map(|read| &read.message.payload[..]);
            assert_eq!(texts.collect::<Vec<_>>(), [b"1", b"2", b"3", b"4"]);
            let since = page.messages[3].message.created;
            let page = soon(engine.history(&topic, Begin::Time(since), MANY)).await.unwrap();
            assert!(page.messages.iter().any(|read| read.message.id == next.last));
            let last = publish(&engine, &topic, &["5"]).await;
            assert_eq!(last.first, next.last + 1);
            assert_eq!(gets(&mut follower, "5").await, last.first);
        }
    }
}

/// Where there is no room for numbers, the topic begins anew, and everybody is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_begins_anew_if_its_numbers_cannot_go_on() {
    for program in programs() {
        let last = "18446744073709551615";
        for change in [format!("XADD STREAM {last}-1 a b"), format!("XSETID STREAM EPOCH-{last}")] {
            let server = Server::start(&program);
            let engine = server.engine(server.options()).await;
            let bus = bus(Arc::new(engine.clone()));
            let topic = fresh("anew");
            let key = || NewMessage::new("1").header("idempotency-key", "k").unwrap();
            let before = soon(engine.publish(&topic, vec![key()])).await.unwrap();
            let mut follower = follow(&bus, &topic).await;
            gets(&mut follower, "1").await;
            assert_eq!(fetched(&engine, &topic).await, ["1"]);
            let change = change.replace("STREAM", &format!("{{msgbus:{topic}}}:stream"));
            server.ask(&change.replace("EPOCH", &before.epoch.to_string())).await;
            let refused = soon(engine.publish(&topic, vec!["no".into()])).await;
            assert_eq!(refused, Err(EngineError::Unavailable), "{change}");
            let after = soon(engine.publish(&topic, vec![key()])).await.unwrap();
            assert!(after.epoch > before.epoch && after.first == 1, "{after:?}");
            let ended = soon(follower.recv()).await.unwrap_err();
            assert!(matches!(ended, RecvError::Deleted), "{ended:?}");
            gets(&mut follow(&bus, &topic).await, "1").await;
            assert_eq!(fetched(&engine, &topic).await, ["1"]);
        }
    }
}

/// A stream that somebody has deleted expires as every other one when it is made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_made_again_expires() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(RedisOptions { ..server.options() }).await;
        for count in [1, 3] {
            let topic = fresh("made-again");
            publish(&engine, &topic, &["1", "2"]).await;
            let stream = format!("{{msgbus:{topic}}}:stream");
            server.ask(&format!("DEL {stream}")).await;
            let next = publish(&engine, &topic, &["3", "4", "5"][..count]).await;
            assert_eq!(next.first, 3);
            let left = server.ask(&format!("PTTL {stream}")).await;
            assert!(matches!(left, Value::Int(1..)), "{left:?}");
        }
    }
}
