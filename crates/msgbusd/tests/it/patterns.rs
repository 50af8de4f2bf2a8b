//! Section 15: patterns.

use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use crate::{
    keys::{File, bearer, follow, key, request},
    stream::Stream,
    support::{Daemon, EVENT_SOURCE, Subscriber, soon, until},
};

/// The topic and the payload of the next message.
async fn next(subscriber: &mut Subscriber) -> (String, String) {
    let message = subscriber.message().await;
    let payload = String::from_utf8(message.payload().to_vec()).unwrap();
    (message.topic().name.to_string(), payload)
}

async fn put_all(daemon: &Daemon, topics: &[&str]) {
    for (number, topic) in topics.iter().enumerate() {
        assert_eq!(daemon.put(topic, number.to_string()).await.status, 202);
    }
}

fn position(line: &str) -> &str {
    line.split_once(",\"position\":\"").unwrap().1.strip_suffix("\"}").unwrap()
}

#[tokio::test]
async fn every_transport_follows_a_pattern() {
    let daemon = Daemon::start();
    put_all(&daemon, &["/orders/eu", "/orders/us/late", "/other"]).await;
    let (mut socket, response) = daemon.subscribe_with("/orders/**?since=all", &[]).await;
    let epoch = response.headers()["msgbus-epoch"].to_str().unwrap().to_owned();
    let mut flat = daemon.subscribe("/orders/*").await;
    let mut events = Stream::open(&daemon, "/orders/**?stream=sse", "").await;
    let mut lines = Stream::open(&daemon, "/orders/**?stream=ndjson&since=all", "").await;
    let mut raw = Stream::open(&daemon, "/%2A%2a?stream=raw", "").await;
    assert_eq!(events.header("msgbus-epoch"), Some(&*epoch), "one order");
    put_all(&daemon, &["/orders/eu", "/orders/new/er", "/other"]).await;
    for (topic, payload) in
        [("orders/eu", "0"), ("orders/us/late", "1"), ("orders/eu", "0"), ("orders/new/er", "1")]
    {
        assert_eq!(next(&mut socket).await, (topic.to_owned(), payload.to_owned()));
    }
    assert_eq!(next(&mut flat).await, ("orders/eu".to_owned(), "0".to_owned()));
    let text = lines.lines(4).await;
    let event = events.lines(6).await;
    let id = position(&text[2]);
    assert!(id.starts_with(&format!("{epoch}-")), "{id}");
    assert_eq!(event[0], format!("id: {id}"));
    assert_eq!(event[1], format!("data: {}", text[2]));
    assert_eq!(event[3], format!("id: {}", position(&text[3])));
    assert_eq!(raw.lines(3).await, ["0", "1", "2"]);

    // It resumes after any of them, on any transport.
    for (since, headers) in [
        (format!("&since={id}"), String::new()),
        (String::new(), format!("Last-Event-ID: {id}\r\n")),
    ] {
        let target = format!("/orders/**?stream=ndjson{since}");
        let mut resumed = Stream::open(&daemon, &target, &headers).await;
        assert_eq!(resumed.line().await.unwrap(), text[3]);
    }
    let mut resumed = daemon.subscribe(&format!("/orders/**?since={id}")).await;
    assert_eq!(next(&mut resumed).await.0, "orders/new/er");
}

#[tokio::test]
async fn a_position_of_another_order_restarts() {
    let daemon = Daemon::start();
    put_all(&daemon, &["/a/x", "/a/y"]).await;
    let mut stream = Stream::open(&daemon, "/a/*?stream=sse&since=1-5", EVENT_SOURCE).await;
    assert_eq!(stream.header("msgbus-restarted"), Some("true"));
    let epoch = stream.header("msgbus-epoch").unwrap().to_owned();
    let head = stream.lines(3).await;
    assert_eq!(
        head[..2],
        ["event: restart".to_owned(), format!("data: {{\"epoch\":\"{epoch}\"}}")]
    );
    let start = stream.lines(2).await.remove(0);
    let start = start.strip_prefix("id: ").unwrap();
    assert_eq!(id_of(&stream.lines(3).await[0]), id_of(&format!("id: {start}")) + 1);
    // The position before the first message resumes, too.
    let mut again = Stream::open(&daemon, &format!("/a/*?stream=ndjson&since={start}"), "").await;
    assert_eq!(again.header("msgbus-restarted"), None);
    assert_eq!(again.lines(2).await.len(), 2);
}

fn id_of(line: &str) -> u64 {
    line.rsplit_once('-').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn what_is_gone_is_told_and_lag_disconnects() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 2);
    let mut told = daemon.subscribe("/**?gaps&since=all").await;
    put_all(&daemon, &["/a"]).await;
    next(&mut told).await;
    let mut strict = daemon.subscribe("/**?lag=disconnect").await;
    // In one step, so that nobody is in between.
    let messages = (0..2).map(|n| msgbus_core::NewMessage::new(n.to_string())).collect();
    daemon.bus.put_batch(&"b".parse().unwrap(), messages).unwrap();
    assert_eq!(next(&mut strict).await.1, "0");
    next(&mut strict).await;
    let subscribed = daemon.bus.stats().subscribers;
    let mut resumed = {
        let first = told.frame().await.into_text().unwrap();
        daemon.bus.delete(&"b".parse().unwrap()).await.unwrap();
        put_all(&daemon, &["/c", "/c", "/c"]).await;
        let since = position(first.trim_end()).to_owned();
        daemon.subscribe(&format!("/**?gaps&since={since}")).await
    };
    let gap = resumed.frame().await.into_text().unwrap();
    assert!(gap.starts_with("{\"event\":\"gap\",\"missed\":2,\"next_id\":"), "{gap}");
    assert_eq!(next(&mut resumed).await, ("c".to_owned(), "1".to_owned()));
    let behind = daemon.subscribe_with("/**?lag=disconnect&since=all", &[]).await;
    assert_eq!(behind.1.headers()["msgbus-missed"], "1", "told at the start, and no end");
    assert_eq!(daemon.bus.stats().subscribers, subscribed + 2);
    drop((told, strict, resumed, behind));
    soon(until(|| daemon.bus.stats().subscribers == 0)).await;
}

#[tokio::test]
async fn what_needs_one_topic_refuses_a_pattern() {
    let daemon = Daemon::start();
    daemon.put("/orders/eu", "x").await;
    for (method, target) in [
        ("GET", "/orders/*"),
        ("GET", "/**"),
        ("GET", "/orders/**?wait=1s"),
        ("GET", "/orders/**?max=5"),
        ("GET", "/orders/**?peek"),
        ("GET", "/orders/**?group=g"),
        ("PUT", "/orders/*"),
        ("POST", "/orders/%2a"),
        ("DELETE", "/orders/**"),
        ("GET", "/-/groups/g/orders/*"),
    ] {
        let reply = daemon.send(method, target, &[], b"").await;
        reply.refuses(
            400,
            "bad topic name: patterns are followed with a websocket or with ?stream=",
        );
        let json = daemon.send(method, target, &["Accept: application/json"], b"").await;
        assert!(json.text().contains("\"code\":\"bad_topic\""), "{json:?}");
    }
    for (target, mention) in [
        ("/**/a?stream=sse", "\"**\" must be the last segment"),
        ("/a//*?stream=sse", "segment"),
        ("/a*/*?stream=sse", "whole segment"),
        ("/-/*?stream=sse", "/-/stats"),
    ] {
        let status = if mention == "/-/stats" { 404 } else { 400 };
        daemon.get(target).await.refuses(status, mention);
    }
    assert_eq!(daemon.get("/orders/eu").await.message().payload(), "x");
    assert_eq!(daemon.get("/").await.text(), "orders/eu\n");
}

#[tokio::test]
async fn a_pattern_needs_a_grant_that_could_match() {
    let eu = key("eu", &["subscribe:o/eu/**"]);
    let daemon = File::new(&[], &[&eu]).daemon();
    for target in ["/other/*", "/o/us/**", "/*"] {
        let reply = daemon.send("GET", &format!("{target}?stream=sse"), &[&bearer(&eu)], b"").await;
        reply.refuses(403, &format!("does not allow subscribe:{}", &target[1..]));
    }
    daemon.get("/**?stream=sse").await.refuses(401, "subscribe:** needs a key");
}

/// Replaces a grant in a key file.
fn replace(file: &File, grant: &str, other: &str) {
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert!(text.contains(grant), "{text}");
    std::fs::write(file.path(), text.replace(grant, other)).unwrap();
}

#[tokio::test]
async fn a_key_follows_what_it_may_see() {
    let (all, eu) =
        (key("all", &["subscribe:**", "publish:**"]), key("eu", &["subscribe:o/eu/**"]));
    let file = File::new(&[], &[&all, &eu]);
    let daemon = file.daemon();
    let reload = || daemon.keyring.as_ref().unwrap().reload().unwrap();
    let put = async |topic: &str, text: &str| {
        let reply = daemon.send("PUT", topic, &[&bearer(&all)], text.as_bytes()).await;
        assert_eq!(reply.status, 202);
    };
    let mut some = follow(&daemon, "/o/**?gaps", &eu).await;
    let mut every = follow(&daemon, "/**?gaps", &all).await;
    let mut lines = daemon.connect().await;
    lines.write(request("GET", "/o/*/x?stream=ndjson", &eu).as_bytes()).await;
    lines.read_until(b"\r\n\r\n").await;
    for (topic, text) in
        [("/o/us/x", "no"), ("/o/eu/x", "yes"), ("/secret", "no"), ("/o/eu/y", "yes")]
    {
        put(topic, text).await;
    }
    for topic in ["o/us/x", "o/eu/x", "secret", "o/eu/y"] {
        assert_eq!(next(&mut every).await.0, topic);
    }
    for topic in ["o/eu/x", "o/eu/y"] {
        assert_eq!(next(&mut some).await.0, topic);
    }

    // A reload changes what is seen, at once and without an end.
    replace(&file, "subscribe:o/eu/**", "subscribe:o/us/**");
    reload();
    put("/o/eu/x", "no longer").await;
    put("/o/us/x", "now").await;
    assert_eq!(next(&mut some).await, ("o/us/x".to_owned(), "now".to_owned()));
    let seen = String::from_utf8(lines.read_until(b"bm93").await).unwrap();
    assert!(seen.contains("\"name\":\"o/eu/x\"") && !seen.contains("gap"), "{seen}");

    // Without any grant that could match it ends.
    replace(&file, "subscribe:o/us/**", "subscribe:else");
    reload();
    assert_eq!(some.close_code().await, CloseCode::from(4403));
    put("/o/us/x", "not any more").await;
    let rest = String::from_utf8(lines.read_until(b"0\r\n\r\n").await).unwrap();
    assert!(rest.contains("{\"event\":\"revoked\"}"), "{rest}");
    let Message::Text(last) = every.frame().await else { panic!() };
    assert!(last.contains("o/eu/x"), "{last}");
}

#[tokio::test]
async fn head_and_inspection_give_sums() {
    let daemon = Daemon::start();
    put_all(&daemon, &["/a/x", "/a/y", "/a/x", "/b"]).await;
    daemon.get("/a/x").await;
    let head = daemon.send("HEAD", "/a/*", &[], b"").await;
    assert_eq!(head.status, 200);
    for (name, expected) in [
        ("msgbus-topics", 2),
        ("msgbus-published", 3),
        ("msgbus-retained", 3),
        ("msgbus-unpulled", 2),
        ("msgbus-pulled", 1),
        ("msgbus-subscribers", 0),
    ] {
        assert_eq!(head.number(name), expected, "{name}");
    }
    assert_eq!(head.header("msgbus-epoch"), None);
    assert_eq!(daemon.send("HEAD", "/none/**", &[], b"").await.number("msgbus-topics"), 0);
    let _follower = daemon.subscribe("/a/*").await;
    let sums: serde_json::Value =
        serde_json::from_slice(&daemon.get("/-/topics/a/*").await.body).unwrap();
    for (name, expected) in [("topics", 2), ("published", 3), ("unpulled", 2), ("followers", 1)] {
        assert_eq!(sums[name], expected, "{sums}");
    }
    assert_eq!(sums["pattern"], "a/*");
    let page = daemon.get("/metrics").await;
    assert!(page.text().contains("\nmsgbus_bus_patterns 1\n"));
    assert!(page.text().contains("\nmsgbus_bus_pattern_references 0\n"));

    let (some, none) = (key("some", &["inspect:a/x"]), key("none", &["inspect:b"]));
    let daemon = File::new(&["publish:**"], &[&some, &none]).daemon();
    put_all(&daemon, &["/a/x", "/a/y"]).await;
    let head = daemon.send("HEAD", "/a/*", &[&bearer(&some)], b"").await;
    assert_eq!(head.number("msgbus-topics"), 1);
    assert_eq!(daemon.send("HEAD", "/a/*", &[&bearer(&none)], b"").await.status, 403);
}
