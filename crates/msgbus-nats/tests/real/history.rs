//! Reading the past while it changes.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use msgbus_core::{
    BatchLimit, NewMessage,
    engine::{Begin, Engine as _},
};
use msgbus_engine_testkit::{fresh, soon};

use super::{Connect as _, Server, programs};

/// What the server has counted when a read begins may be gone when it delivers. That is no failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_deleted_while_it_is_read_is_empty() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let (topic, is_over) = (fresh("deleted"), AtomicBool::new(false));
        let read = async || {
            let limit = BatchLimit { events: 10, bytes: 1 << 20 };
            while !is_over.load(SeqCst) {
                let page = soon(engine.history(&topic, Begin::First, limit)).await.unwrap();
                assert!(page.messages.len() <= 1, "{page:?}");
            }
        };
        let change = async {
            for _ in 0..300 {
                engine.publish(&topic, vec![NewMessage::new("x")]).await.unwrap();
                engine.delete(&topic).await.unwrap();
            }
            is_over.store(true, SeqCst);
        };
        tokio::join!(read(), read(), read(), read(), change);
    }
}
