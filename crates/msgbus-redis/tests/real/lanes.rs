//! Publishes that leave from several runtimes, each on a connection of its own.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use msgbus_core::{
    BatchLimit,
    engine::{Begin, Engine as _},
};
use msgbus_engine_testkit::{
    fresh,
    runtimes::{publish, published, runtimes},
    soon,
};
use msgbus_redis::{RedisEngine, RedisOptions};
use tokio::{runtime::Runtime, time::sleep};

use crate::server::{Redis as _, Server, programs};

const ALL: BatchLimit = BatchLimit { events: 10_000, bytes: 10 << 20 };

async fn engine_on(server: &Server, runtimes: &[Runtime]) -> Arc<RedisEngine> {
    let publish_from = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
    Arc::new(server.engine(RedisOptions { publish_from, ..server.options() }).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_runtime_has_a_connection_and_the_order_of_its_own_publishes() {
    const EACH: usize = 300;
    for program in programs() {
        let server = Server::start(&program);
        let runtimes = runtimes(3);
        let engine = engine_on(&server, &runtimes[..2]).await;
        let (topic, before) = (fresh("lanes"), server.connections().await);
        let tasks: Vec<_> = runtimes
            .iter()
            .enumerate()
            .map(|(lane, runtime)| {
                let (engine, topic) = (Arc::clone(&engine), topic.clone());
                runtime.spawn(async move {
                    let publish = |n| engine.publish(&topic, vec![format!("{lane} {n}").into()]);
                    let answers: Vec<_> = (0..EACH).map(publish).collect();
                    for answer in answers {
                        answer.await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            soon(task).await.unwrap();
        }
        let page = soon(engine.history(&topic, Begin::First, ALL)).await.unwrap();
        let texts: Vec<_> = page
            .messages
            .iter()
            .map(|message| String::from_utf8(message.message.payload.to_vec()).unwrap())
            .collect();
        assert_eq!(texts.len(), 3 * EACH);
        for lane in 0..3 {
            let of_lane = |text: &&String| text.starts_with(&format!("{lane} "));
            let expected = (0..EACH).map(|n| format!("{lane} {n}"));
            assert!(texts.iter().filter(of_lane).cloned().eq(expected), "lane {lane}");
        }
        let connections = server.connections().await;
        assert_eq!(connections.difference(&before).count(), 2, "the third has that of the engine");
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_topics_of_a_runtime_share_its_connection() {
    for program in programs() {
        let server = Server::start(&program);
        let runtimes = runtimes(1);
        let engine = engine_on(&server, &runtimes).await;
        let before = opened(&server).await;
        let publishing = Arc::clone(&engine);
        let answers = runtimes[0].spawn(async move {
            let publish = |_| publishing.publish(&fresh("one/of/many"), vec!["x".into()]);
            join_all((0..200).map(publish)).await
        });
        for answer in soon(answers).await.unwrap() {
            answer.unwrap();
        }
        // The client that asks opens one, too.
        assert_eq!(opened(&server).await - before, 2);
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

/// How many connections the server has had.
async fn opened(server: &Server) -> u64 {
    let info = server.read("INFO stats").await;
    let opened = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    opened.unwrap().trim().parse().unwrap()
}

/// Also what nobody waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_is_published_when_the_engine_has_finished() {
    const COUNT: usize = 1000;
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let topic = fresh("finish");
        for n in 0..COUNT {
            drop(engine.publish(&topic, vec![format!("{n}").into()]));
        }
        soon(engine.finish()).await.unwrap();
        let other = server.engine(server.options()).await;
        let stats = soon(other.stats(&topic)).await.unwrap().unwrap();
        assert_eq!(stats.retained, COUNT as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_lost_is_made_again() {
    for program in programs() {
        let server = Server::start(&program);
        let runtimes = runtimes(2);
        let engine = engine_on(&server, &runtimes).await;
        let topic = fresh("lost");
        for round in 0..3 {
            let before = server.connections().await;
            for runtime in &runtimes {
                published(runtime, &engine, &topic, &format!("{round}")).await;
            }
            for id in server.connections().await.difference(&before) {
                server.ask(&format!("CLIENT KILL ID {id}")).await;
            }
        }
        for runtime in &runtimes {
            published(runtime, &engine, &topic, "last").await;
        }
        let stats = soon(engine.stats(&topic)).await.unwrap().unwrap();
        assert_eq!(stats.retained, 8, "each once");
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Then its publishes leave with those of the engine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_needs_no_connection_of_its_own() {
    for program in programs() {
        let server = Server::start(&program);
        let runtimes = runtimes(2);
        let engine = engine_on(&server, &runtimes).await;
        let topic = fresh("full");
        let mut client = server.client().await;
        let count: String =
            redis::cmd("CLIENT").arg("LIST").query_async(&mut client).await.unwrap();
        let limit = count.lines().count();
        let set: String = redis::cmd("CONFIG")
            .arg("SET")
            .arg("maxclients")
            .arg(limit)
            .query_async(&mut client)
            .await
            .unwrap();
        assert_eq!(set, "OK");
        for runtime in &runtimes {
            publish(runtime, &engine, &topic, "x".to_owned()).await.unwrap();
        }
        assert!(engine.health().is_up());
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_may_end() {
    for program in programs() {
        let server = Server::start(&program);
        let mut runtimes = runtimes(2);
        let engine = engine_on(&server, &runtimes).await;
        let topic = fresh("ended");
        for runtime in &runtimes {
            published(runtime, &engine, &topic, "first").await;
        }
        runtimes.pop().unwrap().shutdown_background();
        published(&runtimes[0], &engine, &topic, "second").await;
        soon(async {
            while soon(engine.publish(&topic, vec!["third".into()])).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}
