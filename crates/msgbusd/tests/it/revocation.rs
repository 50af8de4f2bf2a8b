//! Section 13: what a reload of the keys ends, and what it leaves alone.

use std::{fs, time::Duration};

use msgbusd::auth::{KeyFile, NewKey};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use crate::{
    keys::{File, bearer, follow, key, request, wait_for_message},
    support::{Daemon, soon},
};

#[tokio::test]
async fn a_reload_closes_only_subscriptions_that_are_no_longer_allowed() {
    let (stays, goes) = (key("stays", &["subscribe:**"]), key("goes", &["subscribe:**", "pull:t"]));
    let file = File::new(&["subscribe:public"], &[&stays, &goes]);
    let daemon = file.daemon();
    let reload = || daemon.keyring.as_ref().unwrap().reload();

    let mut staying = follow(&daemon, "/t", &stays).await;
    let mut going = follow(&daemon, "/t", &goes).await;
    let mut anonymous = daemon.subscribe("/public").await;
    let mut streams = Vec::new();
    for (form, all) in [("sse", "YWxs"), ("ndjson", "YWxs"), ("raw", "all\n")] {
        let mut stream = daemon.connect().await;
        stream.write(request("GET", &format!("/t?stream={form}"), &goes).as_bytes()).await;
        stream.read_until(b"\r\n\r\n").await;
        streams.push((stream, all));
    }
    let mut waiting = wait_for_message(&daemon, &goes).await;

    fs::write(file.path(), "[anonymous]\nallow = [\"pull\"]\n").unwrap();
    let error = reload().unwrap_err().to_string();
    assert!(error.contains("keys.toml:2: anonymous: \"pull\""), "{error}");
    file.write(&["subscribe:public"], &[&stays, &goes]);
    reload().unwrap();
    daemon.bus.put(&"t".parse().unwrap(), "all").unwrap();
    assert_eq!(staying.message().await.payload(), "all");
    assert_eq!(going.message().await.payload(), "all");
    for (stream, all) in &mut streams {
        stream.read_until(all.as_bytes()).await;
    }
    let taken = waiting.read_until(b"\r\n\r\n").await;
    assert!(taken.starts_with(b"HTTP/1.1 200 "), "the one that waited has it");
    let mut waiting = wait_for_message(&daemon, &goes).await;

    file.write(&[], &[&stays]);
    reload().unwrap();
    daemon.bus.put(&"t".parse().unwrap(), "not for all").unwrap();
    daemon.bus.put(&"public".parse().unwrap(), "not for all").unwrap();
    assert_eq!(staying.message().await.payload(), "not for all");
    for subscriber in [&mut going, &mut anonymous] {
        assert_eq!(subscriber.close_code().await, CloseCode::from(4403));
    }
    let farewells = ["event: revoked\ndata: {}\n\n", "{\"event\":\"revoked\"}\n", ""];
    for ((mut stream, _), last) in streams.into_iter().zip(farewells) {
        let rest = String::from_utf8(stream.read_until(b"0\r\n\r\n").await).unwrap();
        assert!(!rest.contains("not for all"), "{rest}");
        assert!(rest.contains(last), "{rest}");
    }
    let ended = waiting.read_until(b"\r\n\r\n").await;
    assert!(ended.starts_with(b"HTTP/1.1 204 "), "{ended:?}");
    daemon.send("GET", "/t?peek", &[&bearer(&goes)], b"").await.refuses(401, "invalid key");
}

#[tokio::test]
async fn a_key_that_loses_a_grant_keeps_the_others() {
    let made = key("k", &["subscribe:a", "subscribe:b"]);
    let file = File::new(&[], &[&made]);
    let daemon = file.daemon();
    let (mut a, mut b) = (follow(&daemon, "/a", &made).await, follow(&daemon, "/b", &made).await);
    let text = fs::read_to_string(file.path()).unwrap().replace("\"subscribe:a\", ", "");
    fs::write(file.path(), text).unwrap();
    daemon.keyring.as_ref().unwrap().reload().unwrap();
    assert_eq!(a.close_code().await, CloseCode::from(4403));
    daemon.bus.put(&"b".parse().unwrap(), "x").unwrap();
    assert_eq!(b.message().await.payload(), "x");
}

/// Revokes the key of a subscriber that has read a part of a message and reads no more; asserts that it is cut.
async fn revoke_in_the_middle<S: AsyncRead + Unpin>(
    follow: impl AsyncFnOnce(&Daemon, &NewKey) -> S,
) {
    let made = key("goes", &["subscribe:t"]);
    let file = File::new(&[], &[&made]);
    let daemon = Daemon::on_threads(2, |config| {
        config.keys = Some(KeyFile::read(file.path()).unwrap());
        config.timeouts.write = Duration::from_secs(3600);
        config.timeouts.drain = Duration::from_secs(3600);
    });
    let mut stream = follow(&daemon, &made).await;
    // More than the system's buffers hold.
    let payload = vec![b'x'; 32 << 20];
    daemon.bus.put(&"t".parse().unwrap(), payload.clone()).unwrap();
    soon(async {
        while daemon.bus.stats().counters.delivered == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    file.write(&[], &[]);
    daemon.keyring.as_ref().unwrap().reload().unwrap();
    soon(async {
        while daemon.bus.stats().subscribers > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // Until the connection is gone, too.
    assert_eq!(soon(daemon.stop()).await.unwrap().cut, 0);
    let (mut buffer, mut received) = (vec![0; 1 << 20], 0);
    // A reset is an end, too.
    while let Ok(count @ 1..) = soon(stream.read(&mut buffer)).await {
        received += count;
    }
    assert!(received < payload.len(), "{received}");
}

#[tokio::test]
async fn a_revoked_websocket_is_cut_in_the_middle_of_a_message_that_it_does_not_read() {
    revoke_in_the_middle(async |daemon, key| follow(daemon, "/t?raw", key).await.0.into_inner())
        .await;
}

#[tokio::test]
async fn a_revoked_stream_is_cut_in_the_middle_of_a_message_that_it_does_not_read() {
    revoke_in_the_middle(async |daemon, key| {
        let mut stream = TcpStream::connect(daemon.address).await.unwrap();
        let secret = &key.secret;
        let request = format!(
            "GET /t?stream=raw HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        soon(stream.read_exact(&mut status)).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
        stream
    })
    .await;
}

/// Repeated, because the sessions are in a different state each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_message_published_after_a_reload_is_delivered() {
    let key = key("goes", &["subscribe:t"]);
    let file = File::new(&[], &[&key]);
    let daemon = file.daemon();
    let keyring = daemon.keyring.clone().unwrap();
    for _ in 0..1_500 {
        file.write(&[], &[&key]);
        keyring.reload().unwrap();
        let mut going = follow(&daemon, "/t?raw", &key).await;
        file.write(&[], &[]);
        let (keyring, bus) = (keyring.clone(), daemon.bus.clone());
        let publisher = tokio::task::spawn_blocking(move || {
            let topic = "t".parse().unwrap();
            for _ in 0..20 {
                bus.put(&topic, "before").unwrap();
            }
            keyring.reload().unwrap();
            bus.put(&topic, "after").unwrap();
        });
        while let Message::Binary(payload) = going.frame().await {
            assert_eq!(payload, "before");
        }
        publisher.await.unwrap();
    }
}

#[tokio::test]
async fn a_body_that_arrives_after_its_key_is_revoked_is_not_published() {
    let (gone, less) = (key("gone", &["publish:t"]), key("less", &["publish:t"]));
    let file = File::new(&[], &[&gone, &less]);
    let daemon = file.daemon();
    let mut connections = Vec::new();
    for (key, status) in [(&gone, 401), (&less, 403)] {
        let mut connection = daemon.connect().await;
        let head = format!(
            "PUT /t HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n\
             Content-Length: 4\r\n{}\r\n\r\n",
            bearer(key)
        );
        connection.write(head.as_bytes()).await;
        // It was authorized: the server asks for the body.
        connection.read_until(b"100 Continue\r\n\r\n").await;
        connections.push((connection, status));
    }
    let text = less.lines.replace("publish:t", "publish:u");
    fs::write(file.path(), text).unwrap();
    daemon.keyring.as_ref().unwrap().reload().unwrap();
    for (mut connection, status) in connections {
        connection.write(b"late").await;
        assert_eq!(connection.reply().await.status, status);
    }
    assert!(daemon.bus.topics().is_empty());
}
