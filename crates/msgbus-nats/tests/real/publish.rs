//! What is published together: how much waits, in which order it is sent, and when it is answered.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use futures_util::{
    FutureExt as _, StreamExt as _, TryFutureExt as _, future::join_all, poll,
    stream::FuturesUnordered,
};
use msgbus_core::engine::Begin;
use msgbus_engine_testkit::{Proxy, SOON};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinSet, yield_now},
    time::{Instant, timeout},
};

use super::*;

/// More messages than may be unacknowledged at a time, in one batch and in several.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_batches_do_not_block_each_other() {
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { timeout: Duration::from_secs(20), ..server.options() };
        let engine = server.engine(options).await;
        let topic = fresh("batches");
        let mut publishing = JoinSet::new();
        for count in [6000, 1000, 1000, 1000, 1000, 1000, 1000, 1, 1] {
            let messages = (0..count).map(|n: usize| NewMessage::new(n.to_string())).collect();
            let published = engine.publish(&topic, messages);
            publishing.spawn(async move { (count as u64, published.await) });
        }
        for (count, published) in soon(publishing.join_all()).await {
            let receipt = published.unwrap();
            assert!(receipt.last - receipt.first + 1 >= count, "{receipt:?}");
        }
        let stats = soon(engine.stats(&topic)).await.unwrap().unwrap();
        assert_eq!(stats.retained, 12_002);
    }
}

/// What was asked for is done, whether or not somebody waits for the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_is_published() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let topic = fresh("forgotten");
        let batch = |count: usize| (0..count).map(|_| NewMessage::new("x")).collect();
        for count in [1, 1, 600, 1, 1] {
            let mut publishing = engine.publish(&topic, batch(count));
            assert!(publishing.as_mut().now_or_never().is_none());
        }
        let all = async {
            while soon(engine.stats(&topic)).await.unwrap().is_none_or(|stats| stats.retained < 604)
            {
                sleep(Duration::from_millis(10)).await;
            }
        };
        soon(all).await;
    }
}

/// The engine answers, whatever has become of its runtime.
#[test]
fn publishes_are_answered_when_the_runtime_has_ended() {
    for program in programs() {
        let server = Server::start(&program);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let topic = fresh("end");
        let engine = runtime.block_on(async {
            let engine = server.engine(server.options()).await;
            soon(engine.publish(&topic, vec![NewMessage::new("x")])).await.unwrap();
            engine
        });
        let mut before = engine.publish(&topic, vec![NewMessage::new("x")]);
        drop(runtime);
        let after = engine.publish(&topic, vec![NewMessage::new("x")]);
        let answered = before.as_mut().now_or_never();
        assert!(answered.is_some(), "{answered:?}");
        assert_eq!(after.now_or_never(), Some(Err(EngineError::Closed)));
    }
}

/// The same for all others: what was on its way may have been done.
#[test]
fn operations_are_answered_when_the_runtime_has_ended() {
    for program in programs() {
        let server = Server::start(&program);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (topic, group) = (fresh("end"), "workers".parse().unwrap());
        let engine = runtime.block_on(server.engine(server.options()));
        let delete = || engine.delete(&topic);
        let move_group = || engine.set_group(&topic, &group, Some(Begin::First));
        let settle =
            || engine.settle(&topic, Some(&group), Vec::new(), &Settlement::Ack).map_ok(drop);
        server.signal("-STOP");
        let before = (delete(), move_group(), settle());
        drop(runtime);
        let (unknown, closed) = (EngineError::Unknown, EngineError::Closed);
        assert_eq!(before.0.now_or_never(), Some(Err(unknown)));
        assert_eq!(before.1.now_or_never(), Some(Err(unknown)));
        assert_eq!(before.2.now_or_never(), Some(Err(unknown)));
        assert_eq!(delete().now_or_never(), Some(Err(closed)));
        assert_eq!(move_group().now_or_never(), Some(Err(closed)));
        assert_eq!(settle().now_or_never(), Some(Err(closed)));
    }
}

/// A server that is silent takes no more at some time. All are answered soon, not one after the other.
#[tokio::test]
async fn what_cannot_be_sent_is_answered_in_time() {
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { timeout: Duration::from_secs(1), ..server.options() };
        let engine = server.engine(options).await;
        let (topic, large) = (fresh("full"), bytes::Bytes::from(vec![0; 16 << 10]));
        until_ok(|| engine.publish(&topic, vec!["x".into()])).await;
        server.signal("-STOP");
        let publish = |_| engine.publish(&topic, vec![NewMessage::new(large.clone())]);
        let all = join_all((0..4000).map(publish));
        let answers = timeout(Duration::from_secs(30), all).await.unwrap();
        server.signal("-CONT");
        let is_expected = |answer: &Result<_, _>| {
            let error = *answer.as_ref().unwrap_err();
            matches!(error, EngineError::Unknown | EngineError::Busy | EngineError::Unavailable)
        };
        assert!(answers.iter().all(is_expected), "{answers:?}");
    }
}

/// What waits takes memory, whether or not somebody waits for the answer. The only thread sends nothing meanwhile.
#[tokio::test]
async fn no_more_waits_than_may_although_callers_give_up() {
    const MOST: u64 = 4096;
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let topic = fresh("given-up");
        for _ in 0..MOST {
            drop(engine.publish(&topic, vec!["x".into()]));
        }
        let refused = engine.publish(&topic, vec!["x".into()]).now_or_never();
        assert_eq!(refused, Some(Err(EngineError::Busy)));
        let all = async {
            // It is one of the operations, too.
            while !matches!(engine.stats(&topic).await, Ok(Some(stats)) if stats.retained == MOST) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        soon(all).await;
        soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
    }
}

/// After a connection was lost, some come while the stream is looked for, and others when it is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_is_kept_while_the_stream_is_looked_for() {
    const COUNT: usize = 500;
    for program in programs() {
        let server = Server::start(&program);
        let proxy = Proxy::to(server.port(), Duration::from_millis(5)).await;
        let options =
            NatsOptions { servers: format!("nats://{}", proxy.address), ..server.options() };
        let engine = server.engine(options).await;
        let topic = fresh("order");
        for turn in 1..=3 {
            proxy.cut();
            let (mut publishing, mut published) = (FuturesUnordered::new(), Vec::new());
            let start = Instant::now();
            for number in 0.. {
                assert!(start.elapsed() < SOON, "it does not connect again");
                let mut publish = engine.publish(&topic, vec!["x".into()]);
                if poll!(publish.as_mut()).is_pending() {
                    publishing.push(async move { (number, publish.await) });
                }
                while let Some(Some((number, answer))) = publishing.next().now_or_never() {
                    // While there is no connection, it is refused.
                    published.extend(answer.ok().map(|receipt| (number, receipt.first)));
                }
                if engine.health().reconnects >= turn && published.len() > COUNT {
                    break;
                }
                yield_now().await;
            }
            published.sort_unstable();
            assert!(published.is_sorted_by_key(|(_, id)| *id), "{published:?}");
        }
    }
}

/// A way to a server. On the first connection, little comes through at a time. It counts what has.
pub(super) async fn narrow(port: u16) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, passed) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&passed);
    tokio::spawn(async move {
        let mut narrow = Some(count);
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
            let narrow = narrow.take();
            tokio::spawn(async move {
                let Some(count) = narrow else {
                    let _ = tokio::io::copy(&mut near_read, &mut far_write).await;
                    return;
                };
                let mut buffer = [0; 4096];
                while let Ok(size @ 1..) = near_read.read(&mut buffer).await {
                    far_write.write_all(&buffer[..size]).await.unwrap();
                    count.fetch_add(size, Relaxed);
                    sleep(Duration::from_millis(4)).await;
                }
            });
        }
    });
    (address, passed)
}

/// More waits than the connection takes in a long time. The first of it is answered when the server has it.
#[tokio::test]
async fn acknowledgements_are_heard_while_much_is_sent() {
    for program in programs() {
        let server = Server::start(&program);
        let (address, passed) = narrow(server.port()).await;
        let options = NatsOptions {
            servers: format!("nats://{address}"),
            timeout: Duration::from_secs(20),
            ..server.options()
        };
        let engine = server.engine(options).await;
        let (topic, large) = (fresh("narrow"), bytes::Bytes::from(vec![0; 16 << 10]));
        let first = engine.publish(&topic, vec!["first".into()]);
        let others: Vec<_> = (0..4000)
            .map(|_| engine.publish(&topic, vec![NewMessage::new(large.clone())]))
            .collect();
        soon(first).await.unwrap();
        let passed = passed.load(Relaxed);
        assert!(passed < 4 << 20, "{passed} bytes have passed before");
        drop(others);
    }
}
