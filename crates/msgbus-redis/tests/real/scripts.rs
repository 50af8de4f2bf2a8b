//! Servers whose scripts somebody removes.

use msgbus_core::{
    NewMessage,
    engine::{Engine as _, EngineError, Receipt},
};
use msgbus_engine_testkit::{fresh, soon};
use msgbus_redis::{Acknowledge, RedisOptions};

use crate::server::{Redis as _, Server, programs};

/// Those with idempotency keys are calls of their own, which are sent together.
#[tokio::test]
async fn publishes_load_the_script_again() {
    for program in programs() {
        for acknowledge in [Acknowledge::Server, Acknowledge::Replicas(0)] {
            let server = Server::start(&program);
            let engine = server.engine(RedisOptions { acknowledge, ..server.options() }).await;
            let topic = fresh("scripts");
            let publish = |number: u64| {
                let message = NewMessage::new("x");
                let key = number.to_string();
                engine.publish(&topic, vec![message.header("idempotency-key", &key).unwrap()])
            };
            let mut next = 1;
            for count in [1, 20, 1, 20] {
                server.ask("SCRIPT FLUSH").await;
                // No task runs before all of them wait.
                let answers: Vec<_> = (next..next + count).map(publish).collect();
                for answer in answers {
                    let Receipt { first, last, .. } = soon(answer).await.unwrap();
                    assert_eq!((first, last), (next, next));
                    next += 1;
                }
            }
            assert_eq!(engine.health().reconnects, 0);
        }
    }
}

/// As long as the user may not load them.
#[tokio::test]
async fn what_cannot_be_loaded_again_is_not_done() {
    for program in programs() {
        for acknowledge in [Acknowledge::Server, Acknowledge::Replicas(0)] {
            let server = Server::start(&program);
            server.ask("ACL SETUSER bus on >secret ~* &* +@all").await;
            let url = format!("redis://bus:secret@127.0.0.1:{}", server.port());
            let options = RedisOptions { url, acknowledge, ..server.options() };
            let engine = server.engine(options).await;
            let topic = fresh("denied");
            server.ask("ACL SETUSER bus -script").await;
            server.ask("SCRIPT FLUSH").await;
            let answers: Vec<_> =
                (0..3).map(|_| engine.publish(&topic, vec!["x".into()])).collect();
            for answer in answers {
                assert_eq!(soon(answer).await, Err(EngineError::Unavailable));
            }
            server.ask("ACL SETUSER bus +script").await;
            let receipt = soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
            assert_eq!((receipt.first, engine.health().reconnects), (1, 0));
        }
    }
}
