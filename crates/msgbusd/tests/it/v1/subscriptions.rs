//! 16.4: subscriptions.

use std::time::Duration;

use serde_json::{Value, json};

use super::payload;
use crate::support::Daemon;

#[tokio::test]
async fn a_subscription_is_resumed_by_its_position() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    let ok = client.ok(json!({"op": "sub", "sid": "a", "topic": "t"})).await;
    assert_eq!(ok["next_id"], 0);
    let epoch = ok["epoch"].as_str().unwrap().to_owned();
    for text in ["zero", "one", "two"] {
        client.send(&[json!({"op": "pub", "topic": "t", "text": text})]).await;
        let message = client.line().await;
        assert_eq!((&message["op"], &message["sid"]), (&json!("msg"), &json!("a")));
        assert_eq!(payload(&message), text);
    }
    assert_eq!(client.ok(json!({"op": "unsub", "sid": "a"})).await["sid"], "a");
    daemon.put("/t", "nobody is subscribed").await;
    client.is_idle().await;
    let since = format!("{epoch}-1");
    let resume = json!({"op": "sub", "sid": 7, "topic": "t", "since": since, "payload": "text"});
    let ok = client.ok(resume).await;
    assert_eq!((&ok["next_id"], &ok["sid"]), (&json!(2), &json!(7)));
    for (id, text) in [(2, "two"), (3, "nobody is subscribed")] {
        let message = client.line().await;
        assert_eq!((&message["id"], &message["message"]["text"]), (&json!(id), &json!(text)));
    }
    let restarted = json!({"op": "sub", "sid": 8, "topic": "t", "since": "1-1"});
    assert_eq!(client.ok(restarted).await["restarted"], true);
}

#[tokio::test]
async fn a_message_is_the_json_of_http() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "t"})).await;
    client.ok(json!({"op": "sub", "sid": 2, "topic": "t", "payload": "text"})).await;
    for bytes in ["text \u{e9}".as_bytes(), b"\xff\x00", &[0; 300], &[b'x'; 5000], &[b'"'; 5000]] {
        daemon.put("/t", bytes).await;
        let over_http: Value = serde_json::from_slice(&daemon.get("/t").await.body).unwrap();
        let (mut one, mut two) = (client.line().await, client.line().await);
        if one["sid"] == 2 {
            (one, two) = (two, one);
        }
        assert_eq!(one["message"], over_http);
        let is_text = std::str::from_utf8(bytes).is_ok() && !matches!(bytes[0], 0 | b'"');
        assert_eq!(two["message"].get("text").is_some(), is_text);
        assert_eq!(payload(&two), String::from_utf8_lossy(bytes));
    }
}

#[tokio::test]
async fn gaps_and_ends_are_told() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 2);
    let mut client = daemon.client().await;
    for id in 0..5 {
        daemon.put("/t", id.to_string()).await;
    }
    let ok = client.ok(json!({"op": "sub", "sid": 1, "topic": "t", "since": "0"})).await;
    assert_eq!((&ok["missed"], &ok["next_id"]), (&json!(3), &json!(3)));
    assert_eq!(client.line().await, json!({"op": "gap", "sid": 1, "missed": 3, "next_id": 3}));
    assert_eq!(client.line().await["id"], 3);
    assert_eq!(client.line().await["id"], 4);
    client.ok(json!({"op": "sub", "sid": 2, "topic": "t", "lag": "disconnect"})).await;
    // The server has no turn in between.
    for id in 5..9 {
        daemon.bus.put(&"t".parse().unwrap(), id.to_string()).unwrap();
    }
    let mut ends = Vec::new();
    while ends.is_empty() {
        let line = client.line().await;
        if line["sid"] == 2 {
            ends.push(line);
        }
    }
    assert_eq!(ends, [json!({"op": "end", "sid": 2, "reason": "lagged", "missed": 2})]);
    // The sid is free again.
    client.ok_among(json!({"op": "sub", "sid": 2, "topic": "t"})).await;
    assert_eq!(daemon.send("DELETE", "/t", &[], b"").await.status, 204);
    let mut deleted = Vec::new();
    while deleted.len() < 2 {
        let line = client.line().await;
        if line["op"] == "end" {
            assert_eq!(line["reason"], "deleted");
            deleted.push(line["sid"].as_u64().unwrap());
        }
    }
    deleted.sort_unstable();
    assert_eq!(deleted, [1, 2]);
    assert_eq!(daemon.bus.stats().subscribers, 0);
}

#[tokio::test]
async fn a_sid_is_used_once() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    client.ok(json!({"op": "sub", "sid": "a", "topic": "t"})).await;
    client.refused(r#"{"op":"sub","sid":"\u0061","topic":"u"}"#, "sid_in_use").await;
    client.refused(r#"{"op":"credit","sid":"a","n":1}"#, "bad_parameter").await;
    client.ok(json!({"op": "unsub", "sid": "a"})).await;
    client.refused(r#"{"op":"unsub","sid":"a"}"#, "unknown_sid").await;
    client.ok(json!({"op": "sub", "sid": "a", "topic": "u"})).await;
    assert_eq!(daemon.bus.topics().len(), 1, "nobody follows t any more");
}

/// A busy subscription takes turns with others.
#[tokio::test]
async fn subscriptions_share_the_websocket_fairly() {
    const COUNT: usize = 2000;
    let daemon = Daemon::start();
    for topic in ["busy", "calm"] {
        for _ in 0..COUNT {
            daemon.bus.put(&topic.parse().unwrap(), "x").unwrap();
        }
    }
    let mut client = daemon.client().await;
    let sub = |topic: &str| json!({"op": "sub", "sid": topic, "topic": topic, "since": "all"});
    client.send(&[sub("busy"), sub("calm")]).await;
    let mut lead = 0_i64;
    for _ in 0..2 * COUNT {
        let line = client.line().await;
        lead += if line["sid"] == "busy" { 1 } else { -1 };
        assert!(lead.abs() <= 64, "{lead}");
    }
    assert_eq!(lead, 0);
}

#[tokio::test]
async fn a_stop_ends_subscriptions_and_answers_what_has_begun() {
    let daemon = Daemon::with(|config| config.timeouts.drain = Duration::from_secs(60));
    let mut client = daemon.client().await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "t"})).await;
    client.ok(json!({"op": "sub", "sid": 2, "topic": "t", "group": "g"})).await;
    client.send(&[json!({"op": "pull", "rid": 9, "topic": "t", "wait": "60s"})]).await;
    client.is_idle().await;
    let stopping = daemon.stop();
    let mut lines = [client.line().await, client.line().await, client.line().await].to_vec();
    lines.sort_by_key(|line| line["sid"].as_u64().unwrap_or(9));
    assert_eq!(
        lines,
        [
            json!({"op": "end", "sid": 1, "reason": "closed"}),
            json!({"op": "end", "sid": 2, "reason": "closed"}),
            json!({"op": "ok", "rid": 9, "messages": []}),
        ]
    );
    assert_eq!(client.close_code().await, 1001.into());
    drop(client);
    stopping.await.unwrap();
}
