//! Publishes that leave from several runtimes, each on a connection of its own.

use std::{collections::VecDeque, net::SocketAddr};

use msgbus_core::{
    TopicName,
    engine::{Begin, Receipt},
};
use msgbus_engine_testkit::{Proxy, runtimes};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

use super::{publish::narrow, *};

const ALL: BatchLimit = BatchLimit { events: 10_000, bytes: 10 << 20 };

async fn engine_on(server: &Server, address: SocketAddr, runtimes: &[Runtime]) -> Arc<NatsEngine> {
    let publish_from = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
    let servers = format!("nats://{address}");
    Arc::new(server.engine(NatsOptions { servers, publish_from, ..server.options() }).await)
}

/// Publishes from a runtime.
async fn publish(
    from: &Runtime,
    engine: &Arc<NatsEngine>,
    topic: &TopicName,
    text: String,
) -> Result<Receipt, EngineError> {
    let (engine, topic) = (Arc::clone(engine), topic.clone());
    let published = from.spawn(async move { engine.publish(&topic, vec![text.into()]).await });
    soon(published).await.unwrap()
}

/// Publishes from a runtime until the engine has accepted it.
async fn published(from: &Runtime, engine: &Arc<NatsEngine>, topic: &TopicName, text: &str) {
    let published = async {
        while publish(from, engine, topic, text.to_owned()).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon(published).await;
}

async fn texts(engine: &NatsEngine, topic: &TopicName) -> Vec<String> {
    let (mut texts, mut from) = (Vec::new(), Begin::First);
    loop {
        let Ok(page) = soon(engine.history(topic, from, ALL)).await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let Some(last) = page.messages.last() else { return texts };
        from = Begin::Sequence(last.message.id + 1);
        let payloads = page.messages.iter().map(|message| message.message.payload.to_vec());
        texts.extend(payloads.map(|payload| String::from_utf8(payload).unwrap()));
    }
}

/// Until each runtime has a connection.
async fn connected(proxy: &Proxy, count: usize) {
    let connected = async {
        while proxy.accepted() < count {
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon(connected).await;
}

/// Also before the connection is there: a runtime uses that of the engine until then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_runtime_has_a_connection_and_the_order_of_its_own_publishes() {
    const EACH: usize = 5000;
    for program in programs() {
        let server = Server::start(&program);
        let proxy = Proxy::to(server.port(), Duration::from_millis(2)).await;
        let runtimes = runtimes(3);
        let engine = engine_on(&server, proxy.address, &runtimes[..2]).await;
        let topic = fresh("lanes");
        let tasks: Vec<_> = runtimes
            .iter()
            .enumerate()
            .map(|(lane, runtime)| {
                let (engine, topic) = (Arc::clone(&engine), topic.clone());
                runtime.spawn(async move {
                    let mut answers = VecDeque::new();
                    for n in 0..EACH {
                        let text = format!("{lane} {n:04}");
                        answers.push_back(engine.publish(&topic, vec![text.into()]));
                        if answers.len() > 1000 {
                            answers.pop_front().unwrap().await.unwrap();
                        }
                    }
                    for answer in answers {
                        answer.await.unwrap();
                    }
                })
            })
            .collect();
        connected(&proxy, 3).await;
        for task in tasks {
            soon(task).await.unwrap();
        }
        let texts = texts(&engine, &topic).await;
        assert_eq!(texts.len(), 3 * EACH);
        for lane in 0..3 {
            let lane = format!("{lane} ");
            let of_lane = texts.iter().filter(|text| text.starts_with(&lane));
            assert!(of_lane.is_sorted(), "lane {lane}");
        }
        assert_eq!(proxy.accepted(), 3, "the third runtime has the connection of the engine");
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

/// The connection of the engine takes its time, and that of the runtime is there soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_its_way_is_not_overtaken() {
    const COUNT: usize = 500;
    for program in programs() {
        let server = Server::start(&program);
        let (address, _) = narrow(server.port()).await;
        let runtimes = runtimes(1);
        let engine = engine_on(&server, address, &runtimes).await;
        let (publisher, topic) = (Arc::clone(&engine), fresh("overtaken"));
        let of_runtime = topic.clone();
        let published = runtimes[0].spawn(async move {
            let mut answers = Vec::new();
            for n in 0..COUNT {
                let text = format!("{n:04}{}", "-".repeat(4000));
                answers.push(publisher.publish(&of_runtime, vec![text.into()]));
                // All of the first ones come before there is a connection.
                if n >= COUNT / 2 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
            for answer in answers {
                answer.await.unwrap();
            }
        });
        soon(published).await.unwrap();
        let texts = texts(&engine, &topic).await;
        assert!(texts.len() == COUNT && texts.is_sorted());
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_lost_is_made_again() {
    for program in programs() {
        let server = Server::start(&program);
        let proxy = Proxy::to(server.port(), Duration::from_millis(2)).await;
        let runtimes = runtimes(2);
        let engine = engine_on(&server, proxy.address, &runtimes).await;
        let topic = fresh("lost");
        for round in 1..=3 {
            for runtime in &runtimes {
                published(runtime, &engine, &topic, &format!("{round}")).await;
            }
            connected(&proxy, 3 * round).await;
            for runtime in &runtimes {
                published(runtime, &engine, &topic, &format!("{round}")).await;
            }
            proxy.cut();
        }
        let texts = texts(&engine, &topic).await;
        for round in 1..=3 {
            let round = round.to_string();
            assert!(texts.iter().filter(|text| **text == round).count() >= 4, "{texts:?}");
        }
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

/// A way to servers: the first connection leads to the first one, all others to the second one.
async fn fork(ports: [u16; 2]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let [mut port, second] = ports;
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
            port = second;
        }
    });
    address
}

/// What was published there would be missing in the stream of the engine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_leads_to_another_server_is_not_used() {
    const COUNT: usize = 50;
    for program in programs() {
        let servers = [Server::start(&program), Server::start(&program)];
        let topic = fresh("fork");
        let mut engines = Vec::new();
        for server in &servers {
            engines.push(server.engine(server.options()).await);
        }
        let address = fork([servers[0].port(), servers[1].port()]).await;
        let runtimes = runtimes(1);
        let engine = engine_on(&servers[0], address, &runtimes).await;
        for n in 0..COUNT {
            soon(publish(&runtimes[0], &engine, &topic, n.to_string())).await.unwrap();
            sleep(Duration::from_millis(5)).await;
        }
        // The first connection is that of the engine.
        assert_eq!(texts(&engines[0], &topic).await.len(), COUNT);
        assert_eq!(texts(&engines[1], &topic).await.len(), 0);
        drop(engine);
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Then its publishes leave with those of the engine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_needs_no_connection_of_its_own() {
    for program in programs() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        std::fs::write(&config, "max_connections: 1").unwrap();
        let server = Server::start_with(&program, &["-c", config.to_str().unwrap()]);
        let runtimes = runtimes(2);
        let publish_from = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
        let engine = server.engine(NatsOptions { publish_from, ..server.options() }).await;
        let (engine, topic) = (Arc::new(engine), fresh("full"));
        for _ in 0..3 {
            for runtime in &runtimes {
                publish(runtime, &engine, &topic, "x".to_owned()).await.unwrap();
            }
            sleep(Duration::from_millis(100)).await;
        }
        assert!(engine.health().is_up());
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_may_end() {
    for program in programs() {
        let server = Server::start(&program);
        let proxy = Proxy::to(server.port(), Duration::ZERO).await;
        let mut runtimes = runtimes(2);
        let engine = engine_on(&server, proxy.address, &runtimes).await;
        let topic = fresh("ended");
        for _ in 0..2 {
            for runtime in &runtimes {
                published(runtime, &engine, &topic, "first").await;
            }
            connected(&proxy, 3).await;
        }
        runtimes.pop().unwrap().shutdown_background();
        published(&runtimes[0], &engine, &topic, "second").await;
        soon(engine.publish(&topic, vec!["third".into()])).await.unwrap();
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}
