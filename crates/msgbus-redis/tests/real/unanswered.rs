//! Publishes whose answer nobody waits for, or that no answer can reach.

use std::time::Duration;

use futures_util::FutureExt as _;
use msgbus_core::{
    BatchLimit, Settlement,
    engine::{Begin, Engine as _, EngineError, Fetch},
};
use msgbus_engine_testkit::{fresh, soon};
use msgbus_redis::{Acknowledge, RedisOptions};
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
    time::sleep,
};

use crate::server::{Redis as _, Server, programs};

/// Each has a queue of its own.
const ACKNOWLEDGE: [Acknowledge; 2] = [Acknowledge::Server, Acknowledge::Replicas(0)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_is_published() {
    for program in programs() {
        for acknowledge in ACKNOWLEDGE {
            let server = Server::start(&program);
            let engine = server.engine(RedisOptions { acknowledge, ..server.options() }).await;
            let topic = fresh("dropped");
            let expected: Vec<String> = (0..100).map(|n| n.to_string()).collect();
            // The first is under way, the others wait for it.
            server.signal("-STOP");
            for text in &expected {
                let publish = engine.publish(&topic, vec![text.clone().into()]);
                assert_eq!(publish.now_or_never(), None);
            }
            server.signal("-CONT");
            let limit = BatchLimit { events: 1000, bytes: 1 << 20 };
            let all = async {
                loop {
                    let page = engine.history(&topic, Begin::First, limit).await.unwrap();
                    if page.messages.len() >= expected.len() {
                        return page.messages;
                    }
                    sleep(Duration::from_millis(10)).await;
                }
            };
            let found = soon(all).await;
            let texts = found.iter().map(|read| str::from_utf8(&read.message.payload).unwrap());
            assert_eq!(texts.collect::<Vec<_>>(), expected);
        }
    }
}

/// What was sent may have been done, unless nothing was to be done.
#[test]
fn after_the_end_of_the_runtime_everything_is_answered() {
    for program in programs() {
        let server = Server::start(&program);
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let engine = runtime.block_on(server.engine(server.options()));
        let (topic, group) = (fresh("ended"), "workers".parse().unwrap());
        let fetch = Fetch {
            limit: BatchLimit::ONE,
            lease: Duration::from_secs(60),
            wait: Duration::from_secs(60),
            from: Begin::First,
        };
        let key = || b"1-1-f".as_slice().into();
        let settle = || engine.settle(&topic, None, vec![key()], &Settlement::Ack);
        let history = || engine.history(&topic, Begin::First, BatchLimit::ONE);
        server.signal("-STOP");
        let (fetched, settled) = (engine.fetch(&topic, None, fetch), settle());
        let (deleted, made) = (engine.delete(&topic), engine.set_group(&topic, &group, None));
        let read = history();
        runtime.block_on(async {
            for _ in 0..100 {
                yield_now().await;
            }
        });
        drop(runtime);
        Runtime::new().unwrap().block_on(async {
            assert_eq!(soon(fetched).await.unwrap_err(), EngineError::Unknown);
            assert_eq!(soon(settled).await.unwrap_err(), EngineError::Unknown);
            assert_eq!(soon(deleted).await, Err(EngineError::Unknown));
            assert_eq!(soon(made).await, Err(EngineError::Unknown));
            assert_eq!(soon(read).await.unwrap_err(), EngineError::Closed);
            assert_eq!(soon(settle()).await.unwrap_err(), EngineError::Closed);
            assert_eq!(soon(history()).await.unwrap_err(), EngineError::Closed);
        });
    }
}

/// No answer can come any more. Nobody waits for one without end.
#[test]
fn after_the_end_of_the_runtime_publishes_are_answered() {
    for program in programs() {
        for acknowledge in ACKNOWLEDGE {
            let server = Server::start(&program);
            let options = RedisOptions { acknowledge, ..server.options() };
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            let engine = runtime.block_on(server.engine(options));
            let topic = fresh("ended");
            let publish = || engine.publish(&topic, vec!["x".into()]);
            server.signal("-STOP");
            let sent = publish();
            // The engine has its turns.
            runtime.block_on(async {
                for _ in 0..100 {
                    yield_now().await;
                }
            });
            let waits = publish();
            drop(runtime);
            let after = publish();
            Runtime::new().unwrap().block_on(async {
                assert_eq!(soon(sent).await, Err(EngineError::Unknown), "it may be there");
                assert_eq!(soon(waits).await, Err(EngineError::Closed));
                assert_eq!(soon(after).await, Err(EngineError::Closed));
                assert_eq!(soon(publish()).await, Err(EngineError::Closed));
            });
        }
    }
}
