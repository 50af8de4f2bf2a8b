//! 16.7: limits, and clients that do not read.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

use super::payload;
use crate::{
    rfc6455::{CLOSE, FIRST_OF_TEXT, PING, PONG, TEXT, frame},
    support::{Connection, Daemon, HANDSHAKE, soon},
};

const OPERATIONS: &str = "msgbus_server_operations_total";

impl Daemon {
    /// A `msgbus.v1` websocket with small buffers, whose client does not read unless the test does.
    pub(super) async fn slow_v1(&self, receive_buffer: u32) -> Connection {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(receive_buffer).unwrap();
        let mut connection = Connection(socket.connect(self.address).await.unwrap());
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}Sec-WebSocket-Protocol: msgbus.v1\r\n\r\n"
        );
        connection.write(request.as_bytes()).await;
        connection.read_until(b"\r\n\r\n").await;
        connection
    }
}

#[tokio::test]
async fn a_websocket_has_1024_subscriptions() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    let sub = |sid: usize| json!({"op": "sub", "sid": sid, "topic": format!("t{}", sid % 100)});
    client.send(&(0..1024).map(sub).collect::<Vec<_>>()).await;
    let refusal = client.refused(&sub(1024).to_string(), "too_many_subscriptions").await;
    assert_eq!(refusal["of"], "sub");
    assert_eq!(daemon.bus.stats().subscribers, 1024);
    assert_eq!(daemon.metric("msgbus_server_subscriptions").await, 1024);
    client.ok(json!({"op": "unsub", "sid": 3})).await;
    client.ok(sub(1024)).await;
    daemon.put("/t7", "hi").await;
    let mut sids = Vec::new();
    for _ in 0..11 {
        sids.push(client.line().await["sid"].as_u64().unwrap());
    }
    sids.sort_unstable();
    assert_eq!(sids, (0..11).map(|hundred| hundred * 100 + 7).collect::<Vec<_>>());
    drop(client);
    soon(async {
        while daemon.bus.stats().subscribers > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn subscriptions_count_towards_the_limit_of_the_server() {
    let daemon = Daemon::with(|config| config.max_subscriptions = 2);
    let mut client = daemon.client().await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "t"})).await;
    client.ok(json!({"op": "sub", "sid": 2, "topic": "t", "group": "g"})).await;
    let third = json!({"op": "sub", "sid": 3, "topic": "t"});
    assert_eq!(
        client.refused(&third.to_string(), "too_many_subscriptions").await["retry_after"],
        1
    );
    client.ok(json!({"op": "unsub", "sid": 2})).await;
    client.ok(third).await;
}

#[tokio::test]
async fn at_most_1024_operations_wait() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    let pull = |rid: usize| json!({"op": "pull", "rid": rid, "topic": "t", "wait": "60s"});
    client.send(&(0..1024).map(pull).collect::<Vec<_>>()).await;
    daemon.wait_for_metric(OPERATIONS, |count| count == 1024).await;
    client.send(&[json!({"op": "ping", "rid": "held back"})]).await;
    client.send(&[json!({"op": "ping", "rid": "too"})]).await;
    daemon.put("/other", "x").await;
    assert_eq!(daemon.metric(OPERATIONS).await, 1024);
    daemon.put("/t", "x").await;
    let answer = client.line().await;
    assert_eq!((&answer["rid"], answer["messages"].as_array().unwrap().len()), (&json!(0), 1));
    assert_eq!(client.line().await["rid"], "held back");
    assert_eq!(client.line().await["rid"], "too");
}

/// Nothing is read from a client that does not read, and nothing is lost for it.
#[tokio::test]
async fn a_flood_of_operations_without_reading_is_bounded() {
    const COUNT: usize = 200_000;
    let daemon = Daemon::start();
    let Connection(stream) = daemon.slow_v1(64 << 10).await;
    let (reader, mut writer) = stream.into_split();
    let lines =
        "{\"op\":\"ping\",\"rid\":\"0123456789012345678901234567890123456789\"}\n".repeat(100);
    let flood = tokio::spawn(async move {
        let bytes = frame(TEXT, lines);
        for _ in 0..COUNT / 100 {
            writer.write_all(&bytes).await.unwrap();
        }
        writer
    });
    // The client is stopped before its last frame.
    let mut before = 0;
    loop {
        let now = daemon.metric(OPERATIONS).await;
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    assert!(before < COUNT as u64 / 2, "{before}");
    let mut other = daemon.client().await;
    other.is_idle().await;
    let mut reader = tokio::io::BufReader::new(reader);
    let mut answered = 0;
    let mut line = Vec::new();
    while answered < COUNT {
        line.clear();
        soon(tokio::io::AsyncBufReadExt::read_until(&mut reader, b'\n', &mut line)).await.unwrap();
        // The length in the header of a frame may have the byte of a line feed.
        answered += usize::from(line.ends_with(b"0123456789\"}\n"));
    }
    flood.await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    // So long that the client is not disconnected.
    let daemon = Daemon::with(|config| {
        config.timeouts.write = Duration::from_secs(3600);
        config.timeouts.ping = Duration::from_secs(3600);
    });
    let mut stuck = daemon.slow_v1(4096).await;
    stuck.write(&frame(TEXT, r#"{"op":"sub","sid":1,"topic":"t"}"#)).await;
    let mut client = daemon.client().await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "t", "payload": "text"})).await;
    let large = "x".repeat(100_000);
    for _ in 0..100 {
        daemon.put("/t", &large).await;
        assert_eq!(payload(&client.line().await), large);
    }
    // It gets its messages, and can still send.
    let mut seen = 0;
    stuck.write(&frame(TEXT, r#"{"op":"ping","rid":"late"}"#)).await;
    let mut is_answered = false;
    while seen < 100 || !is_answered {
        let (first, text) = stuck.frame().await;
        assert_eq!(first, TEXT);
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            seen += usize::from(line.starts_with(b"{\"op\":\"msg\""));
            is_answered |= line == b"{\"op\":\"pong\",\"rid\":\"late\"}";
        }
    }
    assert_eq!(seen, 100);
}

#[tokio::test]
async fn messages_that_have_not_arrived_count_as_in_flight() {
    const SIZE: usize = 200 << 10;
    let daemon = Daemon::with(|config| config.max_inflight_bytes = 1 << 20);
    let mut clients = Vec::new();
    let closed = loop {
        let mut client = daemon.raw_v1().await;
        client.write(&frame(FIRST_OF_TEXT, vec![b' '; SIZE])).await;
        clients.push(client);
        assert!(clients.len() < 20, "nothing is counted");
        tokio::task::yield_now().await;
        if daemon.refused("too_much_in_flight").await > 0 {
            break clients.pop().unwrap();
        }
    };
    let mut closed = closed;
    if let Ok((first, payload)) =
        tokio::time::timeout(Duration::from_secs(60), closed.frame()).await
    {
        assert_eq!((first, &payload[..2]), (CLOSE, &1013_u16.to_be_bytes()[..]));
    }
    drop(clients);
    daemon.wait_for_metric("msgbus_server_inflight_bytes", |bytes| bytes == 0).await;
}

/// Answers that had to wait are followed by the operations behind them, without anything else that wakes the session.
#[tokio::test]
async fn operations_behind_many_answers_begin_when_those_are_written() {
    const COUNT: usize = 20_000;
    let daemon = Daemon::with(|config| config.timeouts.ping = Duration::from_secs(3600));
    let mut client = daemon.client().await;
    let mut lines = String::new();
    for rid in 0..COUNT {
        lines.push_str(&format!("{{\"op\":\"ping\",\"rid\":{rid}}}\n"));
    }
    client.send_text(lines).await;
    for rid in 0..COUNT {
        assert_eq!(client.line().await["rid"], rid);
    }
}

/// 6.8, 16.4: a busy subscription holds up no operation.
#[tokio::test]
async fn operations_begin_while_a_subscription_always_has_messages() {
    const COUNT: u64 = 4_000;
    // On a thread of its own, so that the client reads meanwhile.
    let daemon = Daemon::on_threads(1, |_| {});
    for _ in 0..COUNT {
        daemon.bus.put(&"t".parse().unwrap(), vec![b'x'; 10_000]).unwrap();
    }
    let Connection(stream) = daemon.raw_v1().await;
    let (mut reader, mut writer) = stream.into_split();
    let sub = "{\"op\":\"sub\",\"sid\":1,\"topic\":\"t\",\"since\":\"all\"}";
    writer.write_all(&frame(TEXT, sub)).await.unwrap();
    let mut bytes = vec![0; 256 << 10];
    assert!(soon(reader.read(&mut bytes)).await.unwrap() > 0);
    let unsub = "{\"op\":\"unsub\",\"sid\":1,\"rid\":\"over\"}";
    writer.write_all(&frame(TEXT, unsub)).await.unwrap();
    // The client reads as fast as it can, so that the server need not wait for it. Nothing follows the answer.
    let answer = b"{\"op\":\"ok\",\"rid\":\"over\",\"sid\":1}\n";
    let mut tail = Vec::new();
    while !tail.ends_with(answer) {
        let count = soon(reader.read(&mut bytes)).await.unwrap();
        assert!(count > 0);
        tail.extend_from_slice(&bytes[..count]);
        tail.drain(..tail.len().saturating_sub(answer.len()));
    }
    let delivered = daemon.metric("msgbus_bus_delivered").await;
    // What the buffers of both sockets hold comes before the answer.
    assert!(delivered < COUNT / 2, "{delivered}");
}

/// A worker whose client does not read is not the first in the queue of its group.
#[tokio::test]
async fn a_client_that_does_not_read_holds_up_no_group() {
    // So long that the client is not disconnected.
    let daemon = Daemon::with(|config| {
        config.timeouts.write = Duration::from_secs(3600);
        config.timeouts.ping = Duration::from_secs(3600);
    });
    let mut stuck = daemon.slow_v1(4096).await;
    let work = r#"{"op":"sub","sid":2,"topic":"jobs","group":"g","credit":1}"#;
    stuck
        .write(&frame(TEXT, format!("{{\"op\":\"sub\",\"sid\":1,\"topic\":\"t\"}}\n{work}")))
        .await;
    daemon.wait_for_metric(OPERATIONS, |count| count == 2).await;
    let mut client = daemon.client().await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "t", "payload": "text"})).await;
    let large = "x".repeat(100_000);
    for _ in 0..100 {
        daemon.put("/t", &large).await;
        assert_eq!(payload(&client.line().await), large);
    }
    client.ok(json!({"op": "sub", "sid": 3, "topic": "jobs", "group": "g", "credit": 10})).await;
    // The other worker may get the first, if its client was not blocked yet.
    daemon.put("/jobs", "0").await;
    daemon.put("/jobs", "1").await;
    let mut id = 0;
    while id < 1 {
        let job = client.line().await;
        assert_eq!(job["sid"], 3);
        id = job["id"].as_u64().unwrap();
    }
}

#[tokio::test]
async fn the_rest_of_a_message_must_arrive_in_time() {
    let daemon = Daemon::with(|config| {
        config.timeouts.body = Duration::from_millis(200);
        config.timeouts.ping = Duration::from_secs(3600);
    });
    let frame_of_text = frame(FIRST_OF_TEXT, br#"{"op":"ping","#);
    let mut part_of_a_frame = daemon.raw_v1().await;
    part_of_a_frame.write(&frame_of_text[..frame_of_text.len() - 1]).await;
    let (first, payload) = soon(part_of_a_frame.frame()).await;
    assert_eq!((first, &payload[..2]), (CLOSE, &1008_u16.to_be_bytes()[..]));

    let mut part_of_a_message = daemon.raw_v1().await;
    part_of_a_message.write(&frame_of_text).await;
    let payload = loop {
        // A ping is not a part of the message.
        part_of_a_message.write(&frame(PING, "x")).await;
        match soon(part_of_a_message.frame()).await {
            (CLOSE, payload) => break payload,
            (first, _) => assert_eq!(first, PONG),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(payload[..2], 1008_u16.to_be_bytes());
    assert_eq!(daemon.refused("body_timeout").await, 2);
}
