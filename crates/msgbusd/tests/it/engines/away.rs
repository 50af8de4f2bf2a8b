//! An engine that is not there, and comes back.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use msgbus_engine_testkit::nats::{NatsServer, programs};
use msgbusd::config::Config;
use tokio::time::sleep;

use super::door_with;
use crate::{stream::Stream, support::soon};

#[tokio::test]
async fn a_server_starts_without_its_engine_and_is_ready_with_it() {
    for program in programs() {
        let mut nats = NatsServer::new(&program);
        let daemon = door_with(&nats, |_| {});
        assert_eq!(daemon.get("/healthz").await.status, 200);
        daemon.get("/readyz").await.refuses(503, "the engine main is not available");
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

        nats.run();
        let daemon = daemon.ready().await;
        assert_eq!(daemon.put("/t", "x").await.status, 202);
        assert_eq!(daemon.metric("msgbus_engine_up{engine=\"main\"}").await, 1);
    }
}

/// Nothing that was acknowledged is lost, and followers at both servers get everything once and in order.
#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_engine_is_killed() {
    const MESSAGES: usize = 60;
    for program in programs() {
        let mut nats = NatsServer::start(&program);
        let (one, other) = (door_with(&nats, |_| {}), door_with(&nats, |_| {}));
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
                nats.kill();
                sleep(Duration::from_millis(150)).await;
                nats.run();
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
    }
}

/// A follower of a topic whose engine is away is told so, and goes on when the engine is back.
#[tokio::test]
async fn followers_are_told_that_the_engine_is_away() {
    for program in programs() {
        let mut nats = NatsServer::start(&program);
        let ping = |config: &mut Config| config.timeouts.ping = Duration::from_millis(200);
        let daemon = door_with(&nats, ping).ready().await;
        let mut lines = Stream::open(&daemon, "/t?stream=ndjson", "").await;
        let mut sse = Stream::open(&daemon, "/t?stream=sse", "").await;
        nats.kill();
        let is_told = async {
            while lines.line().await.unwrap() != r#"{"event":"stalled"}"# {}
            while sse.line().await.unwrap() != "event: stalled" {}
        };
        soon(is_told).await;
        assert_eq!(sse.lines(2).await, ["data: {}", ""]);
        nats.run();
        let daemon = daemon.ready().await;
        let id = daemon.put("/t", "x").await.number("Msgbus-Id");
        let is_message = |line: &str| line.contains(&format!("\"id\":{id},"));
        let is_received = async {
            while !is_message(&lines.line().await.unwrap()) {}
            while !is_message(&sse.line().await.unwrap()) {}
        };
        soon(is_received).await;
        // While it is away, requests are refused within a time, and nothing hangs.
        nats.kill();
        let refused = daemon.put("/t", "x").await;
        assert!(matches!(refused.status, 503 | 504), "{refused:?}");
    }
}
