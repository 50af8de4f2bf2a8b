//! Section 11: deadlines, the connection limit, and the shutdown.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::support::{Daemon, HANDSHAKE, soon};

const PUT: &[u8] = b"PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";

// The clock of these tests is paused: it jumps to the next deadline when no task can run.

#[tokio::test(start_paused = true)]
async fn a_head_must_arrive_within_ten_seconds() {
    let daemon = Daemon::start();
    for sent in [&b""[..], b"GET", b"GET /t HTTP/1.1\r\nHost: a\r\n"] {
        let mut connection = daemon.connect().await;
        let start = Instant::now();
        connection.write(sent).await;
        assert_eq!(connection.rest().await, b"", "closed without an answer");
        let waited = start.elapsed();
        assert!((10..12).contains(&waited.as_secs()), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_gets_no_more_time() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    let start = Instant::now();
    for byte in b"GET /t HTTP/1.1\r\nHos" {
        connection.write(&[*byte]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(connection.rest().await, b"");
    assert!(start.elapsed() >= Duration::from_secs(10));
    assert_eq!(daemon.put("/t", "x").await.status, 202);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_for_75_seconds_and_then_closed() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    for _ in 0..3 {
        connection.write(PUT).await;
        connection.read_until(b"\r\n\r\n").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    connection.write(PUT).await;
    connection.read_until(b"\r\n\r\n").await;
    let start = Instant::now();
    assert_eq!(connection.rest().await, b"");
    let waited = start.elapsed();
    assert!((74..77).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_timeout_shorter_than_the_header_timeout_is_enforced() {
    let daemon = Daemon::with(|config| config.timeouts.idle = Duration::from_secs(2));
    let mut connection = daemon.connect().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    connection.write(PUT).await;
    connection.read_until(b"\r\n\r\n").await;
    let start = Instant::now();
    assert_eq!(connection.rest().await, b"");
    let waited = start.elapsed();
    assert!((2..3).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test]
async fn a_slowly_read_response_is_not_idle() {
    let daemon = Daemon::with(|config| {
        config.max_payload = 64 << 20;
        config.timeouts.idle = Duration::from_millis(300);
    });
    let size = 30 << 20;
    daemon.bus.put(&"t".parse().unwrap(), vec![0; size]).unwrap();
    let mut slow = daemon.connect().await;
    slow.write(b"GET /t?raw HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    slow.read_until(b"\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(slow.rest().await.len(), size);
}

#[tokio::test(start_paused = true)]
async fn the_next_head_has_ten_seconds_too() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    connection.write(PUT).await;
    connection.read_until(b"\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    connection.write(b"GET /t HTT").await;
    let start = Instant::now();
    assert_eq!(connection.rest().await, b"");
    let waited = start.elapsed();
    assert!((10..12).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_partial_head_after_a_request_has_ten_seconds_too() {
    let daemon = Daemon::start();
    for behind in [&b"GET /t HTT"[..], b"GET /t HTTP/1.1\r\nHost: a\r\n"] {
        let mut connection = daemon.connect().await;
        connection.write(&[PUT, behind].concat()).await;
        connection.read_until(b"\r\n\r\n").await;
        let start = Instant::now();
        assert_eq!(connection.rest().await, b"");
        let waited = start.elapsed();
        assert!((9..12).contains(&waited.as_secs()), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_may_pause_anywhere() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    let (two, three) = (PUT.repeat(2), PUT.repeat(3));
    for (id, at) in (0..).zip(1..PUT.len()) {
        // A pause of an idle connection, and one in the middle of the third request.
        tokio::time::sleep(Duration::from_secs(5)).await;
        connection.write(&three[..two.len() + at]).await;
        for _ in 0..2 {
            connection.read_until(b"\r\n\r\n").await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        connection.write(&three[two.len() + at..]).await;
        let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
        assert!(head.contains(&format!("msgbus-id: {}\r\n", 3 * id + 2)), "{head}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_refused_body_is_not_a_request() {
    let daemon = Daemon::with(|config| config.max_payload = 10);
    let mut connection = daemon.connect().await;
    let body = String::from_utf8_lossy(PUT).repeat(2);
    let head = format!("PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    connection.write(head.as_bytes()).await;
    connection.read_until(b"\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    connection.write(body.as_bytes()).await;
    let _ = connection.0.shutdown().await;
    let mut rest = Vec::new();
    // It may be reset by now.
    let _ = soon(connection.0.read_to_end(&mut rest)).await;
    assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "{rest:?}");
    assert_eq!(daemon.bus.stats().counters.published, 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_408_and_publishes_nothing() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    let start = Instant::now();
    connection.write(b"PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nha").await;
    let reply = connection.reply().await;
    reply.refuses(408, "nothing arrived for 30s");
    assert!(start.elapsed() >= Duration::from_secs(30));
    assert_eq!(daemon.bus.topics(), []);
}

#[tokio::test]
async fn a_stalled_reader_of_responses_is_cut() {
    let daemon = Daemon::with(|config| config.timeouts.write = Duration::from_millis(200));
    let payload = vec![0; 1 << 20];
    for _ in 0..40 {
        daemon.put("/t", &payload).await;
    }
    let mut greedy = daemon.connect().await;
    greedy.write(&b"GET /t HTTP/1.1\r\nHost: a\r\n\r\n".repeat(40)).await;
    let cut = "msgbus_server_timeouts_total{which=\"write\"}";
    daemon.wait_for_metric(cut, |count| count >= 1).await;
    assert!(daemon.bus.stats().counters.pulled < 40, "long before everything is pulled");
    let left = 40 - daemon.bus.stats().counters.pulled;
    for _ in 0..left {
        assert_eq!(daemon.get("/t").await.status, 200, "the rest is for others");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    connection.write(&PUT.repeat(50)).await;
    for id in 0..50 {
        let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
        assert!(head.contains(&format!("msgbus-id: {id}\r\n")), "{head}");
    }
}

#[tokio::test]
async fn a_websocket_or_a_stream_can_follow_pipelined_requests() {
    let daemon = Daemon::start();
    let websocket = format!("GET /t?raw HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}\r\n");
    let stream = "GET /t?stream=raw HTTP/1.1\r\nHost: a\r\n\r\n".to_owned();
    for (last, status) in [(websocket, "101"), (stream, "200")] {
        let mut connection = daemon.connect().await;
        connection.write(&[&PUT.repeat(20), last.as_bytes()].concat()).await;
        for status in [&["202"; 20][..], &[status]].concat() {
            let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        }
        assert_eq!(daemon.put("/t", "next").await.status, 202);
        connection.read_until(b"next").await;
    }
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_refused_until_another_closes() {
    let daemon = Daemon::with(|config| config.max_connections = 2);
    let subscriber = daemon.subscribe("/t").await;
    let mut idle = daemon.connect().await;
    idle.write(PUT).await;
    idle.read_until(b"\r\n\r\n").await;

    let refused = daemon.get("/healthz").await;
    refused.refuses(503, "too many connections");
    assert_eq!(refused.header("Retry-After"), Some("1"));
    idle.write(PUT).await;
    assert!(idle.read_until(b"\r\n\r\n").await.starts_with(b"HTTP/1.1 202"), "others go on");

    drop(subscriber);
    soon(async { while daemon.get("/healthz").await.status != 200 {} }).await;
}

#[tokio::test]
async fn a_drain_closes_websockets_and_finishes_requests() {
    let daemon = Daemon::start();
    let mut subscriber = daemon.subscribe("/t").await;
    let mut idle = daemon.connect().await;
    idle.write(PUT).await;
    idle.read_until(b"\r\n\r\n").await;
    let mut silent = daemon.connect().await;
    let mut busy = daemon.connect().await;
    busy.write(b"PUT /t HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await;
    busy.read_until(b"\r\n\r\n").await;
    assert_eq!(subscriber.ids(1).await, [0]);

    let address = daemon.address;
    let bus = daemon.bus.clone();
    let stopping = daemon.stop();
    assert_eq!(subscriber.close_code().await, CloseCode::Away);
    assert_eq!(idle.rest().await, b"");
    assert_eq!(silent.rest().await, b"", "one that has not said anything holds nothing up");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "no new connections");
    assert!(!stopping.is_finished());

    busy.write(b"last").await;
    assert_eq!(busy.reply().await.status, 202);
    drop((subscriber, idle, silent, busy));
    assert_eq!(soon(stopping).await.unwrap().cut, 0);
    assert_eq!(bus.stats().counters.published, 2);
}

#[tokio::test]
async fn a_drain_ends_at_its_timeout() {
    let daemon = Daemon::with(|config| config.timeouts.drain = Duration::from_millis(100));
    let mut half = daemon.connect().await;
    half.write(b"PUT /t HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await;
    half.read_until(b"\r\n\r\n").await;
    // It never answers the close frame.
    let _mute = daemon.subscribe("/t").await;
    let drained = soon(daemon.stop()).await.unwrap();
    assert_eq!(drained.cut, 2);
}

/// 8.3
#[tokio::test]
async fn a_refusal_says_whether_the_connection_stays_open() {
    let daemon = Daemon::start();
    let head = "POST /-/request/nobody HTTP/1.1\r\nHost: a\r\n";
    for (rest, stays_open) in [
        ("Content-Length: 2\r\n\r\nhi", true),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", true),
        ("Content-Length: 2\r\n\r\n", false),
        ("Content-Length: 2\r\n\r\nh", false),
        ("Content-Length: 1000000\r\n\r\nhi", false),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", false),
        ("Expect: 100-continue\r\nContent-Length: 2\r\n\r\n", false),
    ] {
        let mut connection = daemon.connect().await;
        connection.write([head, rest].concat().as_bytes()).await;
        let answer = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{rest:?}: {answer}");
        assert_eq!(!answer.contains("connection: close"), stays_open, "{rest:?}: {answer}");
        let text = "nobody serves nobody";
        if stays_open {
            connection.write(PUT).await;
            let next = connection.read_until(b"\r\n\r\n").await;
            let next = String::from_utf8(next).unwrap();
            assert!(next.starts_with(text) && next.contains("HTTP/1.1 202 "), "{next}");
        } else {
            assert!(connection.rest().await.starts_with(text.as_bytes()));
        }
    }
}
