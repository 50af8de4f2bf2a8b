//! An engine that is not there, and comes back.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use msgbusd::{auth::KeyFile, config::Config};
use tokio::time::sleep;

use super::{door_with, on_each};
use crate::{
    keys::{File, bearer, key},
    stream::Stream,
    support::soon,
};

#[tokio::test]
async fn a_server_starts_without_its_engine_and_is_ready_with_it() {
    on_each(async |mut engine| {
        let daemon = door_with(&engine, |_| {});
        assert_eq!(daemon.get("/healthz").await.status, 200);
        daemon
            .get("/readyz")
            .await
            .refuses(503, "the engine main cannot be used: the engine cannot be reached");
        let refused = daemon.put("/t", "x").await;
        refused.refuses(503, "not available");
        assert_eq!(refused.header("Retry-After"), Some("1"));
        let problem = daemon.send("PUT", "/t", &["Accept: application/json"], b"x").await;
        assert_eq!(problem.json()["code"], "engine_unavailable");
        for target in ["/t", "/t?stream=sse", "/t?peek&since=all", "/t?group=g", "/t?wait=1s"] {
            daemon.get(target).await.refuses(503, "not available");
        }
        assert_eq!(daemon.metric("msgbus_engine_up{engine=\"main\"}").await, 0);
        let mut v1 = daemon.client().await;
        v1.send(&[serde_json::json!({"op": "pub", "rid": 1, "topic": "t", "text": "x"})]).await;
        let line = v1.line().await;
        assert_eq!(
            (&line["code"], &line["retry_after"]),
            (&"engine_unavailable".into(), &1.into())
        );

        engine.run();
        let daemon = daemon.ready().await;
        assert_eq!(daemon.put("/t", "x").await.status, 202);
        assert_eq!(daemon.metric("msgbus_engine_up{engine=\"main\"}").await, 1);
    })
    .await;
}

/// Why an engine cannot be used is for those who may read the metrics.
#[tokio::test]
async fn strangers_are_not_told_why_an_engine_cannot_be_used() {
    on_each(async |engine| {
        let (operator, worker) = (key("ops", &["inspect:**"]), key("worker", &["pull:**"]));
        let keys = File::new(&[], &[&operator, &worker]);
        let keys = KeyFile::read(keys.path()).unwrap();
        let daemon = door_with(&engine, |config| config.keys = Some(keys));
        let ready = async |headers: &[&str]| daemon.send("GET", "/readyz", headers, b"").await;
        let unknown = "Authorization: Bearer unknown".to_owned();
        for credentials in [None, Some(bearer(&worker)), Some(unknown)] {
            let headers: Vec<&str> = credentials.iter().map(String::as_str).collect();
            let reply = ready(&headers).await;
            assert_eq!((reply.status, reply.text()), (503, "the engine main cannot be used\n"));
        }
        let why = "the engine main cannot be used: the engine cannot be reached";
        ready(&[&bearer(&operator)]).await.refuses(503, why);
    })
    .await;
}

/// A page of another site can make a name of its own point to a server that needs no keys.
#[tokio::test]
async fn a_page_of_another_site_is_not_told_why_an_engine_cannot_be_used() {
    on_each(async |engine| {
        let daemon = door_with(&engine, |_| {});
        let ask = async |target: &str| {
            let mut connection = daemon.connect().await;
            let head = format!("GET {target} HTTP/1.1\r\nHost: evil.example\r\n");
            connection.write(format!("{head}Connection: close\r\n\r\n").as_bytes()).await;
            connection.reply().await
        };
        ask("/metrics").await.refuses(421, "\"evil.example\" is not allowed");
        let ready = ask("/readyz").await;
        assert_eq!((ready.status, ready.text()), (503, "the engine main cannot be used\n"));
    })
    .await;
}

/// Nothing that was acknowledged is lost, and followers at both servers get everything once and in order.
#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_engine_is_killed() {
    const MESSAGES: usize = 60;
    on_each(async |mut engine| {
        engine.run();
        let (one, other) = (door_with(&engine, |_| {}), door_with(&engine, |_| {}));
        let (one, other) = (one.ready().await, other.ready().await);
        let is_undisturbed = AtomicBool::new(false);
        let before = one.put("/t", "before").await.number("Msgbus-Id");
        let mut followers =
            [one.subscribe("/t?since=all").await, other.subscribe("/t?since=all").await];
        let publish = async {
            let mut acked = Vec::new();
            for n in 0.. {
                if n >= MESSAGES && is_undisturbed.load(Relaxed) {
                    break;
                }
                let daemon = if n % 2 == 0 { &one } else { &other };
                // Repeated until it is accepted, so that it is there once.
                let key = format!("Idempotency-Key: {n}");
                let accepted = async {
                    loop {
                        let reply =
                            daemon.send("PUT", "/t", &[&key], n.to_string().as_bytes()).await;
                        match reply.status {
                            202 => return reply.number("Msgbus-Id"),
                            503 | 504 => sleep(Duration::from_millis(20)).await,
                            _ => panic!("{reply:?}"),
                        }
                    }
                };
                acked.push(soon(accepted).await);
            }
            acked
        };
        let disturb = async {
            for _ in 0..2 {
                sleep(Duration::from_millis(150)).await;
                engine.kill();
                sleep(Duration::from_millis(150)).await;
                engine.run();
            }
            is_undisturbed.store(true, Relaxed);
        };
        let (acked, ()) = tokio::join!(publish, disturb);
        let expected: BTreeSet<u64> = acked.iter().copied().chain([before]).collect();
        for follower in &mut followers {
            let ids = soon(follower.ids(expected.len())).await;
            assert!(ids.is_sorted_by(|a, b| a < b), "in order: {ids:?}");
            assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), expected);
        }
    })
    .await;
}

/// Receives texts until all of these have come, in this order.
async fn hears(mut next: impl AsyncFnMut() -> String, wanted: &[&str]) {
    let heard = async {
        for wanted in wanted {
            while !next().await.contains(wanted) {}
        }
    };
    soon(heard).await;
}

/// Followers on all transports are told that the engine of their topic is away, and that it is back.
#[tokio::test]
async fn followers_are_told_that_the_engine_is_away() {
    on_each(async |mut engine| {
        engine.run();
        let ping = |config: &mut Config| config.timeouts.ping = Duration::from_millis(200);
        let daemon = door_with(&engine, ping).ready().await;
        let mut lines = Stream::open(&daemon, "/t?stream=ndjson", "").await;
        let mut sse = Stream::open(&daemon, "/t?stream=sse", "").await;
        let mut gaps = daemon.subscribe("/t?gaps").await;
        let mut plain = daemon.subscribe("/t").await;
        let mut v1 = daemon.client().await;
        v1.send(&[serde_json::json!({"op": "sub", "rid": 1, "sid": "s", "topic": "t"})]).await;
        assert_eq!(v1.line().await["op"], "ok");
        engine.kill();
        let stalled = r#"{"event":"stalled"}"#;
        hears(async || lines.line().await.unwrap(), &[stalled, stalled]).await;
        hears(async || sse.line().await.unwrap(), &["event: stalled", "data: {}"]).await;
        hears(async || gaps.frame().await.to_string(), &[stalled, stalled]).await;
        hears(async || v1.line().await.to_string(), &[r#"{"op":"stalled","sid":"s"}"#]).await;
        engine.run();
        let daemon = daemon.ready().await;
        let id = daemon.put("/t", "x").await.number("Msgbus-Id");
        let message = format!("\"id\":{id},");
        let message = message.as_str();
        let resumed = r#"{"event":"resumed"}"#;
        hears(async || lines.line().await.unwrap(), &[resumed, message]).await;
        hears(async || sse.line().await.unwrap(), &["event: resumed", message]).await;
        hears(async || gaps.frame().await.to_string(), &[resumed, message]).await;
        let resumed = r#"{"op":"resumed","sid":"s"}"#;
        hears(async || v1.line().await.to_string(), &[resumed, message]).await;
        // Without ?gaps, every frame is a message.
        assert_eq!(plain.message().await.id(), id);
        // While it is away, requests are refused within a time, and nothing hangs.
        engine.kill();
        let refused = daemon.put("/t", "x").await;
        assert!(matches!(refused.status, 503 | 504), "{refused:?}");
    })
    .await;
}
