//! What is published at one server is there at all.

use msgbus_core::{TopicName, json};
use msgbus_engine_testkit::server::Kind;

use super::{door_with, on_each, on_each_pair};
use crate::{
    stream::Stream,
    support::{Daemon, Reply},
};

/// Publishes, and returns the id.
async fn put(daemon: &Daemon, target: &str, body: &str) -> u64 {
    let reply = daemon.put(target, body).await;
    assert_eq!((reply.status, reply.header("Msgbus-Durability")), (202, Some("engine")));
    reply.number("Msgbus-Id")
}

fn payload(reply: &Reply) -> String {
    String::from_utf8(reply.message().payload().to_vec()).unwrap()
}

#[tokio::test]
async fn followers_see_what_is_published_at_another_server() {
    on_each_pair(async |_engine, one, other| {
        let epoch = one.put("/t/a", "first").await.number("Msgbus-Epoch");
        let mut websocket = other.subscribe("/t/a?since=all").await;
        let mut sse = Stream::open(&other, "/t/a?stream=sse&since=all", "").await;
        let mut lines = Stream::open(&one, "/t/a?stream=ndjson&since=all", "").await;
        let mut v1 = other.client().await;
        let sub =
            serde_json::json!({"op": "sub", "rid": 1, "sid": "s", "topic": "t/a", "since": "all"});
        v1.send(&[sub]).await;
        assert_eq!(v1.line().await["epoch"], epoch.to_string());

        let mut ids = vec![one.get("/t/a?peek&since=all").await.message().id()];
        for n in 0..5 {
            let (here, there) = if n % 2 == 0 { (&one, &other) } else { (&other, &one) };
            ids.push(put(here, "/t/a", &n.to_string()).await);
            // Other topics of the engine have the ids in between.
            put(there, "/t/b", "x").await;
        }
        let batch = other.put("/t/a?split=lines", "x\ny\n").await;
        ids.extend([batch.number("Msgbus-First-Id"), batch.number("Msgbus-Last-Id")]);

        assert_eq!(websocket.ids(8).await, ids);
        for id in &ids {
            let line = lines.line().await.unwrap();
            assert_eq!(json::read_message(line.as_bytes()).unwrap().id(), *id);
            assert_eq!(v1.line().await["id"], *id);
            let event = sse.lines(3).await;
            assert_eq!(event[0], format!("id: {epoch}-{id}"));
        }
        // All of that was one window at each server.
        assert_eq!(other.bus.engine_windows().len(), 1);
        assert_eq!(other.metric("msgbus_engine_windows{engine=\"main\"}").await, 1);
    })
    .await;
}

#[tokio::test]
async fn positions_mean_the_same_at_every_server() {
    on_each_pair(async |_engine, one, other| {
        let (mut ids, mut epoch) = (Vec::new(), 0);
        for n in 0..6 {
            let reply = one.put("/t", n.to_string()).await;
            ids.push(reply.number("Msgbus-Id"));
            epoch = reply.number("Msgbus-Epoch");
        }
        for daemon in [&one, &other] {
            let last = format!("Last-Event-ID: {epoch}-{}\r\n", ids[2]);
            let mut sse = Stream::open(daemon, "/t?stream=sse", &last).await;
            assert_eq!(sse.header("Msgbus-Restarted"), None);
            assert_eq!(sse.lines(3).await[0], format!("id: {epoch}-{}", ids[3]));
            let since = format!("/t?since={epoch}-{}", ids[3]);
            let mut websocket = daemon.subscribe(&since).await;
            assert_eq!(websocket.ids(2).await, ids[4..]);
            let peeked = daemon.get(&format!("/t?peek&max=10&since={epoch}-{}", ids[1])).await;
            assert_eq!(peeked.text().lines().count(), 4);
            let old = daemon.get("/t?peek&since=1-1").await;
            assert_eq!((old.status, old.header("Msgbus-Restarted")), (200, Some("true")));
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_goes_to_one_pull_of_all_servers() {
    on_each_pair(async |_engine, one, other| {
        for n in 0..6 {
            put(&one, "/jobs", &n.to_string()).await;
        }
        let mut pulled = Vec::new();
        for n in 0..6 {
            let daemon = if n % 2 == 0 { &one } else { &other };
            pulled.push(payload(&daemon.get("/jobs").await));
        }
        assert_eq!(pulled, ["0", "1", "2", "3", "4", "5"]);
        other.get("/jobs").await.refuses(404, "no messages");
        assert_eq!(one.get("/jobs?wait=100ms").await.status, 204);
        let waiting = one.get("/jobs?wait=60s");
        let (waiting, _) = tokio::join!(waiting, async { put(&other, "/jobs", "late").await });
        assert_eq!(payload(&waiting), "late");
        // A pull leaves the messages to followers.
        assert_eq!(one.get("/jobs?peek&since=all&max=10").await.text().lines().count(), 7);
    })
    .await;
}

#[tokio::test]
async fn topics_are_those_of_the_engine() {
    on_each_pair(async |_engine, one, other| {
        for topic in ["/list/b", "/list/a", "/list/a%20%C3%9F", "/else"] {
            put(&one, topic, "x").await;
        }
        let id = put(&one, "/list/b", "y").await;
        let listed = other.get("/?prefix=list/").await;
        assert_eq!(listed.text(), "list/a\nlist/a ß\nlist/b\n");
        let page = other.get("/?prefix=list/&max=2").await;
        assert_eq!(page.text(), "list/a\nlist/a ß\n");
        assert!(page.header("Link").unwrap().contains("after=list%2Fa%20%C3%9F&max=2"));
        let rest = other.get("/?prefix=list/&after=list/a%20%C3%9F").await;
        assert_eq!(rest.text(), "list/b\n");
        let objects =
            other.send("GET", "/?prefix=list/b", &["Accept: application/json"], b"").await;
        assert_eq!(objects.json()["list/b"]["retained"], 2);
        assert_eq!(objects.json()["list/b"]["engine"], "main");

        // The engine goes through its topics once, however few of them are wanted.
        let answered = || other.bus.engine_usage()[0].1.answered;
        let (before, is_last) = (answered(), |name: &TopicName| name.as_str() == "list/b");
        let found = other.bus.engine_topics("list/", "", 1, is_last).await.unwrap();
        assert_eq!((found.topics.len(), found.has_more, answered() - before), (1, false, 1));

        let head = other.send("HEAD", "/list/b", &[], b"").await;
        assert_eq!((head.number("Msgbus-Retained"), head.number("Msgbus-Subscribers")), (2, 0));
        assert_eq!(head.number("Msgbus-Next-Id"), id + 1);
        let _follower = other.subscribe("/list/b").await;
        let shown = other.get("/-/topics/list/b").await.json();
        assert_eq!((&shown["engine"], &shown["subscribers"]), (&"main".into(), &1.into()));
        assert_eq!((&shown["retained"], &shown["window"]["stalled"]), (&2.into(), &false.into()));
        other.send("HEAD", "/list/none", &[], b"").await;
        assert_eq!(other.get("/-/topics/list/none").await.status, 404);

        assert_eq!(other.send("DELETE", "/list/b", &[], b"").await.status, 204);
        assert_eq!(one.get("/?prefix=list/").await.text(), "list/a\nlist/a ß\n");
        assert_eq!(one.send("DELETE", "/list/b", &[], b"").await.status, 404);
    })
    .await;
}

#[tokio::test]
async fn what_an_engine_cannot_do_is_said() {
    on_each_pair(async |engine, one, _other| {
        put(&one, "/t/a", "x").await;
        for target in ["/t/*?stream=sse", "/**?stream=ndjson", "/t/a?peek"] {
            one.get(target).await.refuses(501, &format!("{} cannot", engine.kind()));
        }
        assert_eq!(one.get("/t/a?peek&group=g").await.message().payload(), "x");
        let refused = one.send("GET", "/t/a?peek", &["Accept: application/json"], b"").await;
        assert_eq!(refused.json()["code"], "not_supported");
        let set = one.send("PUT", "/-/groups/g/t/a?max_leases=3", &[], b"").await;
        set.refuses(501, "cannot limit the leases of a group");
        let path = "/-/groups/g/t/a?max_deliveries=3&dead_letters=t/dead";
        let set = one.send("PUT", path, &[], b"").await;
        assert_eq!(set.status, 201);
        let shown = one.get("/-/groups/g/t/a").await.json();
        assert_eq!(
            (&shown["max_deliveries"], &shown["dead_letters"]),
            (&3.into(), &"t/dead".into())
        );
        let mut v1 = one.client().await;
        v1.send(&[serde_json::json!({"op": "sub", "rid": 1, "sid": "s", "topic": "t/**"})]).await;
        let line = v1.line().await;
        assert_eq!((&line["op"], &line["code"]), (&"error".into(), &"not_supported".into()));
    })
    .await;
}

/// Messages that the engine no longer has are announced. Redis counts them; with NATS nobody knows how many.
#[tokio::test]
async fn what_is_gone_is_announced() {
    on_each(async |mut engine| {
        engine.run();
        let daemon = door_with(&engine, |config| config.engines[0].max_messages = 2).ready().await;
        let mut ids = Vec::new();
        for n in 0..6 {
            ids.push(put(&daemon, "/t", &n.to_string()).await);
            put(&daemon, "/else", "x").await;
        }
        let missed = if engine.kind() == Kind::Redis { 3 } else { 0 };
        let since = format!("since={}", ids[1]);
        let (mut subscriber, response) =
            daemon.subscribe_with(&format!("/t?gaps&{since}"), &[]).await;
        assert_eq!(response.headers()["msgbus-missed"], missed.to_string());
        let gap = format!("{{\"event\":\"gap\",\"missed\":{missed},\"next_id\":{}}}\n", ids[4]);
        assert_eq!(subscriber.frame().await.into_text().unwrap(), gap);
        assert_eq!(subscriber.ids(2).await, ids[4..]);
        let peeked = daemon.get(&format!("/t?peek&max=9&{since}")).await;
        assert_eq!(peeked.number("Msgbus-Missed"), missed);
        let complete = daemon.get(&format!("/t?peek&max=9&since={}", ids[4])).await;
        assert_eq!(complete.header("Msgbus-Missed"), None);
        let mut sse = Stream::open(&daemon, &format!("/t?stream=sse&{since}"), "").await;
        assert_eq!(
            sse.lines(2).await,
            ["event: gap".to_owned(), format!("data: {{\"missed\":{missed}}}")]
        );
    })
    .await;
}
