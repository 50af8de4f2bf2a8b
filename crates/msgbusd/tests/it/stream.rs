//! Sections 6.10 to 6.14: streams for curl and browsers.

use std::time::Duration;

use tokio::{io::AsyncReadExt as _, time::Instant};

use crate::support::{Connection, Daemon, EVENT_SOURCE, soon};

/// A stream, read line by line without the chunk framing of HTTP.
pub(crate) struct Stream {
    connection: Connection,
    head: String,
    text: String,
}

impl Stream {
    pub(crate) async fn open(daemon: &Daemon, target: &str, headers: &str) -> Self {
        let mut connection = daemon.connect().await;
        let request = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", daemon.address);
        connection.write(request.as_bytes()).await;
        let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
        Self { connection, head, text: String::new() }
    }

    /// The next line; `None` at the end of the stream.
    pub(crate) async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find('\n') {
                let line: String = self.text.drain(..=end).collect();
                return Some(line.trim_end_matches('\n').to_owned());
            }
            let size = String::from_utf8(self.connection.read_until(b"\r\n").await).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            soon(self.connection.0.read_exact(&mut chunk)).await.unwrap();
            if size == 0 {
                assert_eq!(self.text, "", "the stream ends with a line");
                return None;
            }
            self.text.push_str(std::str::from_utf8(&chunk[..size]).unwrap());
        }
    }

    pub(crate) async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            lines.push(self.line().await.expect("the stream ended"));
        }
        lines
    }

    async fn is_over(&mut self) {
        assert_eq!(self.line().await, None);
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

fn id(json: &str) -> u64 {
    msgbus_core::json::read_message(json.as_bytes()).unwrap().id()
}

#[tokio::test]
async fn formats_are_chosen_by_parameter_or_accept() {
    let daemon = Daemon::start();
    let epoch = daemon.put("/t", "first").await.number("Msgbus-Epoch");
    let sse = "text/event-stream";
    let ndjson = "application/x-ndjson";
    for (target, headers, content_type) in [
        ("/t?stream=sse&since=all", "", sse),
        ("/t?since=all", "Accept: text/event-stream\r\n", sse),
        ("/t?stream=ndjson&since=0", "", ndjson),
        ("/t?index=0", "Accept: text/html, application/x-ndjson;q=0.5\r\n", ndjson),
        ("/t?stream=raw&since=1h", "", "application/octet-stream"),
        ("/t?stream=raw&since=all", "Accept: text/event-stream\r\n", "application/octet-stream"),
    ] {
        let mut stream = Stream::open(&daemon, target, headers).await;
        assert!(stream.head.starts_with("HTTP/1.1 200 "), "{}", stream.head);
        assert_eq!(stream.header("content-type"), Some(content_type), "{target}");
        assert_eq!(stream.header("cache-control"), Some("no-store"));
        assert_eq!(stream.header("x-accel-buffering"), Some("no"));
        assert_eq!(stream.header("msgbus-epoch"), Some(&epoch.to_string()[..]));
        assert_eq!(stream.header("msgbus-next-id"), Some("0"));
        match content_type {
            "text/event-stream" => {
                let lines = stream.lines(3).await;
                assert_eq!(lines[0], format!("id: {epoch}-0"));
                assert_eq!(id(lines[1].strip_prefix("data: ").unwrap()), 0);
                assert_eq!(lines[2], "");
            }
            "application/x-ndjson" => assert_eq!(id(&stream.lines(1).await[0]), 0),
            _ => assert_eq!(stream.lines(1).await, ["first"]),
        }
    }
    assert_eq!(daemon.get("/t").await.message().id(), 0, "none of them took it");
}

#[tokio::test]
async fn headers_are_sent_at_once_and_messages_when_published() {
    let daemon = Daemon::start();
    let mut stream = Stream::open(&daemon, "/t?stream=raw", "").await;
    for payload in ["a", "b", "c"] {
        daemon.put("/t", payload).await;
        assert_eq!(stream.lines(1).await, [payload]);
    }
}

#[tokio::test]
async fn every_format_delivers_all_messages_in_order() {
    const COUNT: u64 = 5000;
    let daemon = Daemon::start();
    let mut ndjson = Stream::open(&daemon, "/t?stream=ndjson", "").await;
    let mut sse = Stream::open(&daemon, "/t?stream=sse", "").await;
    let publish = async {
        for n in 0..COUNT {
            daemon.bus.put(&"t".parse().unwrap(), n.to_string()).unwrap();
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
    };
    let follow_ndjson = async {
        for expected in 0..COUNT {
            assert_eq!(id(&ndjson.lines(1).await[0]), expected);
        }
    };
    let follow_sse = async {
        for expected in 0..COUNT {
            assert_eq!(id(sse.lines(3).await[1].strip_prefix("data: ").unwrap()), expected);
        }
    };
    tokio::join!(publish, follow_ndjson, follow_sse);
}

#[tokio::test]
async fn a_stream_resumes_where_it_was() {
    let daemon = Daemon::start();
    let mut epoch = 0;
    for n in 0..4 {
        epoch = daemon.put("/t", n.to_string()).await.number("Msgbus-Epoch");
    }
    let header = format!("Last-Event-ID: {epoch}-1\r\n");
    let mut stream = Stream::open(&daemon, "/t?stream=raw&since=all", &header).await;
    assert_eq!(stream.lines(2).await, ["2", "3"]);
}

#[tokio::test]
async fn gaps_and_restarts_are_reported() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 2);
    let mut epoch = 0;
    for n in 0..5 {
        epoch = daemon.put("/t", n.to_string()).await.number("Msgbus-Epoch");
    }
    let mut ndjson = Stream::open(&daemon, "/t?stream=ndjson&since=1", "").await;
    assert_eq!(ndjson.header("msgbus-missed"), Some("2"));
    let lines = ndjson.lines(2).await;
    assert_eq!(lines[0], r#"{"event":"gap","missed":2}"#);
    assert_eq!(id(&lines[1]), 3);

    let mut sse = Stream::open(&daemon, "/t?stream=sse&since=1-0", EVENT_SOURCE).await;
    assert_eq!(sse.header("msgbus-restarted"), Some("true"));
    let restart = format!("data: {{\"epoch\":\"{epoch}\"}}");
    assert_eq!(sse.lines(3).await, ["event: restart", &restart, ""]);
    assert_eq!(sse.lines(2).await, [&format!("id: {epoch}-start"), ""]);
    let resume = format!("id: {epoch}-2");
    assert_eq!(sse.lines(4).await, ["event: gap", "data: {\"missed\":3}", &resume, ""]);
    assert_eq!(sse.lines(1).await, [format!("id: {epoch}-3")]);

    // Raw lines cannot report it.
    let mut raw = Stream::open(&daemon, "/t?stream=raw&since=0", "").await;
    assert_eq!(raw.lines(1).await, ["3"]);
}

/// An `EventSource` that disconnects before the first message resumes with the id of the start.
#[tokio::test]
async fn a_browser_can_resume_before_it_has_seen_a_message() {
    let daemon = Daemon::start();
    for (published, id) in [(0, "start"), (1, "0"), (2, "1")] {
        let mut sse = Stream::open(&daemon, "/t?stream=sse", EVENT_SOURCE).await;
        let start = sse.lines(2).await;
        assert!(start[0].starts_with("id: ") && start[0].ends_with(&format!("-{id}")), "{start:?}");
        drop(sse);
        daemon.put("/t", "while away").await;
        let header = format!("Last-Event-ID: {}\r\n", start[0].trim_start_matches("id: "));
        let mut resumed = Stream::open(&daemon, "/t?stream=ndjson", &header).await;
        assert_eq!(self::id(&resumed.lines(1).await[0]), published);
    }
    let mut other_life = Stream::open(&daemon, "/t?stream=ndjson&since=1-start", "").await;
    assert!(other_life.lines(1).await[0].contains("restart"));
}

/// Also when the client reads the responses late.
#[tokio::test]
async fn a_stream_starts_after_the_responses_to_earlier_requests() {
    let daemon = Daemon::start();
    // More than the system's buffers hold.
    let large = vec![b'x'; 16 << 20];
    daemon.bus.put(&"large".parse().unwrap(), large.clone()).unwrap();
    daemon.put("/t", "x").await;
    let mut connection = daemon.connect().await;
    let host = format!("Host: {}\r\n", daemon.address);
    let requests = format!(
        "PUT /other HTTP/1.1\r\n{host}Content-Length: 1\r\n\r\nx\
         GET /large?raw HTTP/1.1\r\n{host}\r\n\
         GET /t?stream=ndjson&since=all HTTP/1.1\r\n{host}\r\n"
    );
    connection.write(requests.as_bytes()).await;
    for status in ["202", "200"] {
        let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        soon(connection.0.read_exact(&mut body)).await.unwrap();
        assert!(status == "202" || body == large);
    }
    let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
    let mut stream = Stream { connection, head, text: String::new() };
    assert_eq!(stream.header("transfer-encoding"), Some("chunked"));
    assert_eq!(id(&stream.line().await.unwrap()), 0);
}

#[tokio::test]
async fn http_1_0_has_no_chunks() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    let mut connection = daemon.connect().await;
    connection.write(b"GET /t?stream=raw&since=all HTTP/1.0\r\nHost: localhost\r\n\r\n").await;
    let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert_eq!(connection.read_until(b"\n").await, b"x\n");
    daemon.bus.delete(&"t".parse().unwrap()).wait().unwrap();
    assert_eq!(connection.rest().await, b"");
}

#[tokio::test]
async fn an_invalid_last_event_id_is_ignored_only_in_sse() {
    let daemon = Daemon::start();
    let header = format!("Last-Event-ID: 42\r\n{EVENT_SOURCE}");
    daemon.put("/t", "x").await;
    let mut sse = Stream::open(&daemon, "/t?stream=sse&since=all", &header).await;
    assert!(sse.lines(1).await[0].starts_with(": Last-Event-ID is not from this server"));
    assert!(sse.lines(1).await[0].ends_with("-start"), "since counts then");
    for target in ["/t?stream=ndjson", "/t?stream=raw"] {
        let reply = daemon.send("GET", target, &["Last-Event-ID: 42"], b"").await;
        reply.refuses(400, "Last-Event-ID");
    }
}

#[tokio::test]
async fn bad_parameters_are_refused() {
    let daemon = Daemon::start();
    for (target, mention) in [
        ("/t?stream=xml", "use sse, ndjson or raw"),
        ("/t?stream=", "use sse, ndjson or raw"),
        ("/t?stream=sse&raw", "unknown parameter \"raw\""),
        ("/t?stream=sse&since=soon", "since"),
        ("/t?stream=sse&lag=wait", "use skip or disconnect"),
    ] {
        daemon.get(target).await.refuses(400, mention);
    }
    assert_eq!(daemon.bus.topics(), []);
}

#[tokio::test]
async fn a_deleted_topic_and_a_lag_end_a_stream_with_an_event() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 1);
    let mut sse = Stream::open(&daemon, "/t?stream=sse", "").await;
    let mut raw = Stream::open(&daemon, "/t?stream=raw", "").await;
    daemon.send("DELETE", "/t", &[], b"").await;
    assert_eq!(sse.lines(3).await, ["event: deleted", "data: {}", ""]);
    sse.is_over().await;
    raw.is_over().await;

    let mut strict = Stream::open(&daemon, "/t?stream=ndjson&lag=disconnect", "").await;
    // Published at once, before the stream can receive any.
    for _ in 0..3 {
        daemon.bus.put(&"t".parse().unwrap(), "x").unwrap();
    }
    assert_eq!(strict.lines(1).await, [r#"{"event":"lagged","missed":2}"#]);
    strict.is_over().await;
}

#[tokio::test]
async fn a_client_that_disconnects_ends_its_subscription() {
    let daemon = Daemon::start();
    let stream = Stream::open(&daemon, "/t?stream=sse", "").await;
    assert_eq!(daemon.bus.stats().subscribers, 1);
    drop(stream);
    soon(async {
        while daemon.bus.stats().subscribers > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// An extra byte keeps hyper from noticing the end of the connection. The clock is paused.
#[tokio::test(start_paused = true)]
async fn a_disconnect_is_noticed_despite_unread_bytes() {
    let daemon = Daemon::start();
    for target in ["/t?stream=raw", "/t?wait=60s"] {
        let mut connection = daemon.connect().await;
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n\r\n");
        connection.write(request.as_bytes()).await;
        let topic = "t".parse().unwrap();
        let there =
            || daemon.bus.topic(&topic).map_or(0, |stats| stats.subscribers + stats.waiters);
        soon(async {
            while there() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        drop(connection);
        tokio::time::sleep(Duration::from_secs(25)).await;
        assert_eq!(there(), 0, "{target}");
    }
}

#[tokio::test]
async fn a_drain_ends_streams() {
    let daemon = Daemon::start();
    let mut stream = Stream::open(&daemon, "/t?stream=sse", "").await;
    daemon.put("/t", "last").await;
    stream.lines(3).await;
    let stopping = daemon.stop();
    stream.is_over().await;
    drop(stream);
    assert_eq!(soon(stopping).await.unwrap().cut, 0);
}

// The clock of this test is paused: it jumps to the next deadline whenever all is quiet.

#[tokio::test(start_paused = true)]
async fn an_idle_stream_is_kept_alive_beyond_every_deadline() {
    let daemon = Daemon::start();
    let start = Instant::now();
    let mut sse = Stream::open(&daemon, "/t?stream=sse", "").await;
    let mut ndjson = Stream::open(&daemon, "/t?stream=ndjson", "").await;
    let mut raw = Stream::open(&daemon, "/t?stream=raw", "").await;
    for round in 1..=10 {
        assert_eq!(sse.lines(1).await, [":"]);
        assert_eq!(ndjson.lines(1).await, [""]);
        assert!(start.elapsed() >= Duration::from_secs(15 * round));
    }
    daemon.put("/t", "still there").await;
    assert_eq!(raw.lines(1).await, ["still there"]);
}

/// Some parsers treat every empty line as an event. They must see only those of messages.
#[tokio::test(start_paused = true)]
async fn empty_lines_only_end_events() {
    let daemon = Daemon::start();
    let mut sse = Stream::open(&daemon, "/t?stream=sse", "Last-Event-ID: strange\r\n").await;
    let comment = sse.lines(2).await;
    assert!(comment[0].starts_with(": Last-Event-ID") && comment[1] == ":", "{comment:?}");
    daemon.put("/t", "x").await;
    let event = sse.lines(3).await;
    assert!(event[0].starts_with("id: ") && event[1].starts_with("data: ") && event[2].is_empty());
    assert_eq!(sse.lines(2).await, [":", ":"]);
}

#[tokio::test(start_paused = true)]
async fn keep_alives_follow_a_shorter_ping_interval() {
    let daemon = Daemon::with(|config| config.timeouts.ping = Duration::from_secs(5));
    let start = Instant::now();
    let mut sse = Stream::open(&daemon, "/t?stream=sse", "").await;
    assert_eq!(sse.lines(3).await, [":", ":", ":"]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// 200 stalled readers of all formats beside a good one: the good one misses nothing, the server buffers no more for
/// the others than the system does, and finally cuts them.
#[tokio::test]
async fn stalled_readers_need_no_memory_and_do_not_affect_others() {
    const STALLED: usize = 200;
    let daemon = Daemon::with(|config| config.timeouts.write = Duration::from_millis(500));
    let mut good = Stream::open(&daemon, "/t?stream=raw", "").await;
    let (mut streams, mut sockets) = (Vec::new(), Vec::new());
    for n in 0..STALLED {
        match n % 4 {
            0 => sockets.push(daemon.subscribe("/t").await),
            1 => streams.push(Stream::open(&daemon, "/t?stream=sse", "").await),
            2 => streams.push(Stream::open(&daemon, "/t?stream=ndjson", "").await),
            _ => streams.push(Stream::open(&daemon, "/t?stream=raw", "").await),
        }
    }
    assert_eq!(daemon.bus.stats().subscribers, STALLED + 1);
    // Far more than the system's buffers hold, in frames that are encoded once.
    let payload = "x".repeat(11 << 10);
    for id in 0..1200 {
        daemon.bus.put(&"t".parse().unwrap(), payload.clone()).unwrap();
        assert_eq!(good.lines(1).await, [&payload[..]]);
        // Only the log is kept, however much each reader has read.
        assert_eq!(daemon.bus.stats().retained, id + 1);
    }
    soon(async {
        while daemon.bus.stats().subscribers > 1 {
            daemon.put("/t", "still").await;
            assert_eq!(good.lines(1).await, ["still"]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
