//! The limits on memory in flight, connections per address and subscriptions: the response at each limit, that the bus
//! keeps serving, and the metrics. docs/operations.md, "Limits".

use std::{net::IpAddr, time::Duration};

use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Connection, Daemon, HANDSHAKE, Reply, soon};

const MIB: usize = 1 << 20;

/// The value of a series.
fn metric(page: &Reply, series: &str) -> u64 {
    let line = page.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
}

impl Daemon {
    pub(crate) async fn metric(&self, series: &str) -> u64 {
        metric(&self.get("/metrics").await, series)
    }

    pub(crate) async fn wait_for_metric(&self, series: &str, is_it: impl Fn(u64) -> bool) {
        soon(async {
            loop {
                // Without a free connection it is refused.
                let page = self.get("/metrics").await;
                if page.status == 200 && is_it(metric(&page, series)) {
                    break;
                }
            }
        })
        .await;
    }

    pub(crate) async fn refused(&self, code: &str) -> u64 {
        self.metric(&format!("msgbus_server_refused_total{{code=\"{code}\"}}")).await
    }

    /// Sends a request and does not read the response, so that it stays in flight.
    pub(crate) async fn ask_and_not_read(&self, target: &str) -> Connection {
        let socket = TcpSocket::new_v4().unwrap();
        // Small, so that the system buffers little of it.
        socket.set_recv_buffer_size(4096).unwrap();
        let mut connection = Connection(socket.connect(self.address).await.unwrap());
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        connection.write(request.as_bytes()).await;
        connection
    }

    /// Fills a topic with messages of 1 MiB.
    pub(crate) fn fill(&self, topic: &str, count: usize) {
        for _ in 0..count {
            self.bus.put(&topic.parse().unwrap(), vec![b'x'; MIB]).unwrap();
        }
    }
}

pub(crate) const INFLIGHT: &str = "msgbus_server_inflight_bytes";

#[tokio::test]
async fn at_the_inflight_limit_no_large_message_is_taken_and_none_is_lost() {
    let daemon = Daemon::with(|config| config.max_inflight_bytes = 4 * MIB);
    daemon.fill("large", 16);
    daemon.put("/small", "hi").await;
    let mut greedy = daemon.ask_and_not_read("/large?max=8").await;
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes > 8 * MIB as u64).await;

    for target in [
        "/large",
        "/large?raw",
        "/large?max=2",
        "/large?peek",
        "/large?peek&since=all",
        "/large?group=g",
        "/large?group=g&max=2",
        "/large?peek&group=g",
    ] {
        let refused = daemon.get(target).await;
        refused.refuses(503, "in-flight memory limit reached");
        assert_eq!(refused.number("Retry-After"), 1, "{target}");
    }
    let problem = daemon.send("GET", "/large", &["Accept: application/json"], b"").await;
    assert!(problem.text().contains("\"too_much_in_flight\""), "{problem:?}");
    assert_eq!(daemon.bus.stats().counters.pulled, 8, "nothing more was taken");
    assert_eq!(daemon.bus.groups(&"large".parse().unwrap()), []);
    assert_eq!(daemon.refused("too_much_in_flight").await, 9);

    // Responses that may be large are refused.
    assert!(!daemon.get("/metrics").await.text().contains("topic=\"small\""));
    // Small messages are still served.
    assert_eq!(daemon.get("/small?max=10&peek").await.status, 200);
    assert_eq!(&daemon.get("/small?group=g").await.message().payload()[..], b"hi");
    assert_eq!(daemon.get("/small?peek&group=g").await.status, 200);
    assert_eq!(&daemon.get("/small").await.message().payload()[..], b"hi");
    assert_eq!(daemon.put("/small", vec![b'x'; 8 << 10]).await.status, 202);
    assert_eq!(daemon.get("/").await.text(), "large\nsmall\n");

    let answer = greedy.reply().await;
    assert_eq!(answer.text().lines().count(), 8);
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes == 0).await;
    assert_eq!(daemon.get("/large").await.message().id(), 8, "the next one, none between");
}

#[tokio::test]
async fn a_response_counts_until_its_connection_closes() {
    let daemon = Daemon::with(|config| config.max_inflight_bytes = 4 * MIB);
    daemon.fill("large", 8);
    let greedy = daemon.ask_and_not_read("/large?max=8").await;
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes > 8 * MIB as u64).await;
    drop(greedy);
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes == 0).await;
}

#[tokio::test]
async fn bodies_beyond_the_inflight_limit_are_refused_and_others_are_accepted() {
    let daemon = Daemon::with(|config| config.max_inflight_bytes = 2 * MIB);
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut connection = daemon.connect().await;
        let head = format!("PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB}\r\n\r\n");
        connection.write(head.as_bytes()).await;
        connection.write(&vec![b'x'; MIB - 1]).await;
        slow.push(connection);
    }
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes == 2 * MIB as u64).await;

    let refused = daemon.put("/t", vec![b'y'; MIB]).await;
    refused.refuses(503, "in-flight memory limit reached");
    assert_eq!(refused.number("Retry-After"), 1);
    assert_eq!(refused.header("Connection"), Some("close"));
    assert_eq!(daemon.put("/t", "small").await.number("Msgbus-Id"), 0);

    let finished = &mut slow[0];
    finished.write(b"x").await;
    let head = String::from_utf8(finished.read_until(b"\r\n\r\n").await).unwrap();
    assert!(head.starts_with("HTTP/1.1 202 "), "{head}");
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes == MIB as u64).await;
    assert_eq!(daemon.put("/t", vec![b'y'; MIB]).await.status, 202);
    drop(slow);
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes == 0).await;
}

#[tokio::test]
async fn an_announced_body_takes_no_memory_before_it_arrives() {
    let daemon = Daemon::with(|config| config.max_inflight_bytes = MIB);
    let mut waiting = daemon.connect().await;
    let head = format!("PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB}\r\n");
    waiting.write(format!("{head}Expect: 100-continue\r\n\r\n").as_bytes()).await;
    waiting.read_until(b"\r\n\r\n").await;
    assert_eq!(daemon.metric(INFLIGHT).await, 0);
    assert_eq!(daemon.put("/t", vec![b'y'; MIB]).await.status, 202);
}

#[tokio::test]
async fn a_subscriber_waits_for_memory_for_large_messages_and_gets_small_ones() {
    let daemon = Daemon::with(|config| config.max_inflight_bytes = 4 * MIB);
    daemon.fill("large", 8);
    let mut websocket = daemon.subscribe("/t").await;
    let mut stream = daemon.connect().await;
    stream.write(b"GET /t?stream=ndjson HTTP/1.1\r\nHost: a\r\n\r\n").await;
    stream.read_until(b"\r\n\r\n").await;
    let mut greedy = daemon.ask_and_not_read("/large?max=8").await;
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes > 8 * MIB as u64).await;

    // All at once, so that one batch could take them all.
    daemon.bus.put(&"t".parse().unwrap(), "0").unwrap();
    daemon.fill("t", 1);
    daemon.bus.put(&"t".parse().unwrap(), "2").unwrap();
    assert_eq!(websocket.ids(1).await, [0]);
    stream.read_until(b"}\n\r\n").await;
    // Both have been woken, and wait for memory.
    for _ in 0..10 {
        let delivered = daemon.metric("msgbus_bus_delivered").await;
        assert_eq!(delivered, 2, "one to each, and nothing more is taken");
    }

    greedy.rest().await;
    assert_eq!(websocket.ids(2).await, [1, 2]);
    stream.read_until(b"}\n\r\n").await;
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes == 0).await;
}

#[tokio::test]
async fn a_memory_wait_looks_at_its_own_topic_and_not_at_a_later_one_of_the_same_name() {
    let daemon = Daemon::with(|config| config.max_inflight_bytes = 4 * MIB);
    daemon.fill("large", 8);
    let mut websocket = daemon.subscribe("/t").await;
    let _greedy = daemon.ask_and_not_read("/large?max=8").await;
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes > 8 * MIB as u64).await;
    daemon.fill("t", 1);
    daemon.put("/t2", "x").await;
    assert!(daemon.bus.delete(&"t".parse().unwrap()).wait().unwrap());
    daemon.fill("t", 1);
    assert_eq!(u16::from(websocket.close_code().await), 4404);
}

#[tokio::test]
async fn all_memory_waits_proceed() {
    let daemon = Daemon::with(|config| config.max_inflight_bytes = 2 * MIB);
    daemon.fill("large", 4);
    let mut greedy = daemon.ask_and_not_read("/large?max=4").await;
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes > 4 * MIB as u64).await;
    daemon.fill("large", 20);
    let waiters = (0..20).map(|_| daemon.get("/large?wait=60s"));
    let waiting = futures_util::future::join_all(waiters);
    let makes_room = async {
        let waiting = |topic: msgbus_core::TopicStats| topic.waiters;
        let topic = "large".parse().unwrap();
        soon(async {
            while daemon.bus.topic(&topic).map(waiting) != Some(20) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        greedy.rest().await
    };
    let (answers, _) = tokio::join!(waiting, makes_room);
    let mut ids: Vec<_> = answers.iter().map(|answer| answer.message().id()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (4..24).collect::<Vec<_>>());
}

#[tokio::test]
async fn unread_frames_count_as_in_flight() {
    let daemon = Daemon::with(|config| config.max_inflight_bytes = 4 * MIB);
    let mut stuck = Vec::new();
    for target in ["/t", "/t?raw"] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}\r\n");
        let mut connection = daemon.connect().await;
        connection.write(request.as_bytes()).await;
        connection.read_until(b"\r\n\r\n").await;
        stuck.push(connection);
    }
    for form in ["sse", "ndjson", "raw"] {
        let request = format!("GET /t?stream={form} HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut connection = daemon.connect().await;
        connection.write(request.as_bytes()).await;
        connection.read_until(b"\r\n\r\n").await;
        stuck.push(connection);
    }
    // The system buffers some of them; a stalled subscriber holds one message.
    daemon.fill("t", 60);
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes >= 4 * MIB as u64).await;
    assert!(daemon.metric(INFLIGHT).await < 8 * MIB as u64);
    drop(stuck);
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes == 0).await;
}

#[tokio::test]
async fn a_waiting_pull_waits_for_memory_too() {
    let daemon = Daemon::with(|config| config.max_inflight_bytes = 4 * MIB);
    daemon.fill("large", 8);
    let mut greedy = daemon.ask_and_not_read("/large?max=8").await;
    daemon.wait_for_metric(INFLIGHT, |bytes| bytes > 8 * MIB as u64).await;
    daemon.fill("large", 1);
    assert_eq!(daemon.get("/large?wait=100ms").await.status, 204);
    let waits = async { daemon.get("/large?wait=60s").await.message().id() };
    let makes_room = async { greedy.rest().await.len() };
    let (id, read) = tokio::join!(waits, makes_room);
    assert!(id == 8 && read > 8 * MIB, "{id} {read}");
}

#[tokio::test]
async fn connections_are_limited_per_address_and_a_closed_websocket_frees_its_permit() {
    let daemon = Daemon::with(|config| {
        config.max_connections_per_address = Some(2);
        config.bind = vec![msgbusd::Bind::Tcp(([127, 0, 0, 1], 0).into())];
    });
    let subscriber = daemon.subscribe("/t").await;
    let other = daemon.connect().await;
    let refused = daemon.get("/healthz").await;
    refused.refuses(503, "too many connections from this address");
    assert_eq!(refused.number("Retry-After"), 1);

    // The bus serves other addresses.
    let from_elsewhere = from(daemon.address.port(), [127, 0, 0, 2].into()).await;
    let mut elsewhere = Connection(from_elsewhere);
    elsewhere.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let page = elsewhere.reply().await;
    assert_eq!(metric(&page, "msgbus_server_connections_open"), 3);
    let code = "msgbus_server_refused_total{code=\"too_many_connections_of_address\"}";
    assert_eq!(metric(&page, code), 1);
    assert_eq!(metric(&page, "msgbus_server_connections_refused_total"), 1);

    drop(subscriber);
    soon(async { while daemon.get("/healthz").await.status != 200 {} }).await;
    drop(other);
    daemon.wait_for_metric("msgbus_server_connections_open", |open| open == 1).await;
}

pub(crate) async fn from(port: u16, own: IpAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((own, 0).into()).unwrap();
    socket.connect(([127, 0, 0, 1], port).into()).await.unwrap()
}

#[tokio::test]
async fn loopback_is_not_limited_by_default() {
    // Both ends of each connection are files of this process.
    rlimit::increase_nofile_limit(4096).unwrap();
    let daemon = Daemon::start();
    let mut all = Vec::new();
    for _ in 0..1100 {
        all.push(daemon.connect().await);
    }
    assert_eq!(daemon.get("/healthz").await.status, 200);
    assert_eq!(daemon.metric("msgbus_server_connections_limit").await, 10_000);
}

#[tokio::test]
async fn subscriptions_are_limited_and_permits_are_returned() {
    let daemon = Daemon::with(|config| config.max_subscriptions = 2);
    let websocket = daemon.subscribe("/t").await;
    let mut stream = daemon.connect().await;
    stream.write(b"GET /t?stream=raw HTTP/1.1\r\nHost: a\r\n\r\n").await;
    stream.read_until(b"\r\n\r\n").await;

    let handshake: Vec<&str> = HANDSHAKE.trim_end().split("\r\n").collect();
    for (target, headers) in [("/new", &handshake[..]), ("/new?stream=sse", &[])] {
        let refused = daemon.send("GET", target, headers, b"").await;
        refused.refuses(503, "too many subscriptions: at most 2");
        assert_eq!(refused.number("Retry-After"), 1);
    }
    assert_eq!(daemon.refused("too_many_subscriptions").await, 2);
    assert_eq!(daemon.metric("msgbus_server_subscriptions").await, 2);
    assert_eq!(daemon.get("/").await.text(), "t\n", "no topic was made");
    daemon.put("/t", "hi").await;
    assert_eq!(stream.read_until(b"hi\n").await, b"3\r\nhi\n");
    assert_eq!(daemon.get("/t?wait=1s").await.status, 200, "a pull is no subscription");

    drop(websocket);
    daemon.wait_for_metric("msgbus_server_subscriptions", |open| open == 1).await;
    let _websocket = daemon.subscribe("/t").await;
    drop(stream);
    daemon.wait_for_metric("msgbus_server_subscriptions", |open| open == 1).await;
}

#[tokio::test]
async fn timeouts_are_counted_by_deadline() {
    let daemon = Daemon::with(|config| {
        let moment = Duration::from_millis(200);
        config.timeouts.header = moment;
        config.timeouts.idle = moment;
        config.timeouts.body = moment;
        config.timeouts.write = moment;
    });
    daemon.fill("large", 30);
    let mut late = Vec::new();
    for begun in [
        "GET /t HT",
        "PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nh",
        "PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let mut connection = daemon.connect().await;
        connection.write(begun.as_bytes()).await;
        late.push(connection);
    }
    let _stuck = daemon.ask_and_not_read("/large?max=20").await;
    let mut websocket = daemon.raw_websocket("/large?since=all").await;
    for which in ["header", "body", "idle"] {
        let series = format!("msgbus_server_timeouts_total{{which=\"{which}\"}}");
        daemon.wait_for_metric(&series, |count| count >= 1).await;
    }
    daemon
        .wait_for_metric("msgbus_server_timeouts_total{which=\"write\"}", |count| count >= 2)
        .await;
    websocket.rest().await;
    assert_eq!(daemon.put("/t", "x").await.status, 202);
}

#[tokio::test]
async fn protocol_errors_are_counted_and_the_bus_keeps_serving() {
    let daemon = Daemon::start();
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(17 << 10));
    for (said, status, code) in
        [(large.as_str(), "431", "header_too_large"), ("what?\r\n\r\n", "400", "bad_http")]
    {
        let mut connection = daemon.connect().await;
        connection.write(said.as_bytes()).await;
        let answer = String::from_utf8(connection.rest().await).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let series = format!("msgbus_server_refused_total{{code=\"{code}\"}}");
        daemon.wait_for_metric(&series, |count| count == 1).await;
    }
    let too_large = [&[0x82, 0xff][..], &(65_537_u64).to_be_bytes(), &[0; 4]].concat();
    for (frame, code) in [
        (&too_large[..], "websocket_too_large"),
        (b"\x81\x81\0\0\0\0\xff", "websocket_not_utf8"),
        (b"\x83\x80\0\0\0\0", "websocket_violation"),
    ] {
        let mut websocket = daemon.raw_websocket("/t").await;
        websocket.write(frame).await;
        let series = format!("msgbus_server_refused_total{{code=\"{code}\"}}");
        daemon.wait_for_metric(&series, |count| count == 1).await;
    }
    assert_eq!(daemon.put("/t", "x").await.status, 202);
}

#[tokio::test]
async fn every_error_code_has_a_series_from_the_start() {
    let daemon = Daemon::start();
    let page = daemon.get("/metrics").await;
    let contract = include_str!("../../../../docs/protocol.md");
    let (_, section) = contract.split_once("| status | code | when |").unwrap();
    let (table, _) = section.split_once("\n\n").unwrap();
    let mut count = 0;
    for cell in table.lines().skip(2).map(|line| line.split('|').nth(2).unwrap()) {
        for code in cell.split('`').skip(1).step_by(2) {
            metric(&page, &format!("msgbus_server_refused_total{{code=\"{code}\"}}"));
            count += 1;
        }
    }
    let series = page.text().matches("msgbus_server_refused_total{").count();
    assert_eq!(count, series, "the table in protocol.md and the metrics");
}
