//! What is bounded of topics in an engine: windows, and messages that pulls bring.

use msgbus_core::engine::WindowStats;
use msgbusd::config::{Config, EngineTopics};

use super::{door_with, on_each};
use crate::{bounds::INFLIGHT, support::until};

/// A topic that is followed counts as one of the server. A window that nobody follows makes room for another.
#[tokio::test]
async fn as_many_topics_are_followed_as_the_server_may_have() {
    on_each(async |mut engine| {
        engine.run();
        let daemon = door_with(&engine, |config| config.bus.max_topics = 2).ready().await;
        let (_one, other) = (daemon.subscribe("/one").await, daemon.subscribe("/other").await);
        let _same = daemon.subscribe("/one").await;
        let refused =
            daemon.send("GET", "/third?stream=sse", &["Accept: application/json"], b"").await;
        assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("1")));
        assert_eq!(refused.json()["code"], "too_many_topics");
        drop(other);
        let is_unused = |window: &WindowStats| window.followers == 0;
        until(|| daemon.bus.engine_windows().iter().any(is_unused)).await;
        let mut third = daemon.subscribe("/third").await;
        let windows = daemon.bus.engine_windows();
        assert!(windows.iter().all(|window| window.topic.as_str() != "other"), "{windows:?}");
        let id = daemon.put("/third", "x").await.number("Msgbus-Id");
        assert_eq!(third.ids(1).await, [id]);
    })
    .await;
}

/// While too much is in flight, nothing is taken out of an engine: how large it is, nobody knows before.
#[tokio::test]
async fn at_the_inflight_limit_nothing_is_pulled() {
    const LIMIT: usize = 4 << 20;
    on_each(async |mut engine| {
        engine.run();
        let limited = |config: &mut Config| {
            config.max_inflight_bytes = LIMIT;
            let pattern = "local".parse().unwrap();
            config.engine_topics.push(EngineTopics { pattern, engine: None });
        };
        let daemon = door_with(&engine, limited).ready().await;
        let mut ids = Vec::new();
        for _ in 0..6 {
            ids.push(daemon.put("/t", vec![b'x'; 900 << 10]).await.number("Msgbus-Id"));
        }
        daemon.fill("local", 16);
        let unread = daemon.ask_and_not_read("/local?max=8").await;
        daemon.wait_for_metric(INFLIGHT, |bytes| bytes > 2 * LIMIT as u64).await;
        daemon.get("/t").await.refuses(503, "in-flight memory limit");
        daemon.get("/t?group=g").await.refuses(503, "in-flight memory limit");
        daemon.get("/t?peek&since=all").await.refuses(503, "in-flight memory limit");
        assert_eq!(daemon.get("/t?wait=300ms").await.status, 204);
        drop(unread);
        assert_eq!(daemon.get("/t?wait=60s").await.message().id(), ids[0]);
        assert_eq!(daemon.lease("/t?group=g&wait=60s").await.0, ids[0]);
        // A waiting pull gets at most 256 KiB, or one message.
        assert_eq!(daemon.get("/t?max=6&wait=60s").await.text().lines().count(), 1);
        daemon.wait_for_metric(INFLIGHT, |bytes| bytes == 0).await;
    })
    .await;
}
