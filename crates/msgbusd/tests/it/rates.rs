//! The publish rate of addresses, unix sockets and keys. docs/operations.md, "Limits".

use std::{
    fs,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use msgbusd::auth::{KeyFile, NewKey};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::{
    bounds::from,
    support::{Connection, Daemon, Reply, soon},
};

fn rate(rate: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(rate)
}

impl Daemon {
    /// Publishes until the rate is exceeded: on a slow machine, a token may be back before the next request.
    async fn put_until_refused(&self, header: &str) -> Reply {
        soon(async {
            loop {
                let reply = self.send("PUT", "/t", &[header], b"x").await;
                if reply.status != 202 {
                    return reply;
                }
            }
        })
        .await
    }
}

const EMPTY_PUT: &[u8] =
    b"PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn an_address_has_a_publish_rate() {
    let daemon = Daemon::with(|config| config.publish_rate = rate(2));
    let problem = daemon.put_until_refused("Accept: application/json").await;
    assert!(problem.text().contains("\"too_many_messages\""), "{problem:?}");
    let refused = daemon.put_until_refused("X: y").await;
    refused.refuses(429, "too many messages: retry in 1 s");
    assert_eq!(refused.number("Retry-After"), 1);
    assert_eq!(daemon.refused("too_many_messages").await, 2);
    assert_eq!(daemon.get("/t").await.status, 200, "pulls are free");

    let mut other = Connection(from(daemon.address.port(), [127, 0, 0, 2].into()).await);
    other.write(EMPTY_PUT).await;
    assert_eq!(other.reply().await.status, 202, "another address");
}

#[tokio::test]
async fn concurrent_batches_do_not_exceed_the_rate() {
    let daemon = Daemon::with(|config| config.publish_rate = rate(100));
    let too_many = daemon.put("/t?split=lines", "x\n".repeat(101)).await;
    too_many.refuses(413, "101 messages, which exceeds the publish rate of 100 per second");

    let start = Instant::now();
    let mut batches = Vec::new();
    for _ in 0..20 {
        let mut connection = daemon.connect().await;
        let head = "PUT /t?split=lines HTTP/1.1\r\nHost: a\r\nContent-Length: 160\r\n";
        connection.write(format!("{head}Connection: close\r\n\r\nx\n").as_bytes()).await;
        batches.push(connection);
    }
    let mut accepted = 0;
    for connection in &mut batches {
        connection.write("x\n".repeat(79).as_bytes()).await;
        match connection.reply().await {
            reply if reply.status == 202 => accepted += 1,
            reply => {
                reply.refuses(429, "too many messages");
                assert_eq!(reply.number("Retry-After"), 1);
            }
        }
    }
    let most = 100 + 100 * (start.elapsed().as_secs() + 1);
    assert!(accepted * 80 <= most, "{accepted} of 80, at most {most}");
    assert_eq!(daemon.bus.stats().counters.published, accepted * 80, "all or none");
    let another = async { while daemon.put("/t", "x").await.status != 202 {} };
    soon(another).await;
}

#[tokio::test]
async fn clients_of_a_unix_socket_without_a_key_share_a_rate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus.sock");
    let daemon = Daemon::with(|config| {
        config.publish_rate = rate(1);
        config.bind.push(msgbusd::Bind::Unix(path.clone()));
    });
    soon(async {
        loop {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(EMPTY_PUT).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            if answer.starts_with("HTTP/1.1 429 ") {
                break;
            }
            assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
        }
    })
    .await;
    assert_eq!(daemon.put("/t", "x").await.status, 202, "an address is another one");
}

#[tokio::test]
async fn after_retry_after_a_publish_is_accepted() {
    let daemon = Daemon::with(|config| config.publish_rate = rate(1));
    let mut accepted = 0;
    soon(async {
        while accepted < 3 {
            let reply = daemon.put("/t", "x").await;
            if reply.status == 202 {
                accepted += 1;
                continue;
            }
            assert_eq!(reply.number("Retry-After"), 1);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(daemon.put("/t", "x").await.status, 202);
            accepted += 1;
        }
    })
    .await;
}

#[tokio::test]
async fn a_rate_refusal_comes_before_the_body_is_read() {
    let daemon = Daemon::with(|config| config.publish_rate = rate(1));
    let head = "PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
    soon(async {
        loop {
            let mut connection = daemon.connect().await;
            connection.write(head.as_bytes()).await;
            let answer = connection.read_until(b"\r\n\r\n").await;
            if answer.starts_with(b"HTTP/1.1 429 ") {
                return;
            }
            assert!(answer.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&answer));
        }
    })
    .await;
}

#[tokio::test]
async fn keys_have_their_own_rates_and_a_reload_keeps_the_buckets() {
    let key = |name| NewKey::make(name, &["publish:**".parse().unwrap()]).unwrap();
    let (slow, plain) = (key("slow"), key("plain"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |rate_of_slow: u32| {
        let anonymous = "[anonymous]\nallow = [\"publish:t\"]\npublish-rate = 1\n";
        let slow = format!("{}publish-rate = {rate_of_slow}\n", slow.lines);
        fs::write(file.path(), format!("{anonymous}{slow}{}", plain.lines)).unwrap();
    };
    write(2);
    let daemon = Daemon::with(|config| {
        config.keys = Some(KeyFile::read(file.path()).unwrap());
        config.publish_rate = rate(5);
    });
    let keyring = daemon.keyring.as_ref().unwrap();
    let batch = async |header: &str| {
        daemon.send("PUT", "/t?split=lines", &[header], "x\n".repeat(10_000).as_bytes()).await
    };
    let bearer = |key: &NewKey| format!("Authorization: Bearer {}", key.secret);
    let (slow, plain, anonymous) = (bearer(&slow), bearer(&plain), "X: y".to_owned());
    for (header, rate) in [(&slow, 2), (&plain, 5), (&anonymous, 1)] {
        batch(header).await.refuses(413, &format!("publish rate of {rate} per second"));
        daemon.put_until_refused(header).await.refuses(429, "too many messages");
    }
    keyring.reload().unwrap();
    // Its tokens are used up for a short time.
    let later = soon(async {
        loop {
            let reply = batch(&slow).await;
            if reply.status != 429 {
                return reply;
            }
        }
    });
    later.await.refuses(413, "publish rate of 2 per second");
    write(1_000_000);
    keyring.reload().unwrap();
    assert_eq!(batch(&slow).await.status, 202, "a new rate begins anew");
}
