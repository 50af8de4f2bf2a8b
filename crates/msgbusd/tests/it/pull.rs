//! Sections 3 and 5: pulling, and the JSON of messages.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use crate::support::{Daemon, soon};

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
                // The topic JSON ends like this, and then the message.
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
async fn a_payload_can_be_peeked_at() {
    let daemon = Daemon::start();
    daemon.put("/t", "one").await;
    daemon.put("/t", "two").await;
    for (target, headers, id, payload) in [
        ("/t?peek&raw", &[][..], 0, "one"),
        ("/t?peek", &["Accept: application/octet-stream"], 0, "one"),
        ("/t?peek&raw&since=1", &[], 1, "two"),
    ] {
        let reply = daemon.send("GET", target, headers, b"").await;
        assert_eq!((reply.status, reply.text()), (200, payload), "{target}");
        assert_eq!((reply.number("Msgbus-Id"), reply.number("Msgbus-Next-Id")), (id, id));
    }
    daemon.get("/t?peek&raw&max=2").await.refuses(400, "leave max out");
    assert_eq!(daemon.bus.stats().counters.pulled, 0);
}

#[tokio::test]
async fn a_content_type_is_returned_but_runs_no_scripts() {
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

fn ids(ndjson: &str) -> Vec<u64> {
    let id = |line: &str| msgbus_core::json::read_message(line.as_bytes()).unwrap().id();
    ndjson.lines().map(id).collect()
}

#[tokio::test]
async fn several_messages_are_json_lines() {
    let daemon = Daemon::start();
    for _ in 0..5 {
        daemon.put("/t", "x").await;
    }
    let some = daemon.send("GET", "/t?max=3", &["Accept: text/event-stream"], b"").await;
    assert_eq!(some.header("Content-Type"), Some("application/x-ndjson"));
    assert_eq!(ids(some.text()), [0, 1, 2]);
    assert_eq!(ids(daemon.get("/t?max=100").await.text()), [3, 4]);
    assert_eq!(daemon.get("/t?max=100").await.status, 404);
    for (target, mention) in
        [("/t?max=0", "1 or more"), ("/t?max=all", "1 or more"), ("/t?max=2&raw", "leave max out")]
    {
        daemon.get(target).await.refuses(400, mention);
    }
}

#[tokio::test]
async fn a_pull_can_wait() {
    let daemon = Daemon::start();
    let publish = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        daemon.put("/t", "late").await;
        daemon.put("/t", "later").await;
    };
    let (reply, ()) = tokio::join!(daemon.get("/t?wait=20s"), publish);
    assert_eq!(reply.message().payload(), "late");
    assert_eq!(
        ids(daemon.get("/t?wait=20s&max=5").await.text()),
        [1],
        "what is there comes at once"
    );
    for (target, mention) in [
        ("/t?wait=61s", "use 1ms to 1m"),
        ("/t?wait=0", "use 1ms to 1m"),
        ("/t?wait=20", "not a duration"),
        ("/t?wait=1s&peek", "unknown parameter \"wait\""),
        ("/t?wait=1s&stream=sse", "not valid with ?max, ?wait or ?peek"),
        ("/t?since=all", "only valid with"),
    ] {
        daemon.get(target).await.refuses(400, mention);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_over_is_204() {
    let daemon = Daemon::start();
    let start = Instant::now();
    let reply = daemon.get("/t?wait=40s").await;
    assert_eq!((reply.status, &reply.body[..]), (204, &b""[..]));
    assert!((40..42).contains(&start.elapsed().as_secs()));
}

#[tokio::test]
async fn waiting_pulls_are_served_in_order_of_arrival() {
    let daemon = Daemon::start();
    let topic = "t".parse().unwrap();
    let mut waiting = Vec::new();
    for count in 1..=5 {
        let mut connection = daemon.connect().await;
        let request = b"GET /t?wait=60s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        connection.write(request).await;
        waiting.push(connection);
        soon(async {
            while daemon.bus.topic(&topic).is_none_or(|stats| stats.waiters < count) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    // The second one disconnects: the server notices, and it takes nothing.
    drop(waiting.remove(1));
    soon(async {
        while daemon.bus.topic(&topic).unwrap().waiters > 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    for _ in 0..4 {
        daemon.put("/t", "x").await;
    }
    for (id, mut connection) in waiting.into_iter().enumerate() {
        assert_eq!(connection.reply().await.message().id(), id as u64);
    }
}

/// A later pull does not overtake, even if it is faster than the one that was woken.
#[tokio::test]
async fn a_wait_does_not_overtake_another() {
    let daemon = Daemon::start();
    for round in 0..20 {
        let topic = format!("/t{round}");
        let name = topic.trim_start_matches('/').parse().unwrap();
        let wait = format!("GET {topic}?wait=60s HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut first = daemon.connect().await;
        first.write(wait.as_bytes()).await;
        soon(async {
            while daemon.bus.topic(&name).is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        let mut second = daemon.connect().await;
        let put = format!("PUT {topic} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
        second.write((put + &wait).as_bytes()).await;
        assert!(first.read_until(b"\r\n\r\n").await.starts_with(b"HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_wait_ends_with_its_topic_or_the_server() {
    let daemon = Daemon::start();
    let mut waiting = daemon.connect().await;
    waiting.write(b"GET /t?wait=60s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let mut other = daemon.connect().await;
    other.write(b"GET /other?wait=60s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    soon(async {
        while daemon.bus.topics().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(daemon.send("DELETE", "/t", &[], b"").await.status, 204);
    assert_eq!(waiting.reply().await.status, 204);
    assert_eq!(daemon.get("/").await.text(), "other\n", "what was deleted stays so");
    let stopping = daemon.stop();
    assert_eq!(other.reply().await.status, 204);
    drop(other);
    assert_eq!(soon(stopping).await.unwrap().cut, 0);
}

#[tokio::test]
async fn peeking_takes_nothing() {
    let daemon = Daemon::start();
    daemon.get("/t?peek").await.refuses(404, "no messages");
    assert_eq!(daemon.get("/").await.text(), "", "and creates nothing");
    let mut epoch = 0;
    for n in 0..4 {
        epoch = daemon.put("/t", n.to_string()).await.number("Msgbus-Epoch");
    }
    for _ in 0..2 {
        assert_eq!(daemon.get("/t?peek").await.message().id(), 0);
    }
    daemon.get("/t").await;
    assert_eq!(daemon.get("/t?peek").await.message().id(), 1);
    let looked = daemon.get("/t?peek&since=all&max=3").await;
    assert_eq!(ids(looked.text()), [0, 1, 2]);
    assert_eq!(looked.number("Msgbus-Epoch"), epoch);
    assert_eq!(ids(daemon.get(&format!("/t?peek&since={epoch}-2&max=9")).await.text()), [3]);
    let header = format!("Last-Event-ID: {epoch}-1");
    for target in ["/t?peek", "/t?peek&since=all"] {
        let resumed = daemon.send("GET", target, &[&header], b"").await;
        assert_eq!(resumed.message().id(), 2, "{target}: the header is a position");
        assert_eq!(resumed.number("Msgbus-Next-Id"), 2);
    }
    daemon.send("GET", "/t?peek", &["Last-Event-ID: 1"], b"").await.refuses(400, "Last-Event-ID");
    let other = daemon.get("/t?peek&since=1-1").await;
    assert_eq!(other.header("Msgbus-Restarted"), Some("true"));
    assert_eq!(daemon.get("/t?peek&since=new").await.status, 404);
    assert_eq!(daemon.get("/t").await.message().id(), 1);
}

/// Clients can distinguish "all removed" from "nothing new".
/// docs/protocol.md, 5.8.
#[tokio::test]
async fn with_gaps_a_peek_reports_missed_messages() {
    let daemon = Daemon::start();
    daemon.put("/t", "a").await;
    daemon.put("/t?ttl=1ms", "b").await;
    daemon.put("/t?ttl=1ms", "c").await;
    daemon.put("/t", "d").await;
    tokio::time::sleep(Duration::from_millis(5)).await; // Real expiry needs real time.
    let gap = "{\"event\":\"gap\",\"missed\":2,\"next_id\":3}";
    let reply = daemon.get("/t?peek&since=0&max=9&gaps").await;
    let lines: Vec<_> = reply.text().lines().map(str::to_owned).collect();
    assert_eq!((lines.len(), lines[1].as_str()), (3, gap));
    assert_eq!(ids(&format!("{}\n{}\n", lines[0], lines[2])), [0, 3]);
    assert_eq!(ids(daemon.get("/t?peek&since=0&max=9").await.text()), [0, 3]);
    assert_eq!(ids(daemon.get("/t?peek&max=9&gaps").await.text()), [0, 3], "nothing was asked for");
}

#[tokio::test]
async fn an_empty_peek_reports_its_position() {
    let daemon = Daemon::start();
    assert_eq!(daemon.get("/t?peek&since=0").await.header("Msgbus-Epoch"), None, "no such topic");
    let epoch = daemon.put("/t", "stays").await.number("Msgbus-Epoch");
    for _ in 0..3 {
        daemon.put("/t?ttl=1ms", "goes").await;
    }
    tokio::time::sleep(Duration::from_millis(5)).await; // Real expiry needs real time.
    for (target, missed) in [
        ("/t?peek&since=1".to_owned(), Some("3")),
        (format!("/t?peek&max=10&since={epoch}-1"), Some("2")),
        (format!("/t?peek&since={epoch}-3"), None),
        ("/t?peek&since=new".to_owned(), None),
    ] {
        let nothing = daemon.get(&target).await;
        assert_eq!((nothing.number("Msgbus-Epoch"), nothing.number("Msgbus-Next-Id")), (epoch, 4));
        assert_eq!(nothing.header("Msgbus-Missed"), missed, "{target}");
        assert_eq!(nothing.header("Msgbus-Restarted"), None, "{target}");
        nothing.refuses(404, "no messages enqueued for topic: t");
    }
    daemon.put("/t", "behind the gap").await;
    let behind = daemon.get("/t?peek&since=2").await;
    assert_eq!((behind.number("Msgbus-Next-Id"), behind.number("Msgbus-Missed")), (4, 2));

    daemon.put("/u?ttl=1ms", "goes").await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let other_life = daemon.get("/u?peek&since=1-7").await;
    assert_eq!((other_life.status, other_life.number("Msgbus-Missed")), (404, 1));
    assert_eq!(other_life.header("Msgbus-Restarted"), Some("true"));
}
