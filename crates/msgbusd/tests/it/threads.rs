//! Connections on several threads: what one publishes wakes those on the others. docs/operations.md,
//! "Threads".

use crate::support::{Daemon, soon};

const THREADS: usize = 3;
const MESSAGES: usize = 500;

#[tokio::test]
async fn everyone_on_every_thread_gets_everything_in_order() {
    let daemon = Daemon::on_threads(THREADS);
    let mut subscribers = Vec::new();
    for _ in 0..2 * THREADS {
        subscribers.push(daemon.subscribe("/t").await);
    }
    let mut stream = daemon.connect().await;
    stream.write(b"GET /t?stream=raw HTTP/1.1\r\nHost: x\r\n\r\n").await;
    stream.read_until(b"\r\n\r\n").await;

    // Each publisher is on a thread of its own, and waits for nobody.
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
    let daemon = Daemon::on_threads(THREADS);
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
