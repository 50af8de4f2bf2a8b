//! Limits: half, slow and endless commands, connections that never finish, and calls that are never answered.

use std::time::Duration;

use msgbus_core::BatchLimit;
use msgbus_testkit::name;
use tokio::io::AsyncReadExt as _;

use super::{ALL, Over, daemon, daemon_with, key_of};
use crate::support::{soon, until};

#[tokio::test]
async fn a_command_that_does_not_arrive_ends_the_connection() {
    let daemon = daemon_with(|config| config.timeouts.body = Duration::from_millis(500));
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        peer.is_idle().await;
        peer.send(r#"{"key":"k","action":"#).await;
        assert_eq!(
            peer.text().await,
            r#"{"action":"drs.exception","body":{"message":"The rest of a command did not arrive in time"}}"#
        );
        peer.is_closed().await;
    }
    assert_eq!(daemon.metric(r#"msgbus_server_timeouts_total{which="body"}"#).await, 2);
    // So does a frame.
    let mut connection = daemon.drs_raw(Over::Websocket).await;
    let handshake = crate::support::HANDSHAKE;
    let head = format!("GET /socket HTTP/1.1\r\nHost: localhost\r\n{handshake}\r\n");
    connection.write(head.as_bytes()).await;
    connection.read_until(b"\r\n\r\n").await;
    connection.write(&[0x81, 0xa0, 0, 0, 0, 0, b'{']).await;
    let (first, last) = connection.frame().await;
    assert_eq!(first, 0x81);
    assert!(String::from_utf8(last).unwrap().contains("did not arrive in time"));
}

#[tokio::test]
async fn handshakes_that_never_finish_are_ended() {
    const COUNT: usize = 200;
    let daemon = daemon_with(|config| config.timeouts.header = Duration::from_millis(500));
    let mut connections = Vec::new();
    for number in 0..COUNT {
        let mut connection = daemon.drs_raw(Over::Websocket).await;
        let head = "GET /socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n";
        connection.write(&head.as_bytes()[..number % head.len()]).await;
        connections.push(connection);
    }
    for connection in &mut connections {
        assert_eq!(connection.rest().await, b"");
    }
    let timeouts = daemon.metric(r#"msgbus_server_timeouts_total{which="header"}"#).await;
    assert_eq!(timeouts, COUNT as u64);
    // A stream of commands needs none, and may be silent.
    daemon.drs(Over::Tcp).await.is_idle().await;
}

#[tokio::test]
async fn endless_commands_and_frames_need_no_memory() {
    let daemon = daemon_with(|config| config.max_payload = 64 << 10);
    let mut connection = daemon.drs_raw(Over::Tcp).await;
    connection.write(b"{\"body\":\"").await;
    for _ in 0..64 {
        connection.write(&[b'x'; 16 << 10]).await;
    }
    let last = String::from_utf8(connection.rest().await).unwrap();
    assert!(last.is_empty() || last.contains("at most 131072 bytes are read"), "{last}");
    let mut peer = daemon.drs(Over::Websocket).await;
    peer.send(&format!("{{\"body\":\"{}", "x".repeat(100 << 10))).await;
    peer.send(&"x".repeat(100 << 10)).await;
    assert!(peer.text().await.contains("Command too large"));
    peer.is_closed().await;
    assert!(daemon.metric(r#"msgbus_server_refused_total{code="payload_too_large"}"#).await >= 2);
}

#[tokio::test]
async fn a_body_is_at_most_a_payload() {
    let daemon = daemon_with(|config| config.max_payload = 1000);
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        peer.on("drs.serve", "s").await;
        let body = "x".repeat(1000);
        peer.gives(
            &format!(r#"{{"key":"k","action":"s","body":"{body}"}}"#),
            r#"{"key":"k","action":"drs.error","body":{"message":"payload exceeds max-payload-size: at most 1000 bytes are allowed"}}"#,
        )
        .await;
        peer.send(r#"{"key":"own","action":"s"}"#).await;
        let key = key_of(&peer.text().await);
        peer.gives(
            &format!(r#"{{"key":"{key}","action":"drs.response","body":"{body}"}}"#),
            r#"{"key":"own","action":"drs.error","body":{"message":"payload exceeds max-payload-size: at most 1000 bytes are allowed"}}"#,
        )
        .await;
        peer.on("drs.off", "s").await;
    }
}

#[tokio::test]
async fn calls_that_wait_are_limited() {
    let daemon = daemon();
    let responder =
        daemon.bus.serve(&name("s"), BatchLimit { events: 2000, bytes: 1 << 20 }).unwrap();
    let mut peer = daemon.drs(Over::Tcp).await;
    for key in 0..1025 {
        peer.send(&format!(r#"{{"key":"{key}","action":"s"}}"#)).await;
    }
    assert_eq!(
        peer.text().await,
        r#"{"key":"1024","action":"drs.exception","body":{"message":"too many requests: at most 1024 of one connection may wait for their replies"}}"#
    );
    drop((peer, responder));
    until(|| daemon.bus.service(&name("s")).is_none_or(|stats| stats.in_hand + stats.queued == 0))
        .await;
}

#[tokio::test]
async fn a_peer_that_answers_nothing_gets_a_limited_number_of_calls() {
    let daemon = daemon();
    let (mut caller, mut stuck) = (daemon.drs(Over::Tcp).await, daemon.drs(Over::Tcp).await);
    stuck.on("drs.serve", "s").await;
    for key in 0..1000 {
        caller.send(&format!(r#"{{"key":"{key}","action":"s"}}"#)).await;
    }
    for _ in 0..256 {
        stuck.text().await;
    }
    let service = name("s");
    until(|| {
        daemon.bus.service(&service).is_some_and(|stats| stats.in_hand + stats.queued == 1000)
    })
    .await;
    assert!(daemon.bus.service(&service).unwrap().in_hand < 256 + 64);
    // Others serve meanwhile.
    let mut other = daemon.drs(Over::Websocket).await;
    other.on("drs.serve", "s").await;
    let key = key_of(&other.text().await);
    other.send(&format!(r#"{{"key":"{key}","action":"drs.response"}}"#)).await;
    caller.text().await;
    // When its calls are over, it gets new ones.
    drop((caller, other));
    let mut caller = daemon.drs(Over::Tcp).await;
    caller.send(r#"{"key":"new","action":"s","body":"new"}"#).await;
    while stuck.value().await["body"] != "new" {}
}

#[tokio::test]
async fn names_are_limited() {
    let daemon = daemon();
    let mut peer = daemon.drs(Over::Tcp).await;
    for number in 0..1024 {
        peer.on(["drs.serve", "drs.subscribe"][number % 2], &format!("n{number}")).await;
    }
    peer.gives(
        r#"{"key":"k","action":"drs.serve","body":"more"}"#,
        r#"{"key":"k","action":"drs.error","body":{"message":"too many subscriptions: at most 1024 may be open on one connection"}}"#,
    )
    .await;
    peer.on("drs.off", "n1").await;
    peer.on("drs.subscribe", "more").await;
    for body in ["[]", "1", "[1]", "null", r#"{"name":"x"}"#] {
        peer.gives(
            &format!(r#"{{"key":"k","action":"drs.serve","body":{body}}}"#),
            r#"{"key":"k","action":"drs.error","body":{"message":"expected a name, or a list of names"}}"#,
        )
        .await;
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_disconnected_and_its_calls_go_elsewhere() {
    let daemon = daemon_with(|config| config.timeouts.write = Duration::from_secs(1));
    let mut stuck = daemon.drs_raw(Over::Tcp).await;
    stuck.write(br#"{"key":"k","action":"drs.subscribe","body":"t"}"#).await;
    let mut answer = [0; 30];
    soon(stuck.0.read_exact(&mut answer)).await.unwrap();
    daemon.subscribers(1).await;
    let body = vec![b'x'; 100_000];
    while daemon.bus.stats().subscribers == 1 {
        daemon.bus.put(&name("t"), body.clone()).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(daemon.metric(r#"msgbus_server_timeouts_total{which="write"}"#).await, 1);
}

#[tokio::test]
async fn a_peer_that_does_not_read_holds_up_no_other_handler() {
    let daemon = daemon_with(|config| config.timeouts.write = Duration::from_secs(300));
    let mut stuck = daemon.drs_raw(Over::Tcp).await;
    stuck.write(br#"{"action":"drs.serve","body":"s"}{"action":"drs.subscribe","body":"t"}"#).await;
    daemon.served("s").await;
    daemon.subscribers(1).await;
    // More than the sockets hold. Then it leaves the queue of the responders when its turn comes.
    let body = vec![b'x'; 100_000];
    for _ in 0..400 {
        daemon.bus.put(&name("t"), body.clone()).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (mut caller, mut other) = (daemon.drs(Over::Tcp).await, daemon.drs(Over::Tcp).await);
    other.on("drs.serve", "s").await;
    for _ in 0..20 {
        caller.send(r#"{"key":"k","action":"s"}"#).await;
        let key = key_of(&other.text().await);
        other.send(&format!(r#"{{"key":"{key}","action":"drs.response"}}"#)).await;
        assert_eq!(caller.text().await, r#"{"key":"k","action":"drs.response"}"#);
    }
}

#[tokio::test]
async fn pings_keep_a_websocket() {
    let daemon = daemon_with(|config| config.timeouts.ping = Duration::from_secs(1));
    let mut connection = daemon.drs_raw(Over::Websocket).await;
    let address = daemon.drs_address(Over::Websocket);
    let handshake = crate::support::HANDSHAKE;
    connection
        .write(format!("GET /socket HTTP/1.1\r\nHost: {address}\r\n{handshake}\r\n").as_bytes())
        .await;
    connection.read_until(b"\r\n\r\n").await;
    // A ping, although nothing else is written.
    let (first, payload) = connection.frame().await;
    assert_eq!(first, 0x89);
    assert!(payload.iter().all(u8::is_ascii_digit));
    // Pings of the client are answered.
    connection.write(&[0x89, 0x82, 0, 0, 0, 0, b'h', b'i']).await;
    loop {
        let (first, payload) = connection.frame().await;
        if first == 0x8a {
            assert_eq!(payload, b"hi");
            break;
        }
    }
}

/// Another one is given the requests that a peer may not have now, also those of other services.
#[tokio::test]
async fn a_peer_that_has_enough_calls_is_not_first() {
    // See MAX_IN_HAND.
    const IN_HAND: usize = 256;
    let daemon = daemon();
    let mut caller = daemon.drs(Over::Tcp).await;
    let (mut full, mut free) = (daemon.drs(Over::Tcp).await, daemon.drs(Over::Tcp).await);
    for service in ["a", "b"] {
        full.on("drs.serve", service).await;
    }
    free.on("drs.serve", "b").await;
    for _ in 0..IN_HAND {
        caller.send(r#"{"key":"k","action":"a"}"#).await;
    }
    let mut keys = Vec::new();
    for _ in 0..IN_HAND {
        keys.push(key_of(&full.text().await));
    }
    for number in 0..2 {
        caller.send(r#"{"key":"k","action":"b"}"#).await;
        let key = key_of(&free.text().await);
        free.send(&format!(r#"{{"key":"{key}","action":"drs.response","body":{number}}}"#)).await;
        assert_eq!(caller.value().await["body"], number);
    }
    // With one call less it is given others again.
    let free_again = format!(r#"{{"key":"{}","action":"drs.response"}}"#, keys[0]);
    full.send(&free_again).await;
    caller.text().await;
    free.on("drs.off", "b").await;
    caller.send(r#"{"key":"k","action":"b"}"#).await;
    full.text().await;
}
