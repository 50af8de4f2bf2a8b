//! Section 17: requests, responders and replies.

use std::time::Duration;

use msgbus_core::BatchLimit;
use serde_json::Value;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{Connection, Daemon, Reply, soon, until};

impl Daemon {
    async fn ask(&self, target: &str, body: &str) -> Reply {
        self.send("POST", &format!("/-/request/{target}"), &[], body.as_bytes()).await
    }

    /// Waits until responders wait.
    async fn responders(&self, service: &str, count: usize) {
        let service = service.parse().unwrap();
        until(|| self.bus.service(&service).is_some_and(|stats| stats.responders == count)).await;
    }

    async fn in_hand(&self, service: &str, count: usize) {
        let service = service.parse().unwrap();
        until(|| self.bus.service(&service).is_some_and(|stats| stats.in_hand == count)).await;
    }
}

fn token(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.header("Msgbus-Reply").unwrap().to_owned()
}

/// Sends a request on a connection of its own. The task waits for its response.
fn begin(connection: Connection, head: &str, body: &str) -> JoinHandle<Reply> {
    tokio::spawn(exchange(connection, head, body))
}

fn exchange(
    mut connection: Connection,
    head: &str,
    body: &str,
) -> impl Future<Output = Reply> + use<> {
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: text/plain\r\n\
         Correlation-Id: c1\r\nX-Other: no\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    async move {
        connection.write(request.as_bytes()).await;
        connection.reply().await
    }
}

/// 17.2, 17.4, 17.5
#[tokio::test]
async fn a_request_goes_to_a_responder_and_its_reply_to_the_requester() {
    let daemon = Daemon::start();
    let serving = begin(daemon.connect().await, "GET /-/serve/upper?wait=60s", "");
    daemon.responders("upper", 1).await;
    assert_eq!(daemon.send("HEAD", "/-/request/upper", &[], b"").await.status, 200);
    let asking = begin(daemon.connect().await, "POST /-/request/upper", "hello");
    let request = serving.await.unwrap();
    assert_eq!((request.text(), request.header("Content-Type")), ("hello", Some("text/plain")));
    assert_eq!(request.header("Correlation-Id"), Some("c1"));
    assert_eq!(request.header("X-Other"), None);
    let left = request.header("Msgbus-Timeout").unwrap();
    let left = msgbus_core::parse_duration(left).unwrap();
    assert!(left <= Duration::from_secs(5), "{left:?}");

    let headers = ["Content-Type: text/html", "Msgbus-Header-Answer: 42"];
    let target = format!("/-/reply/{}", token(&request));
    assert_eq!(daemon.send("POST", &target, &headers, b"HELLO").await.status, 204);
    let reply = asking.await.unwrap();
    assert_eq!((reply.status, reply.text()), (200, "HELLO"));
    assert_eq!(reply.header("Content-Type"), Some("text/html"));
    assert_eq!(reply.header("Msgbus-Header-Answer"), Some("42"));
    // A page of a responder must not run in the origin of the server.
    assert!(reply.header("Content-Security-Policy").unwrap().contains("sandbox"));
    let late = daemon.send("POST", &target, &[], b"again").await;
    late.refuses(410, "nobody waits for this reply");

    let services: Value = serde_json::from_slice(&daemon.get("/-/services").await.body).unwrap();
    let upper = &services["upper"];
    for (field, value) in [("asked", 1), ("replied", 1), ("in_hand", 0), ("not_wanted", 1)] {
        assert_eq!(upper[field], value, "{field} of {upper}");
    }
    assert_eq!(daemon.metric("msgbus_service_replied_total{service=\"upper\"}").await, 1);
    let infinite = "msgbus_service_reply_seconds_bucket{service=\"upper\",le=\"+Inf\"}";
    assert_eq!(daemon.metric(infinite).await, 1);
}

/// 17.3
#[tokio::test]
async fn without_a_responder_a_request_is_refused_at_once() {
    let daemon = Daemon::start();
    let refused = daemon.ask("nobody", "x").await;
    refused.refuses(503, "nobody serves nobody");
    assert_eq!(refused.number("Retry-After"), 1);
    assert_eq!(daemon.send("HEAD", "/-/request/nobody", &[], b"").await.status, 503);
    assert!(daemon.bus.services().is_empty(), "a request creates no service");

    // A responder was here a moment ago, and does not come back.
    assert_eq!(daemon.get("/-/serve/s").await.status, 204);
    let refused = soon(daemon.ask("s?timeout=60s", "x")).await;
    refused.refuses(503, "nobody serves s");
    assert_eq!(daemon.bus.service(&"s".parse().unwrap()).unwrap().counters.refused, 1);
}

/// 17.3, 17.4: a responder that polls finds what came meanwhile.
#[tokio::test]
async fn requests_wait_for_a_responder_that_polls_and_come_in_order() {
    let daemon = Daemon::start();
    assert_eq!(daemon.get("/-/serve/s").await.status, 204);
    let mut asking = Vec::new();
    for n in 0..3 {
        let connection = daemon.connect().await;
        asking.push(begin(connection, "PUT /-/request/s?timeout=60s", &format!("request {n}")));
        until(|| daemon.bus.service(&"s".parse().unwrap()).unwrap().queued == n + 1).await;
    }
    let batch = daemon.get("/-/serve/s?max=2").await;
    assert_eq!(batch.header("Content-Type"), Some("application/x-ndjson"));
    let mut requests: Vec<Value> =
        batch.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0]["payload"], "cmVxdWVzdCAw");
    assert_eq!(requests[1]["headers"]["content-type"], "text/plain");
    let third = daemon.get("/-/serve/s?wait=60s").await;
    requests.push(serde_json::json!({ "reply": token(&third) }));
    // Answered in another order.
    for (n, request) in requests.iter().enumerate().rev() {
        let target = format!("/-/reply/{}", request["reply"].as_str().unwrap());
        let reply = daemon.send("POST", &target, &[], format!("reply {n}").as_bytes()).await;
        assert_eq!(reply.status, 204);
    }
    for (n, asking) in asking.into_iter().enumerate() {
        assert_eq!(asking.await.unwrap().text(), format!("reply {n}"));
    }
}

/// 17.2, 17.5
#[tokio::test]
async fn failures_and_time_outs_are_told() {
    let daemon = Daemon::start();
    let serving = begin(daemon.connect().await, "GET /-/serve/s?wait=60s", "");
    daemon.responders("s", 1).await;
    let asking = begin(daemon.connect().await, "POST /-/request/s?timeout=60s", "x");
    let target = format!("/-/reply/{}?error=no%20more%20paper", token(&serving.await.unwrap()));
    assert_eq!(daemon.send("POST", &target, &[], b"").await.status, 204);
    asking.await.unwrap().refuses(502, "the responder failed: no more paper");

    let serving = begin(daemon.connect().await, "GET /-/serve/s?wait=60s", "");
    daemon.responders("s", 1).await;
    let asking = begin(daemon.connect().await, "POST /-/request/s?timeout=200ms", "x");
    let target = format!("/-/reply/{}", token(&serving.await.unwrap()));
    asking.await.unwrap().refuses(504, "no reply in time");
    daemon.send("POST", &target, &[], b"late").await.refuses(410, "came too late");
    let counters = daemon.bus.service(&"s".parse().unwrap()).unwrap().counters;
    assert_eq!((counters.failed, counters.timed_out, counters.not_wanted), (1, 1, 1));
}

/// 17.4: a responder that has left takes nothing.
#[tokio::test]
async fn a_responder_that_leaves_while_it_waits_takes_nothing() {
    let daemon = Daemon::start();
    let mut first = daemon.connect().await;
    first.write(b"GET /-/serve/s?wait=60s HTTP/1.1\r\nHost: a\r\n\r\n").await;
    daemon.responders("s", 1).await;
    let second = begin(daemon.connect().await, "GET /-/serve/s?wait=60s", "");
    daemon.responders("s", 2).await;
    drop(first);
    daemon.responders("s", 1).await;
    let asking = begin(daemon.connect().await, "POST /-/request/s", "x");
    let target = format!("/-/reply/{}", token(&second.await.unwrap()));
    daemon.send("POST", &target, &[], b"y").await;
    assert_eq!(asking.await.unwrap().text(), "y");
}

#[tokio::test]
async fn rubbish_is_refused_with_what_is_expected() {
    let daemon = Daemon::start();
    let serving = begin(daemon.connect().await, "GET /-/serve/s?wait=60s", "");
    daemon.responders("s", 1).await;
    for (method, target, status, mention) in [
        ("POST", "/-/request/s?timeout=0s", 400, "use 1ms to 1m"),
        ("POST", "/-/request/s?timeout=2d", 400, "use 1ms to 1m"),
        ("POST", "/-/request/s?tmeout=1s", 400, "expected one of: timeout, retry"),
        ("POST", "/-/request/a//b", 400, "bad topic name"),
        ("POST", "/-/request/", 400, "bad topic name"),
        ("GET", "/-/request/s", 405, "use HEAD, POST, PUT"),
        ("POST", "/-/serve/s", 405, "use GET"),
        ("GET", "/-/serve/s?max=0", 400, "1 or more"),
        ("GET", "/-/serve/s?wait=2m", 400, "use 1ms to 1m"),
        ("GET", "/-/reply/x", 405, "use POST, PUT"),
        ("POST", "/-/reply/x", 400, "not a reply token"),
        ("POST", "/-/reply/00000000000000000000000000000000", 410, "nobody waits"),
        ("POST", "/-/reply", 404, "/-/request/<service>"),
    ] {
        daemon.send(method, target, &[], b"").await.refuses(status, mention);
    }
    let large = vec![0; (1 << 20) + 1];
    daemon.send("POST", "/-/request/s", &[], &large).await.refuses(413, "max-payload-size");

    let asking = begin(daemon.connect().await, "POST /-/request/s?timeout=60s", "x");
    let target = format!("/-/reply/{}", token(&serving.await.unwrap()));
    daemon.send("POST", &target, &[], &large).await.refuses(413, "max-payload-size");
    daemon.in_hand("s", 1).await;
    assert_eq!(daemon.send("POST", &target, &[], &large[1..]).await.status, 204);
    assert_eq!(asking.await.unwrap().body.len(), 1 << 20);
}

/// 17.3
#[tokio::test]
async fn the_queue_of_a_service_is_bounded() {
    let daemon = Daemon::start();
    let _served = daemon.bus.serve(&"s".parse().unwrap(), BatchLimit::ONE).unwrap();
    let service = "s".parse().unwrap();
    let _waiting: Vec<_> = (0..1024).map(|_| daemon.bus.request(&service, "x")).collect();
    let refused = daemon.ask("s", "x").await;
    refused.refuses(429, "1024 requests wait");
    assert_eq!(refused.number("Retry-After"), 1);
}

/// A responder that asks its own service waits for itself, and both end in time.
#[tokio::test]
async fn a_loop_ends_in_time() {
    let daemon = Daemon::start();
    let serving = begin(daemon.connect().await, "GET /-/serve/s?wait=60s", "");
    daemon.responders("s", 1).await;
    let asking = begin(daemon.connect().await, "POST /-/request/s?timeout=300ms", "outer");
    serving.await.unwrap();
    daemon.ask("s?timeout=100ms", "inner").await.refuses(504, "no reply in time");
    asking.await.unwrap().refuses(504, "no reply in time");
}

/// 17.2: the requester is a client that was ended, for example.
#[tokio::test]
async fn a_requester_that_leaves_takes_its_request_back() {
    let daemon = Daemon::start();
    let service = "s".parse().unwrap();
    let serving = begin(daemon.connect().await, "GET /-/serve/s?wait=60s", "");
    daemon.responders("s", 1).await;
    let mut requester = daemon.connect().await;
    let ask = "POST /-/request/s?timeout=60s HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1";
    requester.write(ask.as_bytes()).await;
    let target = format!("/-/reply/{}", token(&serving.await.unwrap()));
    let mut queued = daemon.connect().await;
    queued.write(ask.as_bytes()).await;
    until(|| daemon.bus.service(&service).unwrap().queued == 1).await;
    drop((requester, queued));
    until(|| daemon.bus.service(&service).unwrap().counters.given_up == 2).await;
    daemon.send("POST", &target, &[], b"y").await.refuses(410, "nobody waits");
    assert_eq!(daemon.get("/-/serve/s").await.status, 204, "nothing is queued");
}

/// 17.2, 17.5
#[tokio::test]
async fn a_declined_request_goes_to_another_responder_if_it_may_be_repeated() {
    let daemon = Daemon::start();
    for (ask, may_repeat) in [("/-/request/s?retry", true), ("/-/request/s", false)] {
        let serving = begin(daemon.connect().await, "GET /-/serve/s?wait=60s", "");
        daemon.responders("s", 1).await;
        let asking = begin(daemon.connect().await, &format!("POST {ask}"), "x");
        let target = format!("/-/reply/{}?retry", token(&serving.await.unwrap()));
        assert_eq!(daemon.send("POST", &target, &[], b"").await.status, 204);
        if !may_repeat {
            asking.await.unwrap().refuses(502, "left without a reply");
            continue;
        }
        let again = daemon.get("/-/serve/s?wait=60s").await;
        assert_eq!(again.text(), "x");
        let new_target = format!("/-/reply/{}", token(&again));
        daemon.send("POST", &target, &[], b"").await.refuses(410, "nobody waits");
        assert_eq!(daemon.send("POST", &new_target, &[], b"y").await.status, 204);
        assert_eq!(asking.await.unwrap().text(), "y");
    }
}

/// 17.4: a batch is bounded by its bytes, too.
#[tokio::test]
async fn one_response_hands_out_8_mib_at_most() {
    let daemon = Daemon::start();
    assert_eq!(daemon.get("/-/serve/s").await.status, 204);
    let service = "s".parse().unwrap();
    let _asked: Vec<_> =
        (0..10).map(|_| daemon.bus.request(&service, vec![b'x'; 1 << 20])).collect();
    let batch = daemon.get("/-/serve/s?max=100").await;
    assert_eq!(batch.text().lines().count(), 8);
    assert_eq!(daemon.bus.service(&service).unwrap().queued, 2);
}

/// 17.7: a request that waits holds up no stop.
#[tokio::test]
async fn a_stop_ends_the_wait_for_a_reply() {
    let daemon = Daemon::start();
    let serving = begin(daemon.connect().await, "GET /-/serve/s?wait=60s", "");
    daemon.responders("s", 1).await;
    let asking = begin(daemon.connect().await, "POST /-/request/s?timeout=60s", "x");
    token(&serving.await.unwrap());
    let drained = soon(daemon.stop()).await.unwrap();
    assert_eq!(drained.cut, 0);
    asking.await.unwrap().refuses(503, "closed");
}

/// 17.3: many more requesters than may wait, each with a connection of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_requesters_wait_or_are_refused() {
    const QUEUED: usize = 1024;
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    // Two for each connection, and the rest for other tests, which run in this process. One of them needs 10,000.
    let count = usize::try_from((descriptors.saturating_sub(16_000) / 2).min(4_000)).unwrap();
    let daemon = Daemon::start();
    let service = "s".parse().unwrap();
    let _served = daemon.bus.serve(&service, BatchLimit::ONE).unwrap();
    let mut requesters = JoinSet::new();
    for _ in 0..count {
        let connection = daemon.connect().await;
        requesters.spawn(exchange(connection, "POST /-/request/s?timeout=60s", "x"));
    }
    for _ in QUEUED..count {
        let refused = soon(requesters.join_next()).await.unwrap().unwrap();
        // On a slow machine the time of the first ones is over.
        assert!(matches!(refused.status, 429 | 504), "{refused:?}");
        let stats = daemon.bus.service(&service).unwrap();
        assert!(stats.queued <= QUEUED, "{stats:?}");
    }
    let bytes = daemon.bus.stats().bytes;
    assert!(bytes < 1 << 20, "{bytes} bytes for {QUEUED} requests of one byte");
    requesters.shutdown().await;
    until(|| daemon.bus.stats().bytes == 0).await;
    let stats = daemon.bus.service(&service).unwrap();
    let over = stats.counters.refused + stats.counters.timed_out + stats.counters.given_up;
    assert_eq!((stats.counters.asked, stats.queued), (over, 0));
}
