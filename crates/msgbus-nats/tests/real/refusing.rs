//! Servers that cannot or may not do what the engine needs: it says why.

use std::path::PathBuf;

use futures_util::future::join_all;
use msgbus_core::{BatchLimit, NewRequest, TopicName};
use msgbus_engine_testkit::Proxy;
use tokio::time::timeout;

use super::*;

/// The error that the engine has for everything, once it is known.
async fn refused(engine: &NatsEngine) -> EngineError {
    let topic = fresh("refused");
    let known = async {
        loop {
            let error = engine.publish(&topic, vec!["x".into()]).await.unwrap_err();
            if error != EngineError::Unavailable {
                assert!(!engine.health().is_up());
                return error;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon(known).await
}

async fn connect(options: NatsOptions, connect: ConnectOptions) -> NatsEngine {
    let options = NatsOptions { timeout: Duration::from_secs(2), ..options };
    NatsEngine::connect(options, connect).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_cannot_be_made_says_why() {
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { replicas: 3, ..server.options() };
        let error = refused(&connect(options, ConnectOptions::new()).await).await;
        assert!(matches!(error, EngineError::NotSupported { .. }), "{error}");
        assert!(error.to_string().contains("replica"), "{error}");
        let mut server = Server::new(&program);
        server.has_jetstream = false;
        server.run();
        let error = refused(&connect(server.options(), ConnectOptions::new()).await).await;
        assert!(matches!(error, EngineError::NotSupported { .. }), "{error}");
        assert!(error.to_string().contains("JetStream"), "{error}");
    }
}

const USERS: &str = r#"
authorization { users: [
    { user: full, password: full }
    { user: poor, password: poor, permissions: { publish: { deny: "$JS.API.STREAM.>" } } }
    { user: reader, password: reader, permissions: { publish: { deny: "msgbus.test.>" } } }
    { user: worker, password: worker, permissions: { publish: { deny: "$JS.API.CONSUMER.>" } } }
    { user: topics, password: topics, permissions: { publish: { deny: "msgbus-services.>" } } }
    { user: half, password: half, permissions: { publish: { deny: "msgbus.test.closed" } } }
    { user: guest, password: guest, permissions: { publish: { deny: "$JS.API.STREAM.CREATE.>" } } }
    { user: mute, password: mute, permissions: { publish: { deny: "_INBOX.>" } } }
] }
"#;

/// Also returns where its log is.
fn server_with_users(program: &Program, directory: &Path) -> (Server, PathBuf) {
    let (config, log) = (directory.join("nats.conf"), directory.join("log"));
    std::fs::write(&config, USERS).unwrap();
    let mut server = Server::new(program);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    server.arguments = vec!["-c".to_owned(), path(&config), "-l".to_owned(), path(&log)];
    server.run();
    (server, log)
}

fn user(name: &str) -> ConnectOptions {
    ConnectOptions::with_user_and_password(name.into(), name.into())
}

/// Publishes, as soon as that is possible.
async fn publish(engine: &NatsEngine, topic: &TopicName) {
    until_ok(|| engine.publish(topic, vec!["x".into()])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_user_may_not_do_is_denied() {
    for program in programs() {
        let directory = tempfile::tempdir().unwrap();
        let (server, log) = server_with_users(&program, directory.path());
        let poor = connect(server.options(), user("poor")).await;
        assert_eq!(refused(&poor).await, EngineError::Denied);
        let full = connect(server.options(), user("full")).await;
        let topics = connect(server.options(), user("topics")).await;
        until_up(&topics, true).await;
        let asked = soon(topics.is_served(&fresh("denied"))).await;
        assert_eq!(asked, Err(EngineError::Denied));
        let topic = fresh("denied");
        publish(&full, &topic).await;
        let denied = Err(EngineError::Denied);
        let reader = connect(server.options(), user("reader")).await;
        until_up(&reader, true).await;
        assert_eq!(soon(reader.publish(&topic, vec!["x".into()])).await, denied);
        assert!(soon(reader.stats(&topic)).await.unwrap().is_some());
        let worker = connect(server.options(), user("worker")).await;
        until_up(&worker, true).await;
        soon(worker.publish(&topic, vec!["x".into()])).await.unwrap();
        assert_eq!(soon(worker.stats(&topic)).await.map(drop), denied.map(drop));
        what_is_denied_holds_up_nobody(&server, user("half")).await;
        let mute = connect(server.options(), user("mute")).await;
        until_up(&mute, true).await;
        a_request_that_may_not_be_sent_is_denied_at_once(full, mute, &log).await;
    }
}

/// A node that may not make the stream looks for it for longer than a publish waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_that_has_failed_concerns_nobody_who_comes_later() {
    for program in programs() {
        let directory = tempfile::tempdir().unwrap();
        let (server, _) = server_with_users(&program, directory.path());
        let (full, topic) = (connect(server.options(), user("full")).await, fresh("gone"));
        publish(&full, &topic).await;
        let proxy = Proxy::to(server.port(), Duration::from_millis(200)).await;
        let servers = format!("nats://{}", proxy.address);
        let guest = connect(NatsOptions { servers, ..server.options() }, user("guest")).await;
        publish(&guest, &topic).await;
        // It would make the stream again.
        drop(full);
        let client = user("full").connect(server.url()).await.unwrap();
        async_nats::jetstream::new(client).delete_stream("msgbus").await.unwrap();
        // The first learns that the stream is gone, the second has it looked for.
        for _ in 0..2 {
            soon(guest.publish(&topic, vec!["x".into()])).await.unwrap_err();
        }
        // Until the search has failed.
        until_up(&guest, false).await;
        let full = connect(server.options(), user("full")).await;
        publish(&full, &topic).await;
        until_up(&guest, true).await;
        soon(guest.publish(&topic, vec!["x".into()])).await.unwrap();
    }
}

/// It is never acknowledged. Neither who publishes it nor others wait for that.
async fn what_is_denied_holds_up_nobody(server: &Server, user: ConnectOptions) {
    let options = NatsOptions { timeout: Duration::from_secs(30), ..server.options() };
    let engine = NatsEngine::connect(options, user).await.unwrap();
    until_up(&engine, true).await;
    let (open, closed) = (fresh("open"), "test/closed".parse().unwrap());
    let batch = || (0..256).map(|_| "x".into()).collect();
    let denied: Vec<_> = (0..20).map(|_| engine.publish(&closed, batch())).collect();
    for _ in 0..3 {
        let published = engine.publish(&open, vec!["x".into()]);
        timeout(Duration::from_secs(10), published).await.unwrap().unwrap();
    }
    for answer in timeout(Duration::from_secs(10), join_all(denied)).await.unwrap() {
        assert_eq!(answer, Err(EngineError::Denied));
    }
}

/// The server says so beside the request, and its requester would wait for ever.
async fn a_request_that_may_not_be_sent_is_denied_at_once(
    full: NatsEngine,
    mute: NatsEngine,
    log: &Path,
) {
    const REQUESTS: usize = 100;
    let (full, mute) = (bus(Arc::new(full)), bus(Arc::new(mute)));
    let service = fresh("mute");
    let _responder = full.serve(&service, BatchLimit::ONE).unwrap();
    let is_served = async {
        while mute.is_served_anywhere(&service).await != Ok(true) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(is_served).await;
    for _ in 0..REQUESTS {
        let asked = soon(mute.request(&service, NewRequest::new("x"))).await;
        assert_eq!(asked, Err(EngineError::Denied.into()));
    }
    // What was refused is not sent again at once.
    let log = std::fs::read_to_string(log).unwrap();
    let is_refusal = |line: &&str| line.contains("Publish Violation") && line.contains("mute");
    let refused = log.lines().filter(is_refusal).count();
    assert!((1..REQUESTS / 2).contains(&refused), "{refused}: {log}");
}
