//! Sections 3 and 5: pulling, and the JSON of messages.

use std::collections::HashSet;

use crate::support::Daemon;

#[tokio::test]
async fn a_message_has_these_fields_in_this_order() {
    let daemon = Daemon::start();
    daemon.put("/hello", "hi there").await;
    daemon.put("/hello", "more").await;
    let reply = daemon.get("/hello").await;
    assert_eq!(reply.header("Content-Type"), Some("application/json"));
    assert_eq!(reply.header("Cache-Control"), Some("no-store"));

    let message = reply.message();
    let created = |time: chrono::DateTime<chrono::Utc>| {
        time.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true)
    };
    let expected = format!(
        r#"{{"id":0,"topic":{{"name":"hello","ttl":3600000000000,"seq":1,"created":"{}"}},"payload":"aGkgdGhlcmU=","expires":"{}","created":"{}"}}"#,
        created(message.topic().created),
        created(message.expires().unwrap()),
        created(message.created()),
    );
    assert_eq!(reply.text(), expected);
}

#[tokio::test]
async fn what_never_expires_shows_the_zero_time() {
    let daemon = Daemon::with(|config| config.bus.topic.ttl = None);
    daemon.put("/t", "").await;
    let reply = daemon.get("/t").await;
    assert!(reply.text().contains(r#""ttl":0,"#), "{}", reply.text());
    assert!(reply.text().contains(r#""payload":"","expires":"0001-01-01T00:00:00Z","#));
}

#[tokio::test]
async fn each_message_is_pulled_once_in_order_and_then_there_is_none() {
    let daemon = Daemon::start();
    let none = daemon.get("/t").await;
    assert_eq!((none.status, none.text()), (404, "no messages enqueued for topic: t\n"));
    assert_eq!(daemon.get("/").await.text(), "", "a pull creates no topic");

    for payload in ["a", "b"] {
        daemon.put("/t", payload).await;
    }
    assert_eq!(daemon.get("/t").await.message().payload(), "a");
    assert_eq!(daemon.get("/t").await.message().payload(), "b");
    assert_eq!(daemon.get("/t").await.status, 404);
}

#[tokio::test]
async fn concurrent_pullers_share_each_message_once_and_in_order() {
    let daemon = Daemon::start();
    let publish = async {
        let mut connection = daemon.connect().await;
        for _ in 0..1000 {
            connection.write(b"PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
            connection.read_until(b"\r\n\r\n").await;
        }
    };
    let pull = async || {
        let mut mine = Vec::new();
        let mut connection = daemon.connect().await;
        while daemon.bus.stats().counters.pulled < 2000 {
            connection.write(b"GET /t HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let head = connection.read_until(b"\r\n\r\n").await;
            if head.starts_with(b"HTTP/1.1 200 ") {
                // The topic ends so, and then the message.
                let mut body = connection.read_until(b"Z\"}").await;
                body.extend(connection.read_until(b"Z\"}").await);
                mine.push(msgbus_core::json::read_message(&body).unwrap().id());
            } else {
                connection.read_until(b"\n").await;
            }
        }
        mine
    };
    let ((), (), one, two, three) =
        tokio::join!(publish, publish_too(&daemon), pull(), pull(), pull());
    let mut all = HashSet::new();
    for ids in [one, two, three] {
        assert!(ids.is_sorted());
        for id in ids {
            assert!(all.insert(id), "{id} twice");
        }
    }
    assert_eq!(all.len(), 2000);
}

async fn publish_too(daemon: &Daemon) {
    for _ in 0..1000 {
        daemon.put("/t", "y").await;
    }
}

#[tokio::test]
async fn raw_gives_the_payload_and_tells_the_rest_in_headers() {
    let daemon = Daemon::start();
    for _ in 0..2 {
        daemon.put("/gr%C3%B6%C3%9Fe", b"\x00raw\xff").await;
    }
    let by_parameter = daemon.get("/gr%C3%B6%C3%9Fe?raw").await;
    let accept = ["Accept: application/octet-stream"];
    let by_header = daemon.send("GET", "/gr%C3%B6%C3%9Fe", &accept, b"").await;
    for (id, reply) in [(0, by_parameter), (1, by_header)] {
        assert_eq!((reply.status, &reply.body[..]), (200, &b"\x00raw\xff"[..]));
        assert_eq!(reply.header("Content-Type"), Some("application/octet-stream"));
        assert_eq!(reply.number("Msgbus-Id"), id);
        assert_eq!(reply.header("Msgbus-Topic"), Some("gr%C3%B6%C3%9Fe"));
        assert!(reply.number("Msgbus-Epoch") > 0);
        assert!(reply.header("Msgbus-Created") < reply.header("Msgbus-Expires"));
    }
}

#[tokio::test]
async fn a_content_type_comes_back_but_runs_no_scripts() {
    let daemon = Daemon::start();
    daemon.send("PUT", "/t", &["Content-Type: text/html"], b"<script>").await;
    daemon.send("PUT", "/t", &["Content-Type: application/x-www-form-urlencoded"], b"a").await;
    let html = daemon.get("/t?raw").await;
    assert_eq!(html.header("Content-Type"), Some("text/html"));
    assert_eq!(html.header("X-Content-Type-Options"), Some("nosniff"));
    assert!(html.header("Content-Security-Policy").unwrap().starts_with("sandbox"));
    let form = daemon.get("/t?raw").await;
    assert_eq!(form.header("Content-Type"), Some("application/octet-stream"));
}

#[tokio::test]
async fn pulling_does_not_disturb_replay_nor_push_pulling() {
    let daemon = Daemon::start();
    let mut live = daemon.subscribe("/t").await;
    daemon.put("/t", "x").await;
    assert_eq!(live.ids(1).await, [0]);
    assert_eq!(daemon.get("/t").await.message().id(), 0, "pushed, and still to be pulled");
    assert_eq!(daemon.subscribe("/t?since=all").await.ids(1).await, [0], "pulled, and replayed");
}
