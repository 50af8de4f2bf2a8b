//! Section 6: subscribing. Frames from clients are tested in rfc6455.rs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, time::Instant};
use tokio_tungstenite::tungstenite::{Bytes, Message, protocol::frame::coding::CloseCode};

use crate::support::{Daemon, HANDSHAKE, soon};

#[tokio::test]
async fn new_messages_are_json_and_a_line_feed() {
    let daemon = Daemon::start();
    daemon.put("/t", "before").await;
    let (mut subscriber, response) = daemon.subscribe_with("/t", &[]).await;
    assert_eq!(response.headers()["msgbus-next-id"], "1");
    let published = daemon.put("/t", "hi").await;
    let message = subscriber.message().await;
    assert_eq!((message.id(), &message.payload()[..]), (1, &b"hi"[..]));
    assert_eq!(
        response.headers()["msgbus-epoch"].to_str().unwrap(),
        published.header("Msgbus-Epoch").unwrap()
    );
}

#[tokio::test]
async fn all_messages_arrive_in_order_while_other_subscribers_come_and_go() {
    const COUNT: usize = 3000;
    let daemon = Daemon::start();
    let subscriptions = [daemon.subscribe("/t").await, daemon.subscribe("/t?since=all").await];
    let publish = async {
        let mut connection = daemon.connect().await;
        for batch in 0..30 {
            let request =
                "PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi".repeat(COUNT / 30);
            connection.write(request.as_bytes()).await;
            for _ in 0..COUNT / 30 {
                connection.read_until(b"\r\n\r\n").await;
            }
            // One subscriber that leaves without a close, and one that reads a few messages.
            daemon.subscribe("/t?since=all").await;
            assert_eq!(
                daemon.subscribe("/t?since=all").await.ids(batch + 1).await.len(),
                batch + 1
            );
        }
    };
    let follow = async |mut subscriber: crate::support::Subscriber| {
        let expected: Vec<u64> = (0..COUNT as u64).collect();
        assert_eq!(subscriber.ids(COUNT).await, expected);
    };
    let [one, two] = subscriptions;
    tokio::join!(publish, follow(one), follow(two));
}

#[tokio::test]
async fn raw_sends_payloads_as_binary_frames() {
    let daemon = Daemon::start();
    let mut subscriber = daemon.subscribe("/t?raw").await;
    for payload in [&b""[..], b"\xff\x00\n"] {
        daemon.put("/t", payload).await;
        assert_eq!(subscriber.frame().await, Message::Binary(Bytes::copy_from_slice(payload)));
    }
}

#[tokio::test]
async fn large_messages_arrive_whole() {
    let daemon = Daemon::start();
    let mut subscriber = daemon.subscribe("/t").await;
    let payload = vec![7; 1 << 20];
    daemon.put("/t", &payload).await;
    daemon.put("/t", "small").await;
    assert_eq!(subscriber.message().await.payload(), &payload);
    assert_eq!(subscriber.message().await.payload(), "small");
}

#[tokio::test]
async fn every_position_starts_where_it_says() {
    let daemon = Daemon::start();
    let mut epoch = 0;
    for id in 0..5 {
        epoch = daemon.put("/t", id.to_string()).await.number("Msgbus-Epoch");
    }
    let created = daemon.bus.get(&"t".parse().unwrap()).unwrap().unwrap().created();
    let (before, after) = (created - Duration::from_secs(60), created + Duration::from_secs(60));
    let time = |time: chrono::DateTime<chrono::Utc>| {
        time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
    };
    for (position, first) in [
        ("since=all".to_owned(), 0),
        ("since=0".to_owned(), 0),
        ("since=3".to_owned(), 3),
        ("since=5".to_owned(), 5),
        ("since=new".to_owned(), 5),
        (format!("since={epoch}-2"), 3),
        (format!("since={epoch}-4"), 5),
        ("since=1m".to_owned(), 0),
        (format!("since={}", time(before)), 0),
        (format!("since={}", time(after)), 5),
        ("index=-1".to_owned(), 5),
        ("index=2".to_owned(), 2),
    ] {
        let (mut subscriber, response) =
            daemon.subscribe_with(&format!("/t?{position}"), &[]).await;
        let headers = response.headers();
        assert_eq!(headers["msgbus-next-id"], first.to_string(), "{position}");
        assert!(!headers.contains_key("msgbus-restarted"), "{position}");
        assert!(!headers.contains_key("msgbus-missed"), "{position}");
        if first < 5 {
            assert_eq!(subscriber.ids(1).await, [first], "{position}");
        }
    }
    let resume = format!("{epoch}-1");
    let headers = [("last-event-id", resume.as_str())];
    let (mut subscriber, _) = daemon.subscribe_with("/t?since=all", &headers).await;
    assert_eq!(subscriber.ids(3).await, [2, 3, 4], "the header wins");
}

#[tokio::test]
async fn a_position_of_another_epoch_replays_all_and_reports_a_restart() {
    let daemon = Daemon::start();
    let epoch = daemon.put("/t", "0").await.number("Msgbus-Epoch");
    for position in
        [format!("since={}-0", epoch - 1), format!("since={epoch}-9"), "since=2".to_owned()]
    {
        let (mut subscriber, response) =
            daemon.subscribe_with(&format!("/t?{position}"), &[]).await;
        assert_eq!(response.headers()["msgbus-restarted"], "true", "{position}");
        assert_eq!(subscriber.ids(1).await, [0]);
    }
}

#[tokio::test]
async fn a_position_before_the_oldest_message_reports_what_is_missed() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 3);
    for _ in 0..10 {
        daemon.put("/t", "x").await;
    }
    let (mut subscriber, response) = daemon.subscribe_with("/t?since=2", &[]).await;
    assert_eq!(response.headers()["msgbus-missed"], "5");
    assert_eq!(subscriber.ids(3).await, [7, 8, 9]);
}

/// docs/protocol.md, 6.6.
#[tokio::test]
async fn with_gaps_missed_messages_are_reported_in_a_separate_frame() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 3);
    for _ in 0..10 {
        daemon.put("/t", "x").await;
    }
    for raw in ["", "&raw"] {
        let target = format!("/t?since=2&gaps{raw}");
        let (mut subscriber, _) = daemon.subscribe_with(&target, &[]).await;
        let gap = "{\"event\":\"gap\",\"missed\":5,\"next_id\":7}\n";
        assert_eq!(subscriber.frame().await, Message::Text(gap.into()), "{target}");
        let first = subscriber.frame().await;
        assert_eq!(first.is_binary(), !raw.is_empty(), "{first:?}");
    }
    let (mut other, _) = daemon.subscribe_with("/t?since=2&gaps=0", &[]).await;
    assert_eq!(other.ids(3).await, [7, 8, 9], "every frame is a message");
}

#[tokio::test]
async fn a_subscriber_can_choose_to_be_closed_when_it_lags() {
    let daemon = Daemon::with(|config| {
        config.bus.topic.max_messages = 2;
        config.timeouts.write = Duration::from_secs(3600);
    });
    let payload = vec![b'x'; 1 << 20];
    let (mut strict, _) = daemon.subscribe_with("/t?lag=disconnect", &[]).await;
    for _ in 0..40 {
        daemon.put("/t", &payload).await;
    }
    let mut last = None;
    let close = loop {
        match strict.frame().await {
            Message::Text(text) => {
                let id = msgbus_core::json::read_message(text.as_bytes()).unwrap().id();
                assert_eq!(id, last.map_or(0, |last| last + 1), "no gap");
                last = Some(id);
            }
            Message::Close(close) => break close.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(close.code, CloseCode::from(4408));
    let expected = format!("too far behind; the last id was {}", last.unwrap());
    assert_eq!(close.reason.as_str(), expected);

    let (mut late, response) = daemon.subscribe_with("/t?lag=disconnect&since=0", &[]).await;
    assert_eq!(response.headers()["msgbus-missed"], "38");
    assert_eq!(late.ids(2).await, [38, 39], "what was gone before is no reason");
}

#[tokio::test]
async fn bad_positions_are_refused_before_the_handshake() {
    let daemon = Daemon::start();
    for (target, mention) in [
        ("/t?since=yesterday", "use all, new, an id"),
        ("/t?since=-1", "since"),
        ("/t?index=-2", "use -1"),
        ("/t?since=1&index=1", "use either since or index"),
        ("/t?wait=1s", "expected one of: since, index, raw, lag"),
        ("/t?lag=wait", "use skip or disconnect"),
    ] {
        let mut connection = daemon.connect().await;
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}\r\n");
        connection.write(request.as_bytes()).await;
        let answer = connection.read_until(b"\n").await;
        assert!(answer.starts_with(b"HTTP/1.1 400"), "{target}");
        connection.read_until(b"\r\n\r\n").await;
        let text = String::from_utf8(connection.read_until(b"\n").await).unwrap();
        assert!(text.contains(mention), "{target}: {text}");
    }
    assert_eq!(daemon.bus.topics(), []);
}

#[tokio::test]
async fn an_incomplete_handshake_takes_no_message() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let version = "Sec-WebSocket-Version: 13";
    for (headers, status) in [
        (&["Upgrade: websocket"][..], 400),
        (&["Upgrade: WebSocket", "Connection: upgrade"], 426),
        (&["Upgrade: websocket", "Connection: close", key, version], 400),
        (&["Upgrade: websocket", "Connection: Upgrade", version], 400),
        (&["Upgrade: websocket", "Connection: Upgrade", version, "Sec-WebSocket-Key: short"], 400),
        (&["Upgrade: websocket", "Connection: Upgrade", key], 426),
        (&["Upgrade: websocket", "Connection: Upgrade", key, "Sec-WebSocket-Version: 8"], 426),
        (&[key, version], 400),
        (&["Sec-WebSocket-Protocol: chat"], 400),
        (&["Connection: Upgrade", "Upgrade: h2c", key, version], 400),
    ] {
        let reply = daemon.send("GET", "/t", headers, b"").await;
        reply.refuses(status, "websocket");
        if status == 426 {
            assert_eq!(reply.header("Sec-WebSocket-Version"), Some("13"));
        }
    }
    daemon.send("GET", "/", &["Upgrade: websocket"], b"").await.refuses(400, "/<topic>");
    let other = daemon.send("GET", "/t", &["Upgrade: h2c", "Connection: Upgrade"], b"").await;
    assert_eq!(other.message().id(), 0, "other upgrades are ignored, and nothing was eaten");
}

#[tokio::test]
async fn upgrade_is_a_list_of_tokens_in_any_case() {
    let daemon = Daemon::start();
    for upgrade in ["WebSocket", "WEBSOCKET", "h2c, websocket"] {
        let mut connection = daemon.connect().await;
        let request = format!(
            "GET /t HTTP/1.1\r\nHost: a\r\nUpgrade: {upgrade}\r\nConnection: keep-alive, Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        connection.write(request.as_bytes()).await;
        let head = connection.read_until(b"\r\n\r\n").await;
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{upgrade}");
    }
}

#[tokio::test]
async fn frames_sent_right_after_the_handshake_are_not_lost() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    let mut bytes = format!("GET /t HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}\r\n").into_bytes();
    bytes.extend_from_slice(b"\x89\x82\0\0\0\0hi"); // A masked ping.
    connection.write(&bytes).await;
    connection.read_until(b"\r\n\r\n").await;
    assert_eq!(connection.read_until(b"hi").await, b"\x8a\x02hi");
}

// The clock of these tests is paused: it jumps to the next deadline when no task can run.

#[tokio::test(start_paused = true)]
async fn the_server_pings_and_a_client_that_answers_stays() {
    let daemon = Daemon::start();
    let start = Instant::now();
    let mut connection = daemon.raw_websocket("/t").await;
    for round in 1..=3 {
        let head = connection.read_until(b"\x13").await;
        assert_eq!(head, b"\x89\x13", "a ping of 19 digits");
        let mut digits = [0; 19];
        tokio::io::AsyncReadExt::read_exact(&mut connection.0, &mut digits).await.unwrap();
        assert!(digits.iter().all(u8::is_ascii_digit));
        assert!(start.elapsed() >= Duration::from_secs(25 * round));
        let mut pong = b"\x8a\x93\0\0\0\0".to_vec();
        pong.extend_from_slice(&digits);
        connection.write(&pong).await;
    }
    assert_eq!(daemon.bus.stats().subscribers, 1);
    let page = daemon.get("/metrics").await;
    assert!(page.text().contains("msgbus_client_latency_seconds_count 3"), "{}", page.text());
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_closed_after_a_minute() {
    let daemon = Daemon::start();
    let start = Instant::now();
    let mut connection = daemon.raw_websocket("/t").await;
    let answer = connection.rest().await;
    assert!(start.elapsed() >= Duration::from_secs(60));
    let close = &answer[2 * (2 + 19)..];
    assert_eq!((close[0], &close[2..4]), (0x88, &1001_u16.to_be_bytes()[..]), "{answer:x?}");
    assert_eq!(daemon.bus.stats().subscribers, 0);
}

#[tokio::test(start_paused = true)]
async fn any_frame_restarts_the_silence_timeout() {
    let daemon = Daemon::start();
    let mut connection = daemon.raw_websocket("/t").await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        connection.write(b"\x81\x80\0\0\0\0").await;
    }
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(daemon.bus.stats().subscribers, 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_and_does_not_affect_others() {
    let daemon = Daemon::on_threads(2, |config| config.timeouts.write = Duration::from_millis(200));
    let mut good = daemon.subscribe("/t").await;
    let stalled = daemon.subscribe("/t").await;
    let payload = vec![b'x'; 256 << 10];
    // More than the socket buffers of both ends can hold.
    for id in 0..100 {
        assert_eq!(daemon.put("/t", &payload).await.status, 202);
        assert_eq!(good.ids(1).await, [id]);
    }
    soon(async {
        while daemon.bus.stats().subscribers > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    daemon.wait_for_metric("msgbus_client_errors", |count| count == 1).await;
    drop(stalled);
}

#[tokio::test]
async fn a_client_that_reads_slowly_but_steadily_is_not_cut() {
    let daemon = Daemon::on_threads(2, |config| config.timeouts.write = Duration::from_secs(2));
    let payload = vec![b'x'; 1 << 20];
    for _ in 0..30 {
        daemon.put("/t", &payload).await;
    }
    let mut slow = daemon.connect().await;
    let request = format!("GET /t?since=all HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}\r\n");
    slow.write(request.as_bytes()).await;
    let mut piece = vec![0; 32 << 10];
    // Five times the timeout, at a rate at which the system reports the socket as full most of the time.
    for _ in 0..200 {
        tokio::io::AsyncReadExt::read_exact(&mut slow.0, &mut piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(daemon.bus.stats().subscribers, 1);
}

#[tokio::test]
async fn a_lagging_subscriber_continues_with_the_oldest_message() {
    let daemon = Daemon::with(|config| {
        config.bus.topic.max_messages = 10;
        config.timeouts.write = Duration::from_secs(3600);
    });
    let mut slow = daemon.subscribe("/t").await;
    let payload = vec![b'x'; 256 << 10];
    for _ in 0..200 {
        daemon.put("/t", &payload).await;
    }
    let mut last = slow.ids(1).await[0];
    assert_eq!(last, 0);
    let mut gap = 0;
    while last < 199 {
        let id = slow.ids(1).await[0];
        assert!(id > last, "never back, never twice");
        gap += id - last - 1;
        last = id;
    }
    assert!(gap > 0, "the kernel cannot have held all of it");
    let stats = daemon.bus.stats();
    assert_eq!((stats.counters.missed, stats.counters.delivered), (gap, 200 - gap));
}

#[tokio::test]
async fn pings_are_sent_while_messages_are_always_available() {
    // Large frames, so that the client is soon done with those that come before a ping.
    const SIZE: usize = 16 << 10;
    let daemon = Daemon::on_threads(2, |config| {
        config.timeouts.ping = Duration::from_millis(20);
        config.bus.topic.max_messages = 1000;
    });
    let mut connection = daemon.raw_websocket("/t?raw").await;
    let is_over = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (bus, is_over) = (daemon.bus.clone(), Arc::clone(&is_over));
        thread::spawn(move || {
            let topic = "t".parse().unwrap();
            while !is_over.load(Relaxed) {
                bus.put(&topic, vec![b'x'; SIZE]).unwrap();
            }
        })
    };
    let (mut pings, mut messages) = (0, 0);
    while pings < 5 {
        let (first, payload) = connection.frame().await;
        if first == 0x89 {
            pings += 1;
            let length = 0x80 | u8::try_from(payload.len()).unwrap();
            connection.write(&[&[0x8a, length, 0, 0, 0, 0], &payload[..]].concat()).await;
        } else {
            assert_eq!((first, payload.len()), (0x82, SIZE));
            messages += 1;
        }
    }
    is_over.store(true, Relaxed);
    publisher.join().unwrap();
    assert!(messages > 0);
    assert_eq!(daemon.bus.stats().subscribers, 1);
}

#[tokio::test]
async fn a_client_that_writes_before_it_reads_is_read_meanwhile() {
    const MESSAGES: usize = 64;
    let daemon = Daemon::on_threads(2, |config| config.timeouts.write = Duration::from_secs(3600));
    for _ in 0..MESSAGES {
        daemon.bus.put(&"t".parse().unwrap(), vec![b'x'; 512 << 10]).unwrap();
    }
    let mut connection = daemon.raw_websocket("/t?raw&since=all").await;
    // Far more than the system's buffers hold, in both directions, and each needs a reply.
    let ping = b"\x89\x82\0\0\0\0hi";
    let frame = [&b"\x82\xfe\xf0\x00\0\0\0\0"[..], &vec![0; 0xf000], ping].concat();
    for _ in 0..512 {
        soon(connection.0.write_all(&frame)).await.unwrap();
    }
    let (mut messages, mut pongs) = (0, 0);
    while messages < MESSAGES {
        match soon(connection.frame()).await {
            (0x82, payload) => {
                assert_eq!(payload.len(), 512 << 10);
                messages += 1;
            }
            (0x8a, payload) => {
                assert_eq!(payload, b"hi");
                pongs += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    // RFC 6455, section 5.5.3: the latest of several pings may be the only one that is answered.
    assert!(pongs >= 1);
}
