//! Connections on several threads: a publish on one wakes subscribers on the others. docs/operations.md, "Threads".

use std::time::Duration;

use msgbus_core::json;

use crate::support::{Connection, Daemon, soon};

const THREADS: usize = 3;
const MESSAGES: usize = 500;

#[tokio::test]
async fn all_subscribers_on_all_threads_get_all_messages_in_order() {
    all_subscribers_get_all_messages(Daemon::on_threads(THREADS, |_| {})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn all_subscribers_get_all_messages_in_order_with_work_stealing() {
    all_subscribers_get_all_messages(Daemon::start()).await;
}

async fn all_subscribers_get_all_messages(daemon: Daemon) {
    let mut subscribers = Vec::new();
    for _ in 0..2 * THREADS {
        subscribers.push(daemon.subscribe("/t").await);
    }
    let mut stream = daemon.connect().await;
    stream.write(b"GET /t?stream=raw HTTP/1.1\r\nHost: x\r\n\r\n").await;
    stream.read_until(b"\r\n\r\n").await;

    // Each publisher runs on its own thread, independent of the others.
    let publish = async {
        for n in 0..MESSAGES {
            assert_eq!(daemon.put("/t", n.to_string()).await.status, 202);
        }
    };
    let follow = async {
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.ids(MESSAGES).await, (0..MESSAGES as u64).collect::<Vec<_>>());
        }
        stream.read_until(format!("{}\n", MESSAGES - 1).as_bytes()).await;
    };
    soon(async { tokio::join!(publish, follow) }).await;
    drop((subscribers, stream));
    assert_eq!(soon(daemon.stop()).await.unwrap().cut, 0);
}

#[tokio::test]
async fn one_message_at_a_time_wakes_every_thread() {
    let daemon = Daemon::on_threads(THREADS, |_| {});
    let mut subscribers = Vec::new();
    for _ in 0..THREADS {
        subscribers.push(daemon.subscribe("/t").await);
    }
    for id in 0..200 {
        daemon.put("/t", "x").await;
        // All have gone back to sleep before the next one is published.
        for subscriber in &mut subscribers {
            assert_eq!(soon(subscriber.message()).await.id(), id);
        }
    }
}

#[tokio::test]
async fn pongs_go_between_messages_and_a_slow_reader_gets_all_in_order() {
    const PUBLISHERS: usize = 3;
    let daemon = Daemon::on_threads(THREADS, |config| {
        config.timeouts.ping = Duration::from_secs(3600);
        config.timeouts.write = Duration::from_secs(3600);
    });
    let mut readers = Vec::new();
    for _ in 0..2 * THREADS {
        readers.push(daemon.raw_websocket("/t").await);
    }
    let mut slow = daemon.raw_websocket("/t").await;
    // More than the system's buffers hold.
    let payload = vec![b'x'; 8 << 10];
    let publish = async || {
        let mut connection = daemon.connect().await;
        for _ in 0..MESSAGES {
            let head = format!("PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 8 << 10);
            connection.write(head.as_bytes()).await;
            connection.write(&payload).await;
            let head = connection.read_until(b"\r\n\r\n").await;
            assert!(head.starts_with(b"HTTP/1.1 202 "));
        }
    };
    let publish = async { tokio::join!(publish(), publish(), publish()) };
    let read = futures_util::future::join_all(
        readers.iter_mut().map(|reader| read_in_order(reader, PUBLISHERS * MESSAGES)),
    );
    soon(async { tokio::join!(publish, read) }).await;
    read_in_order(&mut slow, PUBLISHERS * MESSAGES).await;
}

/// Reads `count` messages without a gap, and at least one pong.
async fn read_in_order(reader: &mut Connection, count: usize) {
    let (mut next, mut pongs) = (0, 0);
    while next < count as u64 || pongs == 0 {
        let (first, payload) = reader.frame().await;
        match first {
            0x81 => {
                assert_eq!(json::read_message(&payload).unwrap().id(), next);
                next += 1;
                if next % 64 == 1 {
                    reader.write(b"\x89\x82\0\0\0\0hi").await;
                }
            }
            0x8a => {
                assert_eq!(payload, b"hi");
                pongs += 1;
            }
            other => panic!("{other:#x}"),
        }
    }
}
