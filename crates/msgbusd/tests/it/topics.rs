//! Sections 7 and 10: operations on whole topics, metrics and health.

use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::support::{Daemon, soon, until};

const JSON: &[&str] = &["Accept: application/json"];

#[tokio::test]
async fn the_list_is_sorted_and_paged() {
    let daemon = Daemon::start();
    assert_eq!(daemon.get("/").await.text(), "");
    assert_eq!(daemon.send("GET", "/", JSON, b"").await.text(), "{}");
    for topic in ["b", "a/2", "a/1", "a/3", "c"] {
        daemon.put(&format!("/{topic}"), "x").await;
    }
    assert_eq!(daemon.get("/").await.text(), "a/1\na/2\na/3\nb\nc\n");
    assert_eq!(daemon.get("/?prefix=a/").await.text(), "a/1\na/2\na/3\n");
    assert_eq!(daemon.get("/?after=a/3").await.text(), "b\nc\n");
    let all = daemon.get("/?max=5").await;
    assert_eq!(all.header("Link"), None);

    let mut target = "/?prefix=a%2F&max=2".to_owned();
    let mut seen = String::new();
    loop {
        let page = daemon.get(&target).await;
        seen.push_str(page.text());
        let Some(link) = page.header("Link") else { break };
        target =
            link.split_once('<').unwrap().1.split_once(">; rel=\"next\"").unwrap().0.to_owned();
    }
    assert_eq!(seen, "a/1\na/2\na/3\n");
}

#[tokio::test]
async fn a_list_has_at_most_ten_thousand_names_and_links_to_the_next_page() {
    let daemon = Daemon::start();
    for n in 0..10_001 {
        daemon.bus.put(&format!("{n:05}").parse().unwrap(), "x").unwrap();
    }
    let page = daemon.get("/?max=20000").await;
    assert_eq!(page.text().lines().count(), 10_000);
    let next = page.header("Link").unwrap().split(['<', '>']).nth(1).unwrap();
    assert_eq!(daemon.get(next).await.text(), "10000\n");
}

/// Clients that only subscribe or wait create no topics that stay or that count for the limit.
#[tokio::test]
async fn topics_without_messages_end_with_their_subscribers_and_do_not_count() {
    const STREAMS: usize = 200;
    let daemon = Daemon::with(|config| config.bus.max_topics = 2);
    let mut streams = Vec::new();
    for n in 0..STREAMS {
        let mut stream = daemon.connect().await;
        let request = match n % 2 {
            0 => format!("GET /public/{n}?stream=ndjson HTTP/1.1\r\nHost: a\r\n\r\n"),
            _ => format!("GET /public/{n}?wait=60s HTTP/1.1\r\nHost: a\r\n\r\n"),
        };
        stream.write(request.as_bytes()).await;
        streams.push(stream);
    }
    soon(until(|| daemon.bus.topics().len() == STREAMS)).await;
    assert_eq!(daemon.put("/orders/1", "x").await.status, 202);
    assert_eq!(daemon.get("/public/7?wait=1ms").await.status, 204);

    drop(streams);
    soon(until(|| daemon.bus.topics().len() == 1)).await;
    assert_eq!(daemon.get("/").await.text(), "orders/1\n");
    assert_eq!(daemon.put("/orders/2", "x").await.status, 202);
    daemon.put("/orders/3", "x").await.refuses(503, "2 topics");
    let mut subscriber = daemon.subscribe("/orders/3").await;
    daemon.send("DELETE", "/orders/2", &[], b"").await;
    assert_eq!(daemon.put("/orders/3", "x").await.status, 202);
    subscriber.ids(1).await;
}

#[tokio::test]
async fn the_json_list_and_head_have_the_counters() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 3);
    let mut subscriber = daemon.subscribe("/t").await;
    for _ in 0..5 {
        daemon.put("/t", "12345678").await;
    }
    subscriber.ids(5).await;
    daemon.get("/t").await;

    let list = daemon.send("GET", "/", JSON, b"").await;
    assert_eq!(list.header("Content-Type"), Some("application/json"));
    let list: serde_json::Value = serde_json::from_slice(&list.body).unwrap();
    let topic = &list["t"];
    assert_eq!(topic["name"], "t");
    assert_eq!(topic["ttl"], 3_600_000_000_000_u64);
    let head = daemon.send("HEAD", "/t", &[], b"").await;
    assert_eq!((head.status, &head.body[..]), (200, &b""[..]));
    for (field, value) in [
        ("seq", 5),
        ("first_id", 2),
        ("next_id", 5),
        ("retained", 3),
        ("unpulled", 2),
        ("bytes", 3 * 136),
        ("subscribers", 1),
        ("published", 5),
        ("pulled", 1),
        ("delivered", 5),
        ("missed", 0),
        ("expired", 0),
        ("evicted", 2),
        ("evicted_unpulled", 2),
    ] {
        assert_eq!(topic[field], value, "{field}");
        if !matches!(field, "seq" | "evicted_unpulled") {
            let header = format!("Msgbus-{}", field.replace('_', "-"));
            assert_eq!(head.number(&header), value, "{header}");
        }
    }
    assert_eq!(topic["epoch"], head.header("Msgbus-Epoch").unwrap());
    assert_eq!(daemon.send("HEAD", "/none", &[], b"").await.status, 404);
}

#[tokio::test]
async fn head_accepts_the_parameters_of_get_and_ignores_them() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    for query in ["raw", "max=2&wait=20s", "peek&since=all", "stream=sse&index=0&lag=disconnect"] {
        let head = daemon.send("HEAD", &format!("/t?{query}"), &[], b"").await;
        assert_eq!((head.status, head.number("Msgbus-Unpulled")), (200, 1), "{query}");
        assert_eq!(daemon.send("HEAD", &format!("/none?{query}"), &[], b"").await.status, 404);
    }
    for query in ["rwa", "raw&ttl=1s"] {
        assert_eq!(daemon.send("HEAD", &format!("/t?{query}"), &[], b"").await.status, 400);
    }
    assert_eq!(daemon.get("/").await.text(), "t\n", "none was created");
}

#[tokio::test]
async fn delete_removes_messages_and_ends_subscriptions() {
    let daemon = Daemon::start();
    let epoch = daemon.put("/t", "x").await.number("Msgbus-Epoch");
    let mut subscriber = daemon.subscribe("/t").await;
    let reply = daemon.send("DELETE", "/t", &[], b"").await;
    assert_eq!((reply.status, &reply.body[..]), (204, &b""[..]));
    assert_eq!(subscriber.close_code().await, CloseCode::from(4404));
    daemon.send("DELETE", "/t", &[], b"").await.refuses(404, "no such topic: t");
    assert_eq!(daemon.get("/t").await.status, 404);

    let again = daemon.put("/t", "y").await;
    assert_eq!(again.number("Msgbus-Id"), 0);
    assert!(again.number("Msgbus-Epoch") > epoch);
}

#[tokio::test]
async fn metrics_keep_the_names_of_prologic_msgbus_and_limit_the_topics() {
    let daemon = Daemon::with(|config| config.max_metric_topics = 2);
    let _subscriber = daemon.subscribe("/busy").await;
    for topic in ["busy", "busy", "busy", "odd%22%5Cname", "odd%22%5Cname", "quiet"] {
        daemon.put(&format!("/{topic}"), "x").await;
    }
    daemon.get("/busy").await;
    let page = daemon.get("/metrics").await;
    assert!(page.header("Content-Type").unwrap().starts_with("text/plain; version=0.0.4"));
    let page = page.text();
    for line in [
        "# TYPE msgbus_server_uptime counter",
        "# TYPE msgbus_server_requests counter",
        "# TYPE msgbus_client_latency_seconds summary",
        "# TYPE msgbus_bus_topics gauge",
        "msgbus_client_errors 0",
        "msgbus_bus_messages 6",
        "msgbus_bus_dropped 0",
        "msgbus_bus_fetched 1",
        "msgbus_bus_topics 3",
        "msgbus_bus_subscribers 1",
        "msgbus_queue_len{topic=\"busy\"} 2",
        "msgbus_queue_size{topic=\"busy\"} 65536",
        "msgbus_queue_len{topic=\"odd\\\"\\\\name\"} 2",
    ] {
        assert!(page.lines().any(|l| l == line), "no {line:?} in\n{page}");
    }
    assert!(!page.contains("quiet"), "only the two busiest");
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn health_is_ok_while_serving() {
    let daemon = Daemon::start();
    let reply = daemon.get("/healthz").await;
    assert_eq!((reply.status, reply.text()), (200, "ok\n"));
}

#[tokio::test]
async fn topics_and_the_bus_can_be_inspected() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 3);
    let mut subscriber = daemon.subscribe("/a/b").await;
    for _ in 0..5 {
        daemon.put("/a/b", "x").await;
    }
    subscriber.ids(5).await;
    let _late = daemon.subscribe("/a/b?since=0").await;
    let reply = daemon.get("/-/topics/a/b").await;
    assert_eq!(reply.header("Content-Type"), Some("application/json"));
    let topic: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    for (field, value) in [
        ("next_id", 5),
        ("first_id", 2),
        ("retained", 3),
        ("evicted", 2),
        ("max_messages", 3),
        ("subscribers", 2),
        ("waiters", 0),
    ] {
        assert_eq!(topic[field], value, "{field}");
    }
    assert_eq!(topic["overflow"], "drop-oldest");
    let subscriptions = topic["subscriptions"].as_array().unwrap();
    assert_eq!(subscriptions[0]["received"], 5);
    assert_eq!(subscriptions[0]["lag"], 0);
    assert!(subscriptions[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(subscriptions[1]["missed"], 2);

    let stats: serde_json::Value =
        serde_json::from_slice(&daemon.get("/-/stats").await.body).unwrap();
    assert_eq!((&stats["published"], &stats["topics"]), (&5.into(), &1.into()));
    daemon.get("/-/topics/none").await.refuses(404, "no such topic");
    daemon.get("/-/elsewhere").await.refuses(404, "/-/stats");
    daemon.put("/-/stats", "x").await.refuses(405, "GET, HEAD");
}

#[tokio::test]
async fn long_listings_do_not_block_other_clients_of_the_thread() {
    const SLOW: usize = 8;
    let daemon = Daemon::on_threads(1, |_| {});
    for n in 0..50_000 {
        daemon.bus.put(&format!("t/{n}").parse().unwrap(), "").unwrap();
    }
    for target in ["/?max=1", "/metrics", "/-/stats"] {
        let mut answered = 0;
        // On a busy machine few requests may fit into the time of the listings.
        for _ in 0..20 {
            answered = answered_beside(&daemon, target, SLOW).await;
            if answered > 3 * SLOW {
                break;
            }
        }
        // On a thread that builds the listings itself, about one request would be served between two of them.
        assert!(answered > 3 * SLOW, "{target}: {answered}");
    }
}

/// How many small requests are answered one after the other while the server builds this many listings.
async fn answered_beside(daemon: &Daemon, target: &str, listings: usize) -> usize {
    let mut slow = Vec::new();
    for _ in 0..listings {
        let mut connection = daemon.connect().await;
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        connection.write(request.as_bytes()).await;
        slow.push(tokio::spawn(async move { connection.reply().await.status }));
    }
    let mut other = daemon.connect().await;
    let mut answered = 0;
    while slow.iter().any(|slow| !slow.is_finished()) {
        other.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        other.read_until(b"\r\n\r\nok\n").await;
        answered += 1;
    }
    for slow in slow {
        assert_eq!(slow.await.unwrap(), 200);
    }
    answered
}
