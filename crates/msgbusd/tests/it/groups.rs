//! Section 14: leased pulls of groups.

use chrono::{DateTime, Utc};
use msgbus_core::{GroupStats, json};
use serde_json::Value;

use crate::support::{Connection, Daemon, HANDSHAKE, Reply, soon, until};

impl Daemon {
    pub(crate) async fn post(&self, target: &str) -> Reply {
        self.send("POST", target, &[], b"").await
    }

    /// Leases one message, and returns its id, its deliveries and its token.
    pub(crate) async fn lease(&self, target: &str) -> (u64, u64, String) {
        let reply = self.get(target).await;
        let id = reply.message().id();
        (id, reply.number("Msgbus-Deliveries"), reply.token())
    }

    pub(crate) async fn ack(&self, token: &str) -> u16 {
        self.post(&format!("/-/ack/{token}")).await.status
    }

    pub(crate) fn group(&self, group: &str, topic: &str) -> Option<GroupStats> {
        let group = group.parse().unwrap();
        Some(self.bus.group_stats(&topic.parse().unwrap(), &group, 0)?.0)
    }

    /// Waits until pulls of a group wait.
    pub(crate) async fn group_waits(&self, group: &str, topic: &str, count: usize) {
        let stats = || self.bus.groups(&topic.parse().unwrap());
        let is_it = |stats: &GroupStats| stats.name.as_str() == group && stats.waiters == count;
        until(|| stats().iter().any(is_it)).await;
    }

    /// Sends a request on a connection that stays open.
    pub(crate) async fn begin(&self, target: &str) -> Connection {
        let mut connection = self.connect().await;
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        connection.write(request.as_bytes()).await;
        connection
    }
}

impl Reply {
    pub(crate) fn token(&self) -> String {
        self.header("Msgbus-Lease").unwrap_or_else(|| panic!("no lease: {self:?}")).to_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The ids, deliveries and tokens of leased messages in lines.
    pub(crate) fn leases(&self) -> Vec<(u64, u32, String)> {
        assert_eq!((self.status, self.header("Content-Type")), (200, Some("application/x-ndjson")));
        let lines = self.text().lines().map(|line| {
            let leased = json::read_leased(line.as_bytes()).unwrap();
            (leased.message.id(), leased.deliveries, leased.token.to_string())
        });
        lines.collect()
    }
}

/// 14.1
#[tokio::test]
async fn a_leased_message_is_that_of_a_pull_with_three_headers() {
    let daemon = Daemon::start();
    for payload in ["a", "b", "c"] {
        daemon.put("/jobs", payload).await;
    }
    let peeked = daemon.get("/jobs?peek").await;
    let leased = daemon.get("/jobs?group=workers").await;
    assert_eq!((leased.status, leased.text()), (200, peeked.text()));
    assert_eq!(leased.header("Content-Type"), Some("application/json"));
    assert_eq!(leased.header("Cache-Control"), Some("no-store"));
    assert_eq!(leased.number("Msgbus-Deliveries"), 1);
    ends_in(&leased, 30);

    let raw = daemon.get("/jobs?group=workers&raw&lease=1h").await;
    assert_eq!((raw.text(), raw.number("Msgbus-Id")), ("b", 1));
    assert_ne!(raw.token(), leased.token());
    ends_in(&raw, 3600);
    let octets = ["Accept: application/octet-stream"];
    let raw = daemon.send("GET", "/jobs?group=workers&wait=1s", &octets, b"").await;
    assert_eq!((raw.text(), raw.number("Msgbus-Deliveries")), ("c", 1));
}

fn ends_in(leased: &Reply, seconds: i64) {
    let expires: DateTime<Utc> = leased.header("Msgbus-Lease-Expires").unwrap().parse().unwrap();
    let left = (expires - Utc::now()).num_milliseconds();
    // A slow machine may have taken a while.
    assert!((seconds * 500..=seconds * 1000 + 500).contains(&left), "{left} ms of {seconds} s");
}

/// 14.2
#[tokio::test]
async fn with_max_each_line_has_its_lease_at_the_end() {
    let daemon = Daemon::start();
    for n in 0..5 {
        daemon.put("/jobs", n.to_string()).await;
    }
    let reply = daemon.get("/jobs?group=g&max=2&lease=2m").await;
    let leases = reply.leases();
    assert_eq!(leases.iter().map(|lease| (lease.0, lease.1)).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    assert_eq!(reply.header("Msgbus-Lease"), None);
    let plain = daemon.get("/jobs?peek&since=0").await;
    let line = reply.text().lines().next().unwrap();
    let start = format!(
        r#"{},"lease":"{}","deliveries":1,"lease_expires":""#,
        plain.text().strip_suffix('}').unwrap(),
        leases[0].2
    );
    assert!(line.starts_with(&start) && line.ends_with("Z\"}"), "{line}");
    assert_eq!(daemon.get("/jobs?group=g&max=100&wait=1s").await.leases().len(), 3);
    assert_eq!(daemon.get("/jobs?group=g&max=100").await.status, 404);
}

/// 14.3
#[tokio::test]
async fn without_messages_there_is_no_lease_and_no_topic() {
    let daemon = Daemon::start();
    daemon.get("/t?group=g").await.refuses(404, "no messages enqueued for topic: t");
    daemon.get("/t?group=g&max=9").await.refuses(404, "no messages");
    assert_eq!(daemon.get("/").await.text(), "");
    let reply = daemon.get("/t?group=g&wait=1ms").await;
    assert_eq!((reply.status, reply.header("Msgbus-Lease")), (204, None));
    assert_eq!(daemon.get("/").await.text(), "", "and a pull that has waited leaves none");
    daemon.put("/t", "x").await;
    daemon.lease("/t?group=g").await;
    daemon.get("/t?group=g").await.refuses(404, "no messages");
    assert_eq!(daemon.get("/t?group=g&wait=1ms").await.status, 204);
}

#[tokio::test]
async fn each_group_gets_every_message_and_each_message_one_worker() {
    let daemon = Daemon::start();
    for n in 0..3 {
        daemon.put("/t", n.to_string()).await;
    }
    for group in ["a", "b"] {
        for id in 0..3 {
            assert_eq!(daemon.lease(&format!("/t?group={group}")).await.0, id);
        }
        assert_eq!(daemon.get(&format!("/t?group={group}")).await.status, 404);
    }
    assert_eq!(daemon.get("/t").await.message().id(), 0, "plain pulls have their own position");
    let group = daemon.group("a", "t").unwrap();
    assert_eq!((group.leased, group.counters.delivered, group.pending), (3, 3, 0));
}

/// A group comes to be with the first message for a pull that waits.
#[tokio::test]
async fn waiting_pulls_of_a_group_are_served_in_order() {
    let daemon = Daemon::start();
    let mut waiting = Vec::new();
    let topic = "t".parse().unwrap();
    for count in 1..=3 {
        waiting.push(daemon.begin("/t?group=g&wait=60s").await);
        until(|| daemon.bus.topic(&topic).is_some_and(|topic| topic.waiters == count)).await;
    }
    let mut other = daemon.begin("/t?group=other&wait=60s").await;
    until(|| daemon.bus.topic(&topic).is_some_and(|topic| topic.waiters == 4)).await;
    assert_eq!(daemon.group("g", "t"), None);
    for n in 0..3 {
        daemon.put("/t", n.to_string()).await;
    }
    for (id, mut connection) in waiting.into_iter().enumerate() {
        let reply = connection.reply().await;
        assert_eq!((reply.message().id(), reply.number("Msgbus-Deliveries")), (id as u64, 1));
    }
    assert_eq!(other.reply().await.message().id(), 0);
}

#[tokio::test]
async fn since_counts_for_a_new_group_only() {
    let daemon = Daemon::start();
    let mut epoch = 0;
    for n in 0..4 {
        epoch = daemon.put("/t", n.to_string()).await.number("Msgbus-Epoch");
    }
    assert_eq!(daemon.lease("/t?group=a").await.0, 0);
    assert_eq!(daemon.lease("/t?group=a&since=3").await.0, 1);
    assert_eq!(daemon.lease("/t?group=b&since=2").await.0, 2);
    assert_eq!(daemon.lease(&format!("/t?group=c&since={epoch}-0")).await.0, 1);
    assert_eq!(daemon.lease("/t?group=d&since=1h").await.0, 0);
    assert_eq!(daemon.get("/t?group=e&since=new").await.status, 404);
    daemon.put("/t", "4").await;
    assert_eq!(daemon.lease("/t?group=e&since=all").await.0, 4, "its position was fixed before");
    daemon.get("/t?group=f&since=x").await.refuses(400, "since");
}

#[tokio::test]
async fn what_comes_back_is_delivered_first_and_the_oldest_of_it_before() {
    let daemon = Daemon::start();
    for n in 0..4 {
        daemon.put("/t", n.to_string()).await;
    }
    let leases = daemon.get("/t?group=g&max=3").await.leases();
    for index in [2, 0] {
        assert_eq!(daemon.post(&format!("/-/nack/{}", leases[index].2)).await.status, 204);
    }
    let order = [(0, 2), (2, 2), (3, 1)];
    for expected in order {
        let (id, deliveries, _) = daemon.lease("/t?group=g").await;
        assert_eq!((id, deliveries), expected);
    }
    let counters = daemon.group("g", "t").unwrap().counters;
    assert_eq!((counters.delivered, counters.redelivered, counters.nacked), (6, 2, 2));
}

#[tokio::test]
async fn a_lease_ends_by_time_and_wakes_who_waits() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    let (_, _, first) = daemon.lease("/t?group=g&lease=1s").await;
    let again = daemon.get("/t?group=g&wait=60s").await;
    assert_eq!((again.message().id(), again.number("Msgbus-Deliveries")), (0, 2));
    daemon.post(&format!("/-/ack/{first}")).await.refuses(410, "the lease is over");
    assert_eq!(daemon.ack(&again.token()).await, 204);
    let group = daemon.group("g", "t").unwrap();
    assert_eq!((group.counters.lease_expired, group.counters.acked), (1, 1));
    assert_eq!((group.pending, group.leased, group.waiting), (0, 0, 0));
}

/// As some proxies do: they take the answer of the server, and their own client has left.
#[tokio::test]
async fn a_message_comes_again_if_its_client_left_before_the_answer() {
    let daemon = Daemon::on_threads(2, |_| {});
    daemon.put("/t", "x").await;
    let gone = daemon.begin("/t?group=g&lease=1s").await;
    until(|| daemon.group("g", "t").is_some_and(|group| group.counters.delivered >= 1)).await;
    drop(gone);
    let (id, deliveries, token) = daemon.lease("/t?group=g&wait=60s").await;
    assert_eq!((id, deliveries), (0, 2));
    assert_eq!(daemon.ack(&token).await, 204);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_takes_nothing() {
    let daemon = Daemon::on_threads(2, |_| {});
    daemon.put("/t", "x").await;
    let (_, _, token) = daemon.lease("/t?group=g").await;
    let waiting = daemon.begin("/t?group=g&wait=60s").await;
    daemon.group_waits("g", "t", 1).await;
    drop(waiting);
    daemon.group_waits("g", "t", 0).await;
    daemon.post(&format!("/-/nack/{token}")).await;
    let (id, deliveries, _) = daemon.lease("/t?group=g").await;
    assert_eq!((id, deliveries), (0, 2), "nobody got it meanwhile");
}

#[tokio::test]
async fn a_wait_ends_with_its_topic_or_the_server() {
    let daemon = Daemon::start();
    for topic in ["t", "u"] {
        daemon.put(&format!("/{topic}"), "x").await;
        daemon.lease(&format!("/{topic}?group=g")).await;
    }
    let mut deleted = daemon.begin("/t?group=g&wait=60s").await;
    let mut stopped = daemon.begin("/u?group=g&wait=60s").await;
    daemon.group_waits("g", "t", 1).await;
    daemon.group_waits("g", "u", 1).await;
    assert_eq!(daemon.send("DELETE", "/t", &[], b"").await.status, 204);
    assert_eq!(deleted.reply().await.status, 204);
    let stopping = daemon.stop();
    assert_eq!(stopped.reply().await.status, 204);
    drop(stopped);
    assert_eq!(soon(stopping).await.unwrap().cut, 0);
}

/// 11.3: a request in progress is answered.
#[tokio::test]
async fn a_lease_is_settled_while_the_server_drains() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    let (_, _, token) = daemon.lease("/t?group=g").await;
    let mut connection = daemon.connect().await;
    let head =
        format!("POST /-/ack HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", token.len());
    connection.write(head.as_bytes()).await;
    let mut half = daemon.connect().await;
    half.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    half.read_until(b"ok\n").await;
    let bus = daemon.bus.clone();
    let (address, stopping) = (daemon.address, daemon.stop());
    until(|| std::net::TcpStream::connect(address).is_err()).await;
    connection.write(token.as_bytes()).await;
    let reply = connection.reply().await;
    assert_eq!((reply.status, reply.text()), (200, ""));
    drop((connection, half));
    assert_eq!(soon(stopping).await.unwrap().cut, 0);
    let group = bus.group_stats(&"t".parse().unwrap(), &"g".parse().unwrap(), 0).unwrap().0;
    assert_eq!(group.counters.acked, 1);
}

#[tokio::test]
async fn a_peek_shows_what_a_group_has_not_acknowledged() {
    let daemon = Daemon::start();
    daemon.get("/t?peek&group=g").await.refuses(404, "no messages");
    for n in 0..4 {
        daemon.put("/t", n.to_string()).await;
    }
    let leases = daemon.get("/t?group=g&max=3").await.leases();
    daemon.ack(&leases[0].2).await;
    daemon.post(&format!("/-/nack/{}?delay=1h", leases[1].2)).await;
    let ids = async |target| {
        let reply = daemon.get(target).await;
        let lines = reply.text().lines().map(|line| json::read_message(line.as_bytes()).unwrap());
        lines.map(|message| message.id()).collect::<Vec<_>>()
    };
    assert_eq!(ids("/t?peek&group=g&max=9").await, [1, 2, 3]);
    assert_eq!(ids("/t?peek&group=g").await, [1]);
    assert_eq!(daemon.get("/t?peek&group=g&raw").await.text(), "1");
    assert_eq!(ids("/t?peek&group=unknown&max=9").await, [0, 1, 2, 3]);
    assert_eq!(daemon.group("unknown", "t"), None);
    assert_eq!(daemon.group("g", "t").unwrap().counters.delivered, 3, "nothing was taken");
    for target in ["/t?peek&group=g&since=0", "/t?peek&group=g&gaps", "/t?peek&group=g&lease=1s"] {
        daemon.get(target).await.refuses(400, "parameter");
    }
}

#[tokio::test]
async fn a_lease_that_is_not_clear_is_refused_and_takes_nothing() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    let long = format!("/t?group={}", "x".repeat(65));
    let event_stream = ["Accept: text/event-stream"];
    let handshake: Vec<&str> = HANDSHAKE.trim().split("\r\n").collect();
    for (target, headers, mention) in [
        ("/t?group=", &[][..], "a group name must not be empty"),
        ("/t?group", &[], "must not be empty"),
        (&long, &[], "at most 64 characters"),
        ("/t?group=a%20b", &[], "only letters and digits"),
        ("/t?group=a/b", &[], "only letters and digits"),
        ("/t?group=..", &[], "must not be \".\" or \"..\""),
        ("/t?group=gr%C3%B6%C3%9Fe", &[], "only letters and digits"),
        ("/t?group=a&group=b", &[], "more than once"),
        ("/t?group=g&lease=0", &[], "use 1s to 12h"),
        ("/t?group=g&lease=0s", &[], "use 1s to 12h"),
        ("/t?group=g&lease=999ms", &[], "use 1s to 12h"),
        ("/t?group=g&lease=12h1ms", &[], "use 1s to 12h"),
        ("/t?group=g&lease=3650d", &[], "use 1s to 12h"),
        ("/t?group=g&lease=99999999999999999999d", &[], "not a duration"),
        ("/t?group=g&lease=30", &[], "not a duration"),
        ("/t?group=g&lease", &[], "not a duration"),
        ("/t?group=g&wait=0", &[], "use 1ms to 1m"),
        ("/t?group=g&max=0", &[], "1 or more"),
        ("/t?group=g&max=2&raw", &[], "raw"),
        ("/t?group=g&leas=1s", &[], "unknown parameter \"leas\""),
        ("/t?lease=30s", &[], "only valid with ?group="),
        ("/t?lease=30s&max=2", &[], "only valid with ?group="),
        ("/t?group=g&stream=sse", &[], "a stream delivers no leases"),
        ("/t?group=g&stream=ndjson&max=2", &[], "a stream delivers no leases"),
        ("/t?group=g", &event_stream, "a stream delivers no leases"),
        ("/t?group=g", &["Accept: application/x-ndjson"], "a stream delivers no leases"),
        ("/t?group=g", &handshake, "a websocket delivers no leases"),
        ("/t?group=g", &["Sec-WebSocket-Version: 13"], "a websocket delivers no leases"),
    ] {
        let reply = daemon.send("GET", target, headers, b"").await;
        reply.refuses(400, mention);
    }
    assert_eq!(daemon.bus.groups(&"t".parse().unwrap()), []);
    let pulls = daemon.send("GET", "/t?group=g&max=2", &event_stream, b"").await;
    assert_eq!(pulls.leases().len(), 1, "max means pull, whatever is accepted");
}

#[tokio::test]
async fn head_takes_no_lease() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    let head = daemon.send("HEAD", "/t?group=g&lease=1m&wait=1s", &[], b"").await;
    assert_eq!((head.status, head.number("Msgbus-Unpulled")), (200, 1));
    assert_eq!(daemon.group("g", "t"), None);
}

/// 9.4
#[tokio::test]
async fn a_browser_leases_nothing_for_another_site() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    for (headers, status) in [
        (&["Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: document"][..], 403),
        (&["Origin: https://evil.example"], 403),
        (&["Sec-Fetch-Site: none", "Sec-Purpose: prefetch"], 503),
        (&["User-Agent: Mozilla/5.0"], 403),
    ] {
        let reply = daemon.send("GET", "/t?group=g&wait=1s", headers, b"").await;
        assert_eq!(reply.status, status, "{headers:?}");
        let settles = daemon.send("POST", "/-/ack", &["Origin: https://evil.example"], b"x").await;
        assert_eq!(settles.status, 403);
    }
    assert_eq!(daemon.bus.groups(&"t".parse().unwrap()), []);
    let peek = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: document"];
    assert_eq!(daemon.send("GET", "/t?peek&group=g", &peek, b"").await.status, 200);
}

/// A worker of each of two connections takes and acknowledges; every job is done once.
#[tokio::test]
async fn workers_share_the_messages() {
    const JOBS: u64 = 200;
    let daemon = Daemon::on_threads(2, |_| {});
    for n in 0..JOBS {
        daemon.bus.put(&"t".parse().unwrap(), n.to_string()).unwrap();
    }
    let work = async || {
        let mut done = Vec::new();
        loop {
            let reply = daemon.get("/t?group=g&wait=10ms").await;
            if reply.status == 204 {
                return done;
            }
            assert_eq!(daemon.ack(&reply.token()).await, 204);
            done.push(reply.message().id());
        }
    };
    let (mut all, others, third) = tokio::join!(work(), work(), work());
    all.extend(others.into_iter().chain(third));
    all.sort_unstable();
    assert_eq!(all, (0..JOBS).collect::<Vec<_>>());
}
