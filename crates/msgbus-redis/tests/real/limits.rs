//! Servers that refuse, that have no memory left, or are to confirm more.

use std::{sync::Arc, time::Duration};

use msgbus_core::{
    BatchLimit, Headers, MessageBus, NewMessage, Position, Settlement,
    engine::{Begin, Engine, EngineError, Fetch},
};
use msgbus_engine_testkit::{SOON, bus, fresh, soon, until_ok};
use msgbus_redis::{Acknowledge, RedisEngine, RedisOptions, TlsCertificates};
use redis::Value;
use tokio::time::{Instant, sleep};

use crate::server::{Redis as _, Server, free_port, programs};

const MANY: BatchLimit = BatchLimit { events: 1000, bytes: 1 << 20 };

/// The error that the engine has for everything, once it is known.
async fn refused(engine: &RedisEngine) -> EngineError {
    let topic = fresh("refused");
    let start = Instant::now();
    loop {
        let error = soon(engine.publish(&topic, vec!["x".into()])).await.unwrap_err();
        if error != EngineError::Unavailable {
            let other = soon(engine.history(&topic, Begin::First, MANY)).await.unwrap_err();
            assert_eq!(other, error);
            return error;
        }
        assert!(start.elapsed() < SOON);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_denied() {
    for program in programs() {
        let server = Server::start_with(&program, &["--requirepass", "right"]);
        for url in ["", "wrong@", ":wrong@", "nobody:right@"] {
            let url = format!("redis://{url}127.0.0.1:{}", server.port());
            let engine = RedisEngine::connect(RedisOptions { url, ..server.options() }).unwrap();
            assert_eq!(refused(&engine).await, EngineError::Denied);
        }
        let url = format!("redis://:right@127.0.0.1:{}", server.port());
        let engine = server.engine(RedisOptions { url, ..server.options() }).await;
        let text = format!("{engine:?} {:?}", RedisOptions::new("redis://:right@h"));
        assert!(!text.contains("right"), "{text}");
        soon(engine.publish(&fresh("right"), vec!["x".into()])).await.unwrap();
        let url = format!("redis://127.0.0.1:{}", server.port());
        let (user, password) = (Some("default".to_owned()), Some("right".to_owned()));
        let options = RedisOptions { url, user, password, ..server.options() };
        let engine = server.engine(options).await;
        soon(engine.publish(&fresh("right"), vec!["x".into()])).await.unwrap();
    }
}

/// The message of an idempotency key may have been deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_may_be_published_again() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let topic = fresh("deleted");
        let message = || NewMessage::new("x").header("Idempotency-Key", "k").unwrap();
        let first = soon(engine.publish(&topic, vec![message()])).await.unwrap();
        assert_eq!(soon(engine.publish(&topic, vec![message()])).await, Ok(first));
        assert!(soon(engine.delete(&topic)).await.unwrap());
        let second = soon(engine.publish(&topic, vec![message()])).await.unwrap();
        assert!(second.first > first.last, "{second:?}");
        assert_eq!(soon(engine.publish(&topic, vec![message()])).await, Ok(second));
        assert_eq!(soon(engine.stats(&topic)).await.unwrap().unwrap().retained, 1);
    }
}

/// With headers and without, with a TTL and without, new and published before, in one call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_every_kind_go_together() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let topic = fresh("kinds");
        let hour = Duration::from_secs(3600);
        let with =
            |text: &'static str, name, value| NewMessage::new(text).header(name, value).unwrap();
        let keyed = |text: &'static str| with(text, Headers::IDEMPOTENCY_KEY, text);
        soon(engine.publish(&topic, vec![keyed("before")])).await.unwrap();
        let batch = || {
            vec![
                "plain".into(),
                keyed("before"),
                NewMessage::new("ttl").ttl(hour / 2),
                with("headers", "a", "b"),
                keyed("key").ttl(hour / 2),
                with("both", "c", "d").ttl(hour / 2),
                "".into(),
            ]
        };
        let receipt = soon(engine.publish(&topic, batch())).await.unwrap();
        assert_eq!((receipt.first, receipt.last), (1, 7), "all but one are new");
        let page = soon(engine.history(&topic, Begin::First, MANY)).await.unwrap();
        let found: Vec<_> = page.messages.into_iter().map(|read| read.message).collect();
        let texts = found.iter().map(|message| str::from_utf8(&message.payload).unwrap());
        let expected = ["before", "plain", "ttl", "headers", "key", "both", ""];
        assert_eq!(texts.collect::<Vec<_>>(), expected);
        assert_eq!(
            found.iter().map(|message| message.id).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6, 7]
        );
        let mut sent = batch();
        sent.remove(1);
        for (message, sent) in found.iter().skip(1).zip(sent) {
            let (_, ttl, headers) = sent.into_parts();
            assert_eq!(message.headers, headers);
            let left = message.expires.unwrap() - message.created;
            assert_eq!(left.to_std().unwrap(), ttl.unwrap_or(hour));
        }
        let again = soon(engine.publish(&topic, vec![keyed("key"), "new".into()])).await.unwrap();
        assert_eq!((again.first, again.last), (5, 8));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_user_may_not_do_is_denied() {
    for program in programs() {
        let server = Server::start(&program);
        let user = "ACL SETUSER reader on >secret ~* &* +@all -xadd";
        server.ask(user).await;
        let url = format!("redis://reader:secret@127.0.0.1:{}", server.port());
        let engine = server.engine(RedisOptions { url, ..server.options() }).await;
        let topic = fresh("acl");
        let error = soon(engine.publish(&topic, vec!["x".into()])).await.unwrap_err();
        assert_eq!(error, EngineError::Denied);
        assert!(
            soon(engine.history(&topic, Begin::First, MANY)).await.unwrap().messages.is_empty()
        );
        // As Redis 7 makes users: without channels. Nothing is done in part.
        server.ask("ACL SETUSER mute on >secret ~* +@all").await;
        let url = format!("redis://mute:secret@127.0.0.1:{}", server.port());
        let engine = server.engine(RedisOptions { url, ..server.options() }).await;
        let error = soon(engine.publish(&topic, vec!["x".into()])).await.unwrap_err();
        assert_eq!(error, EngineError::Denied);
        assert!(
            soon(engine.history(&topic, Begin::First, MANY)).await.unwrap().messages.is_empty()
        );
        // The rights that the docs name are enough.
        let user = "ACL SETUSER bus on >secret ~{msgbus:* &{msgbus:* -@all +@stream +@hash \
                    +@sortedset +@scripting +get +set +del +exists +pexpire +time +scan +ssubscribe \
                    +sunsubscribe +spublish +info +ping +hello +client|setinfo +wait +waitaof";
        let user = if text_of_version(&server).await.starts_with("7.0") {
            user.replace(" +client|setinfo", " +client").replace(" +waitaof", "")
        } else {
            user.to_owned()
        };
        server.ask(&user).await;
        let url = format!("redis://bus:secret@127.0.0.1:{}", server.port());
        let engine = Arc::new(server.engine(RedisOptions { url, ..server.options() }).await);
        let bus = bus(engine);
        let mut follower = soon(bus.follow(&topic, Position::New)).await.unwrap();
        soon(bus.publish(&topic, "x")).await.unwrap();
        soon(follower.recv()).await.unwrap();
        assert_eq!(soon(bus.pull(&topic, MANY)).await.unwrap().len(), 1);
        assert!(soon(bus.delete(&topic)).await.unwrap());
    }
}

/// However many are published at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_has_no_more_messages_than_it_may() {
    for program in programs() {
        let server = Server::start(&program);
        for (most, at_most) in [(10, 10), (1000, 1100)] {
            let max_messages_per_topic = Some(most);
            let options = RedisOptions { max_messages_per_topic, ..server.options() };
            let engine = server.engine(options).await;
            let topic = fresh("most");
            for count in [20_000, 1, 30] {
                let messages = (0..count).map(|n: u32| n.to_string().into()).collect();
                soon(engine.publish(&topic, messages)).await.unwrap();
                let length = server.ask(&format!("XLEN {{msgbus:{topic}}}:stream")).await;
                let Value::Int(length) = length else { panic!("{length:?}") };
                assert!((i64::from(most)..=at_most).contains(&length), "{length} of {most}");
            }
        }
    }
}

async fn text_of_version(server: &Server) -> String {
    let info = match server.ask("INFO server").await {
        Value::BulkString(bytes) => String::from_utf8(bytes).unwrap(),
        other => panic!("{other:?}"),
    };
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    version.unwrap().to_owned()
}

async fn fill(bus: &MessageBus) -> EngineError {
    let topic = fresh("fill");
    for _ in 0..100_000 {
        let published = soon(bus.publish(&topic, vec![7; 100_000])).await;
        if let Err(error) = published {
            let msgbus_core::PublishError::Store(msgbus_core::store::StoreError::Engine(error)) =
                error
            else {
                panic!("{error}")
            };
            return error;
        }
    }
    panic!("the server has room without end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_says_so_and_goes_on_serving() {
    for program in programs() {
        let server = Server::start_with(
            &program,
            &["--maxmemory", "16mb", "--maxmemory-policy", "noeviction"],
        );
        let engine = Arc::new(server.engine(server.options()).await);
        let bus = bus(Arc::clone(&engine) as Arc<dyn Engine>);
        let topic = fresh("full");
        for n in 0..3 {
            soon(bus.publish(&topic, n.to_string())).await.unwrap();
        }
        assert_eq!(fill(&bus).await, EngineError::Full);
        // Leases, acks and reading go on.
        let limit = BatchLimit { events: 3, ..MANY };
        let lease = Duration::from_secs(60);
        let fetch = Fetch { limit, lease, wait: Duration::ZERO, from: Begin::First };
        let leases = soon(engine.fetch(&topic, None, fetch)).await.unwrap();
        assert_eq!(leases.messages.len(), 3);
        let keys = leases.messages.iter().map(|lease| lease.key.clone()).collect();
        let settled = soon(engine.settle(&topic, None, keys, &Settlement::Ack)).await.unwrap();
        assert!(settled.lost.is_empty());
        let page = soon(engine.history(&topic, Begin::First, MANY)).await.unwrap();
        assert_eq!(page.messages.len(), 3);
        // With room again, it goes on by itself.
        server.ask("CONFIG SET maxmemory 0").await;
        let published = soon(bus.publish(&topic, "3")).await.unwrap();
        assert_eq!(published.id, 4, "what was refused has no number");
    }
}

/// A server that may remove topics is used, with a warning as long as it is so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_may_remove_topics_is_warned_of() {
    for program in programs() {
        let limit = ["--maxmemory", "1gb", "--maxmemory-policy", "volatile-lru"];
        let server = Server::start_with(&program, &limit);
        let engine = server.engine(server.options()).await;
        assert!(engine.health().warning.unwrap().contains("maxmemory-policy"));
        let warns = async |expected: bool| {
            let start = Instant::now();
            while engine.health().warning.is_some() != expected {
                assert!(start.elapsed() < SOON);
                sleep(Duration::from_millis(10)).await;
            }
        };
        server.ask("CONFIG SET maxmemory 0").await;
        warns(false).await;
        server.ask("CONFIG SET maxmemory-policy allkeys-random").await;
        server.ask("CONFIG SET maxmemory 1gb").await;
        warns(true).await;
        server.ask("CONFIG SET maxmemory-policy noeviction").await;
        warns(false).await;
        assert!(engine.health().is_up());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_is_not_answered_is_unknown() {
    for program in programs() {
        let server = Server::start(&program);
        let options = RedisOptions { timeout: Duration::from_secs(10), ..server.options() };
        let engine = server.engine(options).await;
        let topic = fresh("stopped");
        server.signal("-STOP");
        let error = soon(engine.publish(&topic, vec!["x".into()])).await.unwrap_err();
        assert_eq!(error, EngineError::Unknown);
        server.signal("-CONT");
        let message = NewMessage::new("x");
        let message = message.header(msgbus_core::Headers::IDEMPOTENCY_KEY, "k").unwrap();
        until_ok(|| engine.publish(&topic, vec![message.clone()])).await;
    }
}

/// Who publishes without waiting for the answers, with keys and without, gets numbers in the order of the calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_keep_the_order_of_the_calls() {
    for program in programs() {
        for acknowledge in [Acknowledge::Server, Acknowledge::Replicas(0)] {
            let server = Server::start(&program);
            let engine = server.engine(RedisOptions { acknowledge, ..server.options() }).await;
            let topic = fresh("order");
            let publish = |number: u64| {
                let message = NewMessage::new(number.to_string());
                let key = number.to_string();
                let key = number.is_multiple_of(3).then_some(("idempotency-key", key.as_str()));
                engine.publish(&topic, vec![message.headers(Headers::new(key).unwrap())])
            };
            let answers: Vec<_> = (1..=300).map(publish).collect();
            for (number, answer) in (1..).zip(answers) {
                let receipt = soon(answer).await.unwrap();
                assert_eq!((receipt.first, receipt.last), (number, number));
            }
        }
    }
}

/// Replicas that are not there cannot confirm; a disk can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_wait_for_what_was_asked_for() {
    for program in programs() {
        let server = Server::start(&program);
        let options = |acknowledge| RedisOptions { acknowledge, ..server.options() };
        let topic = fresh("waits");
        let timeout = Duration::from_secs(10);
        let impatient = RedisOptions { timeout, ..options(Acknowledge::Replicas(1)) };
        let engine = server.engine(impatient).await;
        let error = soon(engine.publish(&topic, vec!["x".into()])).await.unwrap_err();
        assert_eq!(error, EngineError::Unknown, "there is no replica");
        let engine = server.engine(options(Acknowledge::Replicas(1))).await;
        let replica = Server::start(&program);
        replica.ask(&format!("REPLICAOF 127.0.0.1 {}", server.port())).await;
        until_ok(|| engine.publish(&topic, vec!["x".into()])).await;
        let together: Vec<_> =
            (0..50).map(|_| tokio::spawn(engine.publish(&topic, vec!["x".into()]))).collect();
        for published in together {
            soon(published).await.unwrap().unwrap();
        }
        let options = options(Acknowledge::Synced { replicas: 0 });
        if text_of_version(&server).await.starts_with("7.0") {
            let engine = RedisEngine::connect(options).unwrap();
            let error = refused(&engine).await;
            assert!(error.to_string().contains("Redis 7.2 or Valkey"), "{error}");
        } else {
            let engine = server.engine(options).await;
            soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
        }
    }
}

/// Waits until a server is a replica, whose link to its leader is so.
async fn is_replica_of(server: &Server, link: &str) {
    let expected = format!("master_link_status:{link}");
    let start = Instant::now();
    loop {
        let Value::BulkString(info) = server.ask("INFO replication").await else { panic!() };
        if String::from_utf8(info).unwrap().contains(&expected) {
            return;
        }
        assert!(start.elapsed() < SOON);
        sleep(Duration::from_millis(10)).await;
    }
}

/// A leads, then B, then A again. What A had given meanwhile is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leads_again_gives_no_number_again() {
    for program in programs() {
        let (one, other) = (Server::start(&program), Server::start(&program));
        let topic = fresh("again");
        let engine = one.engine(one.options()).await;
        let first = soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
        other.ask(&format!("REPLICAOF 127.0.0.1 {}", one.port())).await;
        is_replica_of(&other, "up").await;
        other.ask("REPLICAOF NO ONE").await;
        let lost = soon(engine.publish(&topic, vec!["lost".into()])).await.unwrap();
        assert_eq!(lost.first, 2);
        one.ask(&format!("REPLICAOF 127.0.0.1 {}", other.port())).await;
        is_replica_of(&one, "up").await;
        let down = async {
            while engine.health().is_up() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        soon(down).await;
        one.ask("REPLICAOF NO ONE").await;
        let second = until_ok(|| engine.publish(&topic, vec!["y".into()])).await;
        assert_eq!(second.epoch, first.epoch);
        assert!(second.first > lost.first, "{second:?}");
        let page = soon(engine.history(&topic, Begin::Sequence(2), MANY)).await.unwrap();
        assert_eq!((page.messages.len(), page.messages[0].skipped), (1, None), "some are gone");
    }
}

/// Messages that have expired do not hide one that has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_goes_past_what_has_expired() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let topic = fresh("expired");
        let short = || NewMessage::new("x").ttl(Duration::from_millis(1));
        soon(engine.publish(&topic, (0..2500).map(|_| short()).collect())).await.unwrap();
        soon(engine.publish(&topic, vec!["kept".into()])).await.unwrap();
        sleep(Duration::from_millis(20)).await;
        let (limit, lease) = (BatchLimit::ONE, Duration::from_secs(60));
        let fetch = Fetch { limit, lease, wait: Duration::ZERO, from: Begin::First };
        let leases = soon(engine.fetch(&topic, None, fetch)).await.unwrap();
        assert_eq!(leases.messages[0].message.payload, "kept");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_asked_until_it_leads() {
    for program in programs() {
        let (leader, replica) = (Server::start(&program), Server::start(&program));
        let topic = fresh("failover");
        let engine = leader.engine(leader.options()).await;
        let first = soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
        replica.ask(&format!("REPLICAOF 127.0.0.1 {}", leader.port())).await;
        let engine = RedisEngine::connect(replica.options()).unwrap();
        is_replica_of(&replica, "up").await;
        for _ in 0..20 {
            let error = soon(engine.history(&topic, Begin::First, MANY)).await.unwrap_err();
            assert_eq!(error, EngineError::Unavailable, "it may be behind");
            assert!(!engine.health().is_up());
            sleep(Duration::from_millis(20)).await;
        }
        replica.ask("REPLICAOF NO ONE").await;
        let second = until_ok(|| engine.publish(&topic, vec!["y".into()])).await;
        assert_eq!(second.epoch, first.epoch);
        assert!(second.first > 1_000_000_000, "the leader may have given other numbers");
    }
}

/// A certificate for this machine, and its key.
fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_may_have_tls() {
    for program in programs() {
        let (certificate, key) = certificate();
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(file("cert"), &certificate).unwrap();
        std::fs::write(file("key"), &key).unwrap();
        let port = free_port();
        let (port_text, cert, key) = (port.to_string(), file("cert"), file("key"));
        let arguments = [
            ["--tls-port", &port_text],
            ["--tls-cert-file", &cert],
            ["--tls-key-file", &key],
            ["--tls-ca-cert-file", &cert],
            ["--tls-auth-clients", "no"],
        ];
        let Some(server) = Server::try_start(&program, arguments.as_flattened()) else {
            eprintln!("SKIPPED: {} has no TLS", program.display());
            continue;
        };
        let url = format!("rediss://127.0.0.1:{port}");
        let unknown =
            RedisEngine::connect(RedisOptions { url: url.clone(), ..server.options() }).unwrap();
        let topic = fresh("tls");
        let root_cert = Some(certificate.into_bytes());
        let tls = Some(TlsCertificates { client_tls: None, root_cert });
        let engine = server.engine(RedisOptions { url, tls, ..server.options() }).await;
        soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
        let error = soon(unknown.publish(&topic, vec!["x".into()])).await.unwrap_err();
        assert_eq!(error, EngineError::Unavailable, "the certificate is not known");
    }
}

#[tokio::test]
async fn invalid_options_are_refused() {
    for url in ["", "http://127.0.0.1", "redis://127.0.0.1:x", "not an address"] {
        RedisEngine::connect(RedisOptions::new(url)).unwrap_err();
    }
    for prefix in ["", "a{b", "}"] {
        let options = RedisOptions { prefix: prefix.to_owned(), ..RedisOptions::new("redis://h") };
        RedisEngine::connect(options).unwrap_err();
    }
}
