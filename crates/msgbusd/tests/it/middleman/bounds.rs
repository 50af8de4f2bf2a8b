//! Bounds on what one connection may take, slow readers, and the end of the server.

use std::time::Duration;

use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{Broker, message};
use crate::support::{soon, until};

#[tokio::test]
async fn subscriptions_of_a_connection_are_limited() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    for number in 0..1025 {
        peer.command(&format!("SUB t{number}")).await;
    }
    peer.fails("SUB t1024: too many subscriptions: at most 1024 may be open on one connection")
        .await;
    peer.command("EREQ s").await;
    peer.fails("EREQ s: too many subscriptions: at most 1024 may be open on one connection").await;
    peer.command("SUB t7").await;
    peer.command("UNS t8").await;
    peer.command("SUB t1024").await;
    peer.is_idle().await;
    assert_eq!(broker.bus.stats().subscribers, 1025);
}

#[tokio::test]
async fn requests_of_a_connection_are_limited() {
    let broker = Broker::start();
    let (mut server, mut client) = (broker.peer().await, broker.peer().await);
    server.command("EREQ s").await;
    server.is_idle().await;
    for _ in 0..1025 {
        client.command("REQ s").await;
    }
    client
        .fails(
            "REQ s: too many requests: at most 1024 of one connection may wait for their replies",
        )
        .await;
    // The responder has as many as it may have, and gets the next when it has answered one.
    let mut other = broker.peer().await;
    other.send("REQ s\n\nlast\n.\n").await;
    for _ in 0..1024 {
        server.frame().await;
    }
    server.is_idle().await;
    server.command("RES s\r\nrid: 5").await;
    client.frame().await;
    server.gets(&message("REQ s", &other.guid, "", "Rid: 1025\r\n\r\nlast")).await;
}

#[tokio::test]
async fn bodies_and_messages_have_a_limit() {
    let broker = Broker::with(|config| config.max_payload = 1000);
    let mut peer = broker.peer().await;
    peer.command("SUB t").await;
    peer.send(format!("PUB t\n\n{}\n.\n", "x".repeat(1000))).await;
    peer.frame().await;
    peer.send(format!("PUB t\n\n{}\n.\n", "x".repeat(1001))).await;
    peer.fails("PUB t: payload exceeds max-payload-size: at most 1000 bytes are allowed").await;
    for header in [format!("a: {}\n", "x".repeat(8200)), "a: b\n".to_owned() + &" c\n".repeat(9000)]
    {
        peer.send(format!("PUB t\n{header}\n.\n")).await;
        peer.fails("PUB t: the headers of a message have at most 8192 bytes").await;
    }
    for count in [63, 1000] {
        peer.send(format!("PUB t\n{}\n.\n", "a: 1\n".repeat(count))).await;
        peer.fails("PUB t: a message has at most 64 headers").await;
    }
    let mut peer = broker.peer().await;
    peer.send(format!("PUB t\n\n{}", "x".repeat(1000 + (64 << 10)))).await;
    assert_eq!(peer.close().await.unwrap().0, CloseCode::Size);
}

/// What it takes to read a message grows with its length only: others are served meanwhile.
#[tokio::test]
async fn a_value_that_is_folded_for_ever_holds_up_nobody() {
    let broker = Broker::with(|_| {});
    let (mut folding, mut other) = (broker.peer().await, broker.peer().await);
    let folded = format!("PUB t\na:b\n{}\n.\n", " c\n".repeat(300_000));
    for _ in 0..20 {
        folding.send(&*folded).await;
        other.is_idle().await;
    }
    for _ in 0..20 {
        folding.fails("PUB t: the headers of a message have at most 8192 bytes").await;
    }
}

/// The rest of a message has to come in time.
#[tokio::test]
async fn half_a_message_ends_at_the_limit() {
    let broker = Broker::with(|config| config.timeouts.body = Duration::from_millis(200));
    let mut raw = broker.raw().await;
    raw.write(&[&[0x81, 0x83, 0, 0, 0, 0][..], b"any"].concat()).await;
    raw.frame().await;
    raw.frame().await;
    raw.write(&[&[0x81, 0xfe, 1, 0, 0, 0, 0, 0][..], b"PUB t"].concat()).await;
    let (first, payload) = raw.frame().await;
    assert_eq!((first, &payload[..2]), (0x88, &1008u16.to_be_bytes()[..]));
}

#[tokio::test]
async fn publishing_has_a_rate() {
    let broker = Broker::with(|config| config.publish_rate = std::num::NonZeroU32::new(1));
    let mut peer = broker.peer().await;
    peer.command("SUB t").await;
    peer.send("PUB t\n\n1\n.\n").await;
    peer.send("PUB t\n\n2\n.\n").await;
    let guid = peer.guid.clone();
    let (one, other) = (peer.frame().await, peer.frame().await);
    let published = message("PUB t", &guid, "", "\r\n1");
    let refused = "PUB ERROR\r\n\r\nPUB t: too many messages: retry in 1 s\r\n.\r\n";
    assert!([&one, &other].contains(&&published), "{one} {other}");
    assert!([&*one, &*other].contains(&refused), "{one} {other}");
}

/// A client that reads nothing holds up nobody, misses what its topic no longer has, and is told how much.
#[tokio::test]
async fn a_slow_reader_misses_messages_and_is_told() {
    let broker = Broker::with(|config| config.bus.topic.max_messages = 10);
    let (mut slow, mut quick) = (broker.peer().await, broker.peer().await);
    slow.command("SUB t").await;
    slow.is_idle().await;
    quick.command("SUB t").await;
    quick.is_idle().await;
    let body = "x".repeat(100_000);
    let total = 400;
    for _ in 0..total {
        quick.send(format!("PUB t\n\n{body}\n.\n")).await;
        assert!(quick.frame().await.ends_with(".\r\n"));
    }
    let (mut got, mut missed) = (0, 0);
    while got + missed < total {
        let frame = slow.frame().await;
        match frame.strip_prefix("PUB ERROR\r\n\r\nSUB t: ") {
            Some(text) => {
                let count = text.strip_suffix(" messages were missed\r\n.\r\n").unwrap();
                missed += count.parse::<usize>().unwrap();
            }
            None => got += 1,
        }
    }
    assert!(missed > 0, "the buffers of the system have taken {got}");
    assert_eq!(got + missed, total);
    slow.is_idle().await;
}

/// One that reads nothing at all is disconnected, and others get its requests meanwhile.
#[tokio::test]
async fn a_stuck_reader_is_disconnected() {
    let broker = Broker::with(|config| config.timeouts.write = Duration::from_millis(500));
    let mut stuck = broker.peer().await;
    stuck.command("SUB t").await;
    stuck.is_idle().await;
    let mut quick = broker.peer().await;
    let body = "x".repeat(500_000);
    soon(async {
        while broker.bus.stats().subscribers == 3 {
            quick.send(format!("PUB t\n\n{body}\n.\n")).await;
            quick.is_idle().await;
        }
    })
    .await;
    assert_eq!(broker.metric("msgbus_server_timeouts_total{which=\"write\"}").await, 1);
}

#[tokio::test]
async fn the_drain_ends_requests_and_closes_properly() {
    let broker = Broker::start();
    let (mut server, mut client) = (broker.peer().await, broker.peer().await);
    server.command("EREQ s").await;
    server.is_idle().await;
    client.command("REQ s").await;
    server.frame().await;
    let mut keyless = broker.raw().await;
    let Broker { daemon, .. } = broker;
    let stopped = daemon.stop();
    client.fails("REQ s: the bus is closed").await;
    for peer in [&mut server, &mut client] {
        let (code, why) = peer.close().await.unwrap();
        assert_eq!((code, &*why), (CloseCode::Away, "the server is shutting down"));
    }
    assert_eq!(keyless.rest().await, b"");
    drop((server, client));
    let drained = soon(stopped).await.unwrap();
    assert_eq!(drained.cut, 0);
}

/// Connections come and go, and leave nothing.
#[tokio::test]
async fn connections_leave_nothing() {
    let broker = Broker::start();
    for _ in 0..20 {
        let mut peer = broker.peer().await;
        for line in ["SUB t", "EREQ s", "EPUB t", "ESUB t"] {
            peer.command(line).await;
        }
        let private = format!("PUB MSG:{}\n\nx\n.\n", peer.guid);
        peer.send(private).await;
        peer.frame().await;
    }
    until(|| broker.bus.stats().subscribers == 0).await;
    until(|| broker.bus.stats().topics == 0).await;
    let name = "s".parse().unwrap();
    until(|| broker.bus.service(&name).unwrap().responders == 0).await;
}
