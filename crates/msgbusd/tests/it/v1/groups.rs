//! 16.5, and settling: groups.

use serde_json::{Value, json};

use super::payload;
use crate::support::Daemon;

fn token(line: &Value) -> String {
    line["lease"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn leases_are_pushed_as_far_as_there_is_credit() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    let work =
        json!({"op": "sub", "sid": "w", "topic": "jobs", "group": "g", "credit": 2, "lease": "1m"});
    let ok = client.ok(work).await;
    assert_eq!((ok["sid"].as_str(), ok.get("epoch")), (Some("w"), None));
    for id in 0..5 {
        daemon.put("/jobs", id.to_string()).await;
    }
    let mut tokens = Vec::new();
    for id in 0..2 {
        let job = client.line().await;
        assert_eq!((&job["id"], &job["deliveries"]), (&json!(id), &json!(1)));
        assert_eq!(payload(&job), id.to_string());
        tokens.push(token(&job));
    }
    client.is_idle().await;
    client.ok(json!({"op": "ack", "token": tokens[0]})).await;
    client.is_idle().await;
    let refusal =
        client.refused(&json!({"op": "ack", "token": tokens[0]}).to_string(), "lease_lost").await;
    assert_eq!(refusal["of"], "ack");
    // A message that comes back needs credit, too, and comes first.
    client.ok(json!({"op": "nack", "token": tokens[1], "reason": "later"})).await;
    client.is_idle().await;
    assert_eq!(client.ok(json!({"op": "credit", "sid": "w", "n": 2})).await["credit"], 2);
    for (id, deliveries) in [(1, 2), (2, 1)] {
        let job = client.line().await;
        assert_eq!((&job["id"], &job["deliveries"]), (&json!(id), &json!(deliveries)));
        tokens.push(token(&job));
    }
    let expires = client.ok(json!({"op": "extend", "token": tokens[2], "lease": "1h"})).await;
    assert!(expires["lease_expires"].as_str().unwrap().ends_with('Z'));
    // Many at once.
    let many = json!({"op": "ack", "tokens": [tokens[2], "bad\u{1}", tokens[0], tokens[3]]});
    assert_eq!(
        client.ok(many).await["unsettled"],
        json!([
            {"lease": "bad\u{fffd}", "error": "invalid_lease"},
            {"lease": tokens[0], "error": "lease_lost"},
        ])
    );
    assert_eq!(client.ok(json!({"op": "ack", "tokens": []})).await, json!({"op": "ok", "rid": 1}));
    assert_eq!(client.ok(json!({"op": "credit", "sid": "w", "n": 10_000})).await["credit"], 10_000);
    assert_eq!(client.line().await["id"], 3);
}

#[tokio::test]
async fn without_credit_nothing_is_leased() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "jobs", "group": "g", "credit": 0})).await;
    daemon.put("/jobs", "0").await;
    client.is_idle().await;
    // Another worker gets it.
    let pulled =
        client.ok(json!({"op": "pull", "topic": "jobs", "group": "g", "wait": "60s"})).await;
    assert_eq!(pulled["messages"][0]["deliveries"], 1);
    client.ok(json!({"op": "nack", "token": pulled["messages"][0]["lease"]})).await;
    client.send(&[json!({"op": "credit", "sid": 1, "n": 1})]).await;
    assert_eq!(client.line().await["deliveries"], 2);
}

#[tokio::test]
async fn leases_outlive_their_subscription() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    daemon.put("/jobs", "0").await;
    let work = json!({"op": "sub", "sid": 1, "topic": "jobs", "group": "g", "payload": "text"});
    client.send(&[work]).await;
    let job = client.line().await;
    assert_eq!(job["message"]["text"], "0");
    client.ok(json!({"op": "unsub", "sid": 1})).await;
    drop(client);
    let mut other = daemon.client().await;
    other.ok(json!({"op": "ack", "token": job["lease"]})).await;
    assert_eq!(daemon.send("DELETE", "/jobs", &[], b"").await.status, 204);
    assert_eq!(daemon.bus.stats().subscribers, 0);
}

#[tokio::test]
async fn a_deleted_topic_ends_the_work() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    daemon.put("/jobs", "0").await;
    client
        .ok_among(json!({"op": "sub", "sid": 1, "topic": "jobs", "group": "g", "credit": 5}))
        .await;
    assert_eq!(daemon.send("DELETE", "/jobs", &[], b"").await.status, 204);
    loop {
        let line = client.line().await;
        if line["op"] == "end" {
            assert_eq!(line["reason"], "deleted");
            break;
        }
    }
}

#[tokio::test]
async fn a_deleted_topic_ends_the_work_without_credit() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    daemon.put("/jobs", "0").await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "jobs", "group": "g", "credit": 0})).await;
    let work = json!({"op": "sub", "sid": 2, "topic": "jobs", "group": "g", "payload": "text"});
    client.send(&[work]).await;
    assert_eq!(client.line().await["message"]["text"], "0");
    assert_eq!(daemon.send("DELETE", "/jobs", &[], b"").await.status, 204);
    let mut ended = [client.line().await, client.line().await].map(|end| {
        assert_eq!((&end["op"], &end["reason"]), (&json!("end"), &json!("deleted")), "{end}");
        end["sid"].as_u64()
    });
    ended.sort_unstable();
    assert_eq!(ended, [Some(1), Some(2)]);
    client.is_idle().await;
    // No new topic was created.
    assert!(daemon.bus.topics().is_empty());
}

#[tokio::test]
async fn new_is_when_the_subscription_begins() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    daemon.put("/jobs", "old").await;
    let work = json!({"op": "sub", "sid": 1, "topic": "jobs", "group": "g", "credit": 0,
        "since": "new"});
    client.ok(work).await;
    daemon.put("/jobs", "1").await;
    daemon.put("/jobs", "2").await;
    client.send(&[json!({"op": "credit", "sid": 1, "n": 1})]).await;
    assert_eq!(client.line().await["id"], 1);
}

/// A worker stays while no group can be created, and goes on later.
#[tokio::test]
async fn a_worker_outlasts_the_limit_of_groups() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    daemon.put("/jobs", "0").await;
    for number in 0..64 {
        let reply = daemon.send("PUT", &format!("/-/groups/g{number}/jobs"), &[], b"").await;
        assert!(reply.status < 300, "{}", reply.text());
    }
    client.ok(json!({"op": "sub", "sid": 1, "topic": "jobs", "group": "late"})).await;
    client.is_idle().await;
    while daemon.refused("too_many_groups").await == 0 {
        client.is_idle().await;
    }
    client.is_idle().await;
    assert_eq!(daemon.send("DELETE", "/-/groups/g0/jobs", &[], b"").await.status, 204);
    assert_eq!(client.line().await["op"], "msg");
}
