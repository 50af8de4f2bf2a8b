//! Many topics over one connection, and what a bus asks of the server.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use msgbus_core::{Event, NewMessage, Position, TopicName, engine::Engine as _};
use msgbus_engine_testkit::{bus, fresh, soon};
use msgbus_redis::RedisOptions;
use redis::Value;
use tokio::time::sleep;

use crate::server::{Redis as _, Server, programs, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_topics_take_two_connections() {
    for program in programs() {
        let server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let prefix = fresh("many");
        let names: Vec<TopicName> =
            (0..1000).map(|n| format!("{prefix}/{n}").parse().unwrap()).collect();
        let mut followers = Vec::new();
        for name in &names {
            let mut follower = soon(bus.follow(name, Position::New)).await.unwrap();
            assert!(follower.try_recv().unwrap().is_none());
            followers.push(follower);
        }
        assert_eq!(server.connections().await.len(), 2, "one for news");
        assert_eq!(bus.engine_windows().len(), 1000);
        for name in &names {
            soon(bus.publish(name, name.as_str().to_owned())).await.unwrap();
        }
        for (name, follower) in names.iter().zip(&mut followers) {
            let event = soon(follower.recv()).await.unwrap();
            let Event::Message { id, message } = event else { panic!("{event:?}") };
            assert_eq!((id, message.payload().as_ref()), (1, name.as_str().as_bytes()));
        }
        assert_eq!(server.connections().await.len(), 2, "one for news");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_a_topic_share_a_subscription() {
    for program in programs() {
        let server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let topic = fresh("shared");
        let mut followers = Vec::new();
        for _ in 0..1000 {
            followers.push(soon(bus.follow(&topic, Position::New)).await.unwrap());
        }
        let channels = server.ask("PUBSUB SHARDCHANNELS").await;
        let Value::Array(channels) = channels else { panic!("{channels:?}") };
        assert_eq!(channels.len(), 1, "{channels:?}");
        assert_eq!(server.connections().await.len(), 2, "one for news");
        soon(bus.publish(&topic, "x")).await.unwrap();
        for follower in &mut followers {
            let event = soon(follower.recv()).await.unwrap();
            assert!(matches!(event, Event::Message { id: 1, .. }), "{event:?}");
        }
    }
}

/// Large answers do not count as news that nobody takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_read_much_at_once_lose_no_connection() {
    for program in programs() {
        let limit = ["--client-output-buffer-limit", "pubsub 256kb 256kb 1"];
        let server = Server::start_with(&program, &limit);
        let engine = Arc::new(server.engine(server.options()).await);
        let topic = fresh("large");
        for _ in 0..40 {
            soon(engine.publish(&topic, vec![vec![7; 100_000].into()])).await.unwrap();
        }
        let bus = bus(Arc::clone(&engine) as Arc<dyn msgbus_core::engine::Engine>);
        let mut followers = Vec::new();
        for _ in 0..20 {
            let bus = bus.clone();
            let topic = topic.clone();
            followers.push(tokio::spawn(async move {
                let mut follower = soon(bus.follow(&topic, Position::All)).await.unwrap();
                for _ in 0..40 {
                    let event = soon(follower.recv()).await.unwrap();
                    assert!(matches!(event, Event::Message { .. }), "{event:?}");
                }
            }));
        }
        for follower in followers {
            soon(follower).await.unwrap();
        }
        assert_eq!(engine.health().reconnects, 0);
    }
}

/// How often the server has run a command.
async fn calls(server: &Server, command: &str) -> u64 {
    let stats = server.read("INFO commandstats").await;
    let of_command = format!("cmdstat_{command}:calls=");
    let line = stats.lines().find_map(|line| line.strip_prefix(&of_command));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_asks_for_nothing() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = Arc::new(server.engine(server.options()).await);
        let bus = bus(engine);
        let topic = fresh("idle");
        let mut follower = soon(bus.follow(&topic, Position::New)).await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..20 {
            let limit = msgbus_core::BatchLimit::ONE;
            waiting.push(tokio::spawn(bus.pull_wait(&topic, limit).unwrap()));
        }
        // Each has asked once, and the one whose turn it is twice. Then they only wait.
        let have_asked = async {
            let mut before = 0;
            loop {
                let now = calls(&server, "evalsha").await;
                if now > 20 && now == before {
                    return;
                }
                before = now;
                sleep(Duration::from_secs(1)).await;
            }
        };
        soon(have_asked).await;
        for n in 0..20 {
            soon(bus.publish(&topic, n.to_string())).await.unwrap();
        }
        let mut pulled = Vec::new();
        for waiting in waiting {
            let messages = soon(waiting).await.unwrap().unwrap();
            pulled.push(text_of(&messages[0]));
        }
        pulled.sort_by_key(|text| text.parse::<u32>().unwrap());
        assert_eq!(pulled, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
        for _ in 0..20 {
            assert!(matches!(soon(follower.recv()).await.unwrap(), Event::Message { .. }));
        }
    }
}

/// Small messages are told, and of large ones it is said that there are some. Followers at all nodes get both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_is_told_small_messages() {
    for program in programs() {
        let server = Server::start(&program);
        let one = bus(Arc::new(server.engine(server.options()).await));
        let other = bus(Arc::new(server.engine(server.options()).await));
        let topic = fresh("told");
        let mut followers = Vec::new();
        for bus in [&one, &one, &other] {
            followers.push(soon(bus.follow(&topic, Position::New)).await.unwrap());
        }
        let small = |n: u64| {
            let message = NewMessage::new(n.to_string());
            let message = message.header("name", "größe").unwrap().ttl(Duration::from_secs(n));
            vec![message, NewMessage::new(vec![7; 300]), NewMessage::new("")]
        };
        let mut got = async |first: u64, size: usize| {
            for follower in &mut followers {
                for expected in first..first + 3 {
                    let event = soon(follower.recv()).await.unwrap();
                    let Event::Message { id, message } = event else { panic!("{event:?}") };
                    assert_eq!(id, expected);
                    let kind = (expected - first, message.headers().iter().count());
                    assert!(matches!(kind, (0, 1) | (1 | 2, 0)), "{kind:?}");
                    if kind.0 == 1 {
                        assert_eq!(*message.payload(), vec![7; size]);
                    } else if kind.0 == 0 {
                        let text = message.expires().unwrap() - message.created();
                        assert_eq!(message.payload(), &text.num_seconds().to_string());
                    }
                }
            }
        };
        let mut before = 0;
        for n in 0..20 {
            soon(one.publish_batch(&topic, small(100 + n))).await.unwrap();
            got(n * 3 + 1, 300).await;
            if n == 0 {
                // Until then, they may ask where to begin.
                before = calls(&server, "evalsha").await;
            }
        }
        assert_eq!(calls(&server, "evalsha").await - before, 19, "nobody has asked");
        let large = vec![small(50).remove(0), vec![7; 30_000].into(), "".into()];
        soon(other.publish_batch(&topic, large)).await.unwrap();
        got(61, 30_000).await;
        soon(other.publish_batch(&topic, small(60))).await.unwrap();
        got(64, 300).await;
    }
}

fn text_of(message: &msgbus_core::Message) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_that_nobody_listens_to_are_left() {
    for program in programs() {
        let server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let topic = fresh("left");
        let waiting = bus.pull_wait(&topic, msgbus_core::BatchLimit::ONE).unwrap();
        let waiting = tokio::spawn(waiting);
        let channels = async || match server.ask("PUBSUB SHARDCHANNELS").await {
            Value::Array(channels) => channels.len(),
            other => panic!("{other:?}"),
        };
        let is = async |count: usize| {
            while channels().await != count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        soon(is(1)).await;
        waiting.abort();
        soon(is(0)).await;
        // And it is heard again.
        let waiting = tokio::spawn(bus.pull_wait(&topic, msgbus_core::BatchLimit::ONE).unwrap());
        soon(is(1)).await;
        soon(bus.publish(&topic, "x")).await.unwrap();
        assert_eq!(soon(waiting).await.unwrap().unwrap()[0].payload(), "x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_old_is_removed() {
    for program in programs() {
        let server = Server::start(&program);
        let age = Duration::from_secs(20);
        let options = RedisOptions { max_age: Some(age), ..server.options() };
        let engine = Arc::new(server.engine(options).await);
        let topic = fresh("age");
        let messages = (0..50).map(|n| n.to_string().into()).collect();
        soon(engine.publish(&topic, messages)).await.unwrap();
        let bus = bus(engine);
        let group = "workers".parse().unwrap();
        // With a group, the stream does not expire as a whole.
        let leased = soon(bus.lease(&topic, &group, msgbus_core::LeaseOptions::default()));
        assert_eq!(leased.await.unwrap().len(), 1);
        sleep(age + Duration::from_millis(200)).await;
        let last = soon(bus.publish(&topic, "new")).await.unwrap();
        let mut follower = soon(bus.follow(&topic, Position::Id(1))).await.unwrap();
        let event = soon(follower.recv()).await.unwrap();
        assert!(matches!(event, Event::Missed { count: 50, .. }), "{event:?}");
        let event = soon(follower.recv()).await.unwrap();
        assert!(matches!(event, Event::Message { id, .. } if id == last.id));
        let length = format!("XLEN {{msgbus:{topic}}}:stream");
        assert_eq!(server.ask(&length).await, Value::Int(1), "the server has forgotten them");
        let stats = soon(bus.engine_stats(&topic)).await.unwrap().unwrap();
        assert_eq!((stats.retained, stats.first), (1, last.id));
    }
}

/// Everything of a topic has a key with the same hash tag, and expires.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_uses_is_forgotten() {
    for program in programs() {
        let server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let topic = fresh("forgotten");
        let message = NewMessage::new("x");
        let message = message.header(msgbus_core::Headers::IDEMPOTENCY_KEY, "k").unwrap();
        soon(bus.publish(&topic, message)).await.unwrap();
        for group in ["a", "b"] {
            let group = group.parse().unwrap();
            let options = msgbus_core::LeaseOptions::default();
            assert_eq!(soon(bus.lease(&topic, &group, options)).await.unwrap().len(), 1);
        }
        let Value::Array(keys) = server.ask("KEYS {msgbus:test*").await else { panic!() };
        let keys: Vec<String> = keys.into_iter().map(text).collect();
        let mut expected: HashMap<String, i64> = HashMap::new();
        let days = 30 * 24 * 3600 * 1000;
        for (kind, limit) in
            [("topic", days), ("stream", days), ("due:group:a", days), ("due:group:b", days)]
        {
            expected.insert(format!("{{msgbus:{topic}}}:{kind}"), limit);
        }
        assert_eq!(keys.len(), expected.len() + 1, "{keys:?}");
        for key in keys {
            let limit = expected.get(&key).copied().unwrap_or(120_000);
            let Value::Int(left) = server.ask(&format!("PTTL {key}")).await else { panic!() };
            assert!((1..=limit).contains(&left), "{key} expires in {left} ms");
        }
    }
}

/// How much longer a key is kept, in milliseconds.
async fn left(server: &Server, topic: &TopicName, kind: &str) -> i64 {
    match server.ask(&format!("PTTL {{msgbus:{topic}}}:{kind}")).await {
        Value::Int(left) => left,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_used_is_kept() {
    for program in programs() {
        let server = Server::start(&program);
        let (max_age, forget_after) = (Some(Duration::from_secs(1)), Duration::from_secs(2));
        let options = RedisOptions { max_age, forget_after, ..server.options() };
        let engine = server.engine(options).await;
        let topic = fresh("kept");
        let first = soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
        for number in 2..=20 {
            sleep(Duration::from_millis(150)).await;
            let before = Instant::now();
            let next = soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
            assert_eq!((next.epoch, next.first), (first.epoch, number));
            let left = left(&server, &topic, "stream").await;
            let since = i64::try_from(before.elapsed().as_millis()).unwrap();
            assert!(left + since >= 1990, "{left} ms, {since} ms after it was published");
        }
    }
}

/// A topic that was only looked at is forgotten after a day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_message_keeps_a_topic_for_longer() {
    for program in programs() {
        let server = Server::start(&program);
        let day = 24 * 3600 * 1000;
        let options = RedisOptions { max_age: None, ..server.options() };
        let bus = bus(Arc::new(server.engine(options).await));
        let topic = fresh("first");
        let _follower = soon(bus.follow(&topic, Position::New)).await.unwrap();
        let group = "workers".parse().unwrap();
        let options = msgbus_core::LeaseOptions::default();
        assert!(soon(bus.lease(&topic, &group, options)).await.unwrap().is_empty());
        for kind in ["topic", "stream"] {
            assert!((1..=day).contains(&left(&server, &topic, kind).await), "{kind}");
        }
        soon(bus.publish(&topic, "x")).await.unwrap();
        for kind in ["topic", "stream"] {
            assert!(left(&server, &topic, kind).await > day, "{kind}");
        }
    }
}
