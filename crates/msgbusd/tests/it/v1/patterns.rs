//! 16.4 and section 15: subscriptions to patterns.

use serde_json::json;

use super::payload;
use crate::support::Daemon;

#[tokio::test]
async fn a_pattern_is_followed_and_resumed_at_its_own_position() {
    let daemon = Daemon::start();
    daemon.put("/orders/eu", "0").await;
    daemon.put("/orders/us/late", "1").await;
    daemon.put("/other", "no").await;
    let mut client = daemon.client().await;
    let all =
        json!({"op": "sub", "sid": 1, "topic": "orders/**", "since": "all", "payload": "text"});
    let ok = client.ok(all).await;
    let epoch = ok["epoch"].as_str().unwrap().to_owned();
    daemon.put("/orders/new", "2").await;
    let mut ids = Vec::new();
    for (topic, text) in [("orders/eu", "0"), ("orders/us/late", "1"), ("orders/new", "2")] {
        let line = client.line().await;
        assert_eq!(line["message"]["topic"]["name"], topic);
        assert_eq!((&line["message"]["id"], payload(&line)), (&json!(0), text.to_owned()));
        ids.push(line["id"].as_u64().unwrap());
    }
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    assert_eq!(ok["next_id"], ids[0]);
    client.ok(json!({"op": "unsub", "sid": 1})).await;
    let since = format!("{epoch}-{}", ids[1]);
    client.ok(json!({"op": "sub", "sid": 2, "topic": "orders/**", "since": since})).await;
    assert_eq!(client.line().await["id"], ids[2]);
}

#[tokio::test]
async fn a_subscription_may_end_before_it_has_begun() {
    let daemon = Daemon::start();
    for topic in 0..300 {
        daemon.bus.put(&format!("orders/{topic}").parse().unwrap(), "x").unwrap();
    }
    let mut client = daemon.client().await;
    client
        .send(&[
            json!({"op": "sub", "rid": 1, "sid": "a", "topic": "orders/*", "since": "all"}),
            json!({"op": "unsub", "rid": 2, "sid": "a"}),
            json!({"op": "sub", "rid": 3, "sid": "b", "topic": "orders/*"}),
        ])
        .await;
    let mut answers = Vec::new();
    while answers.len() < 3 {
        let line = client.line().await;
        if line["op"] == "ok" {
            answers.push(line["rid"].as_u64().unwrap());
        } else {
            assert_eq!((&line["op"], answers.contains(&2)), (&json!("msg"), false), "{line}");
        }
    }
    let place = |rid| answers.iter().position(|answer| *answer == rid);
    assert!(place(1) < place(2), "{answers:?}");
    daemon.put("/orders/7", "to b").await;
    let line = client.line().await;
    assert_eq!((&line["sid"], payload(&line)), (&json!("b"), "to b".to_owned()));
}

#[tokio::test]
async fn only_sub_without_a_group_takes_a_pattern() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    for line in [
        r#"{"op":"pub","topic":"a/*"}"#,
        r#"{"op":"pull","rid":1,"topic":"**"}"#,
        r#"{"op":"sub","sid":1,"topic":"a/**","group":"g"}"#,
    ] {
        let refusal = client.refused(line, "bad_topic").await;
        assert!(refusal["text"].as_str().unwrap().contains("can only be followed"), "{refusal}");
    }
    client.refused(r#"{"op":"sub","sid":1,"topic":"**/a"}"#, "bad_topic").await;
    client.refused(r#"{"op":"sub","sid":1,"topic":"a/*/"}"#, "bad_topic").await;
}
