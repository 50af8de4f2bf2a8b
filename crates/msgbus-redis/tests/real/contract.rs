//! The contract that every engine keeps.

use std::{sync::Arc, time::Duration};

use msgbus_core::engine::Engine;
use msgbus_engine_testkit::conformance::{self, Subject};
use msgbus_redis::{RedisEngine, RedisOptions};

use crate::server::{Redis as _, Server, programs};

fn subject(one: RedisEngine, other: RedisEngine) -> Subject {
    Subject {
        one: Arc::new(one),
        other: Arc::new(other),
        knows_repeats: true,
        knows_ttl: true,
        lease: Duration::from_secs(15),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_keeps_the_contract() {
    for program in programs() {
        let server = Server::start(&program);
        let one = server.engine(server.options()).await;
        let other = server.engine(server.options()).await;
        let subject = subject(one, other);
        conformance::all(&subject).await;
        conformance::messages_gather_while_followers_are_busy(&subject).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_do_not_expire() {
    for program in programs() {
        let server = Server::start(&program);
        let options = RedisOptions { max_age: Some(Duration::from_secs(2)), ..server.options() };
        let engine: Arc<dyn Engine> = Arc::new(server.engine(options).await);
        conformance::dead_letters_do_not_expire(&engine).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_unavailable() {
    for program in programs() {
        let mut server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        server.kill();
        let never = RedisEngine::connect(server.options()).unwrap();
        for engine in [engine, never] {
            conformance::refuses_while_it_is_away(&subject(engine.clone(), engine)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_without_a_runtime_may_block() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = Arc::new(server.engine(server.options()).await);
        conformance::threads_without_a_runtime_may_block(engine).await;
    }
}
