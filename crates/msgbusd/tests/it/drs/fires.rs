//! Fires are messages of topics, from and to every door.

use msgbus_testkit::name;
use serde_json::json;

use super::{ALL, Over, daemon, daemon_with};
use crate::support::until;

#[tokio::test]
async fn curl_sees_what_a_peer_fires() {
    let daemon = daemon();
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        for (body, payload) in [
            (r#","body":{"a": [1.0]}"#, r#"{"a": [1.0]}"#),
            (r#","body":"text""#, r#""text""#),
            ("", ""),
        ] {
            peer.send(&format!(r#"{{"action":"orders/eu"{body}}}"#)).await;
            peer.is_idle().await;
            let message = daemon.get("/orders/eu?raw").await;
            assert_eq!((message.status, message.text()), (200, payload));
            let kind = message.header("content-type");
            assert_eq!(kind == Some("application/json"), !payload.is_empty(), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_peer_gets_what_others_publish() {
    let daemon = daemon();
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        peer.gives(
            r#"{"key":"k","action":"drs.subscribe","body":["orders/**","a.b"]}"#,
            r#"{"key":"k","action":"drs.response"}"#,
        )
        .await;
        // Twice is once.
        peer.on("drs.subscribe", "a.b").await;
        for (topic, payload, expected) in [
            ("orders/eu", r#"{"total": 3}"#, r#""orders/eu","body":{"total": 3}"#),
            ("a.b", "plain \"text\"\n", r#""a.b","body":"plain \"text\"\n""#),
            ("orders", "", r#""orders""#),
            ("orders/x", "null", r#""orders/x""#),
        ] {
            daemon.put(&format!("/{topic}"), payload).await;
            if topic != "orders" {
                assert_eq!(peer.text().await, format!(r#"{{"action":{expected}}}"#));
            }
        }
        daemon.put("/a.b", [0xff, 0xfe]).await;
        assert_eq!(peer.text().await, r#"{"action":"a.b","body":"//4="}"#);
        let (kind, text) = ("Content-Type: text/plain", "Correlation-Id: 1");
        daemon.send("PUT", "/a.b", &[kind, text], b"3").await;
        assert_eq!(peer.text().await, r#"{"action":"a.b","body":"3"}"#);
        peer.gives(
            r#"{"key":"k","action":"drs.off","body":["orders/**","a.b","unknown"]}"#,
            r#"{"key":"k","action":"drs.response"}"#,
        )
        .await;
        daemon.put("/a.b", "1").await;
        daemon.put("/orders/eu", "1").await;
        peer.is_idle().await;
    }
}

/// Each command is answered, also one whose subscription ends before it has begun.
#[tokio::test]
async fn a_subscription_that_ends_at_once_is_answered() {
    let daemon = daemon();
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        peer.send(r#"{"key":"1","action":"drs.subscribe","body":"t"}{"key":"2","action":"drs.off","body":"t"}"#).await;
        let mut keys = [peer.value().await, peer.value().await].map(|answer| {
            assert_eq!(answer["action"], "drs.response");
            answer["key"].as_str().unwrap().to_owned()
        });
        keys.sort();
        assert_eq!(keys, ["1", "2"]);
        daemon.put("/t", "1").await;
        peer.is_idle().await;
    }
}

#[tokio::test]
async fn peers_of_all_doors_share_a_topic() {
    let daemon = daemon();
    let mut curl = daemon.subscribe("/news").await;
    let (mut one, mut two) = (daemon.drs(Over::Tcp).await, daemon.drs(Over::Websocket).await);
    for peer in [&mut one, &mut two] {
        peer.on("drs.subscribe", "news").await;
    }
    for number in 0..100 {
        one.send(&format!(r#"{{"action":"news","body":{number}}}"#)).await;
    }
    for number in 0..100 {
        assert_eq!(curl.message().await.payload(), number.to_string().as_bytes());
        for peer in [&mut one, &mut two] {
            assert_eq!(peer.value().await, json!({"action": "news", "body": number}));
        }
    }
}

#[tokio::test]
async fn broadcasts_reach_every_peer() {
    let daemon = daemon_with(|config| {
        config.drs.broadcast = vec!["all/**".parse().unwrap(), "everybody".parse().unwrap()];
    });
    let mut peers = Vec::new();
    for over in ALL {
        for _ in 0..3 {
            let mut peer = daemon.drs(over).await;
            peer.is_idle().await;
            peers.push(peer);
        }
    }
    daemon.subscribers(2 * peers.len()).await;
    daemon.put("/all/day", "1").await;
    peers[0].send(r#"{"action":"everybody","body":2}"#).await;
    for peer in &mut peers {
        let mut got = [peer.text().await, peer.text().await];
        got.sort();
        assert_eq!(got, [r#"{"action":"all/day","body":1}"#, r#"{"action":"everybody","body":2}"#]);
        // It cannot be removed by a peer.
        peer.on("drs.off", "everybody").await;
    }
    daemon.put("/everybody", "3").await;
    for peer in &mut peers {
        assert_eq!(peer.text().await, r#"{"action":"everybody","body":3}"#);
    }
}

#[tokio::test]
async fn a_slow_peer_stops_nobody_and_learns_what_it_missed() {
    const COUNT: usize = 3_000;
    let daemon = daemon_with(|config| {
        config.bus.topic.max_messages = 10;
        config.drs.broadcast = vec!["t".parse().unwrap()];
    });
    let mut slow = daemon.drs(Over::Tcp).await;
    slow.is_idle().await;
    daemon.subscribers(1).await;
    // More than the sockets hold.
    let body = format!("\"{}\"", "x".repeat(10_000));
    for _ in 0..COUNT {
        daemon.bus.put(&name("t"), body.clone()).unwrap();
    }
    let (mut received, mut missed) = (0, 0);
    while received + missed < COUNT {
        let command = slow.value().await;
        match command["action"].as_str().unwrap() {
            "t" => received += 1,
            "drs.gap" => {
                assert_eq!(command["body"]["subscribe"], "t");
                missed += usize::try_from(command["body"]["missed"].as_u64().unwrap()).unwrap();
            }
            other => panic!("{other}"),
        }
    }
    assert!(missed > 0 && received > 0 && received + missed == COUNT, "{received} {missed}");
}

#[tokio::test]
async fn a_topic_that_was_deleted_is_followed_when_it_comes_back() {
    let daemon = daemon();
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        peer.on("drs.subscribe", "t").await;
        for number in 0..3 {
            daemon.put("/t", number.to_string()).await;
            assert_eq!(peer.value().await["body"], number);
            assert_eq!(daemon.send("DELETE", "/t", &[], b"").await.status, 204);
            let topic = name("t");
            until(|| daemon.bus.topic(&topic).is_some_and(|stats| stats.subscribers == 1)).await;
        }
        peer.on("drs.off", "t").await;
        until(|| daemon.bus.topic(&name("t")).is_none_or(|stats| stats.subscribers == 0)).await;
    }
}

#[tokio::test]
async fn fires_to_a_durable_topic_are_answered_when_the_disk_has_them() {
    for answers in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let daemon = daemon_with(|config| {
            config.data = Some(folder.path().to_owned());
            config.bus.topic.promise = config.sync;
            config.drs.answers_fires = answers;
        });
        let mut peer = daemon.drs(Over::Tcp).await;
        for number in 0..10 {
            peer.send(&format!(r#"{{"action":"t","body":{number}}}"#)).await;
        }
        if answers {
            for _ in 0..10 {
                assert_eq!(peer.text().await, r#"{"action":"drs.response"}"#);
            }
            let kept = daemon.get("/t?raw").await;
            assert_eq!((kept.status, kept.text()), (200, "0"));
        }
        peer.is_idle().await;
        let topic = name("t");
        until(|| daemon.bus.topic(&topic).is_some_and(|stats| stats.counters.published == 10))
            .await;
    }
}
