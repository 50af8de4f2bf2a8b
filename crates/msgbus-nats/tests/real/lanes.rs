//! Publishes that leave from several runtimes, each on a connection of its own.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use msgbus_core::{TopicName, engine::Begin};
use msgbus_engine_testkit::{
    Proxy,
    runtimes::{publish, published, runtimes},
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Handle, Runtime},
};

use super::{publish::narrow, *};

const ALL: BatchLimit = BatchLimit { events: 10_000, bytes: 10 << 20 };

async fn engine_on(
    server: &Server,
    address: SocketAddr,
    publish_from: Vec<Handle>,
) -> Arc<NatsEngine> {
    let servers = format!("nats://{address}");
    Arc::new(server.engine(NatsOptions { servers, publish_from, ..server.options() }).await)
}

fn handles(runtimes: &[Runtime]) -> Vec<Handle> {
    runtimes.iter().map(|runtime| runtime.handle().clone()).collect()
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

/// Publishes from each runtime until so many connections were made.
async fn connected(
    proxy: &Proxy,
    count: usize,
    engine: &Arc<NatsEngine>,
    runtimes: &[Runtime],
    topic: &TopicName,
) {
    until(|| proxy.accepted() >= count, engine, runtimes, topic).await;
}

async fn until(
    is_over: impl Fn() -> bool,
    engine: &Arc<NatsEngine>,
    runtimes: &[Runtime],
    topic: &TopicName,
) {
    let over = async {
        while !is_over() {
            for runtime in runtimes {
                let _ = publish(runtime, engine, topic, "more".to_owned()).await;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon(over).await;
}

/// Also before the connection is there: a runtime uses that of the engine until then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_runtime_has_a_connection_and_the_order_of_its_own_publishes() {
    const EACH: usize = 5000;
    for program in programs() {
        let server = Server::start(&program);
        let proxy = Proxy::to(server.port(), Duration::from_millis(2)).await;
        let runtimes = runtimes(3);
        // The same runtime twice is one.
        let handles = [handles(&runtimes[..2]), handles(&runtimes[..1])].concat();
        let engine = engine_on(&server, proxy.address, handles).await;
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
        let all = fresh("all");
        connected(&proxy, 3, &engine, &runtimes, &all).await;
        // Until what has taken the first connection is answered.
        for runtime in &runtimes {
            publish(runtime, &engine, &all, "x".to_owned()).await.unwrap();
        }
        assert_eq!(proxy.accepted(), 3);
        proxy.silence(0..=0);
        for runtime in &runtimes[..2] {
            publish(runtime, &engine, &all, "x".to_owned()).await.unwrap();
        }
        let third = publish(&runtimes[2], &engine, &all, "x".to_owned()).await;
        assert!(third.is_err(), "it has the connection of the engine");
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
        let options = NatsOptions {
            servers: format!("nats://{address}"),
            publish_from: handles(&runtimes),
            timeout: Duration::from_secs(20),
            ..server.options()
        };
        let engine = Arc::new(server.engine(options).await);
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

/// What is acknowledged is in order, also while connections are lost and made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_lost_is_made_again() {
    for program in programs() {
        let server = Server::start(&program);
        let proxy = Proxy::to(server.port(), Duration::from_millis(2)).await;
        let runtimes = runtimes(1);
        let engine = engine_on(&server, proxy.address, handles(&runtimes)).await;
        let (publisher, topic) = (Arc::clone(&engine), fresh("lost"));
        let (of_runtime, is_over) = (topic.clone(), Arc::new(AtomicBool::new(false)));
        let ends = Arc::clone(&is_over);
        let publishing = runtimes[0].spawn(async move {
            let (mut answers, mut published) = (VecDeque::new(), Vec::new());
            for n in 0.. {
                let is_over = ends.load(Relaxed);
                if !is_over {
                    let publish = publisher.publish(&of_runtime, vec![format!("{n}").into()]);
                    answers.push_back((n, publish));
                    sleep(Duration::from_millis(1)).await;
                }
                if is_over || answers.len() > 500 {
                    let Some((n, answer)) = answers.pop_front() else { return published };
                    published.extend(answer.await.ok().map(|receipt| (n, receipt.first)));
                }
            }
            published
        });
        let others = fresh("others");
        for round in 1..=3 {
            connected(&proxy, 2 * round, &engine, &runtimes, &others).await;
            sleep(Duration::from_millis(200)).await;
            proxy.cut();
            until_up(&engine, true).await;
        }
        is_over.store(true, Relaxed);
        let published: Vec<(usize, u64)> = soon(publishing).await.unwrap();
        assert!(published.len() > 100, "{published:?}");
        assert!(published.is_sorted_by_key(|(_, id)| *id), "{published:?}");
        let all = texts(&engine, &topic).await;
        assert!(published.iter().all(|(n, _)| all.contains(&n.to_string())));
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

/// A way to servers: the first connection leads to the first one, all others to the second one. It counts them.
async fn fork(ports: [u16; 2]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, accepted) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        let [mut port, second] = ports;
        while let Ok((mut near, _)) = listener.accept().await {
            count.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
            port = second;
        }
    });
    (address, accepted)
}

/// What was published there would be missing in the stream of the engine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_leads_to_another_server_is_not_used() {
    for program in programs() {
        let servers = [Server::start(&program), Server::start(&program)];
        let topic = fresh("fork");
        let mut engines = Vec::new();
        for server in &servers {
            engines.push(server.engine(server.options()).await);
        }
        let (address, accepted) = fork([servers[0].port(), servers[1].port()]).await;
        let runtimes = runtimes(1);
        let engine = engine_on(&servers[0], address, handles(&runtimes)).await;
        // The first connection is that of the engine. The second one is tried, and another one after a while.
        let mut count = 0;
        let tried_again = async {
            while accepted.load(Relaxed) < 3 {
                publish(&runtimes[0], &engine, &topic, count.to_string()).await.unwrap();
                count += 1;
                sleep(Duration::from_millis(5)).await;
            }
        };
        soon(tried_again).await;
        assert_eq!(texts(&engines[0], &topic).await.len(), count);
        assert_eq!(texts(&engines[1], &topic).await.len(), 0);
        drop(engine);
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Then its publishes leave with those of the engine, which gets the only connection, also if all are cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_needs_no_connection_of_its_own() {
    for program in programs() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        std::fs::write(&config, "max_connections: 1").unwrap();
        let server = Server::start_with(&program, &["-c", config.to_str().unwrap()]);
        let proxy = Proxy::to(server.port(), Duration::ZERO).await;
        let runtimes = runtimes(2);
        let engine = engine_on(&server, proxy.address, handles(&runtimes)).await;
        let topic = fresh("full");
        for round in 1..=3 {
            for runtime in &runtimes {
                published(runtime, &engine, &topic, "x").await;
            }
            connected(&proxy, 3 * round, &engine, &runtimes, &topic).await;
            assert!(engine.health().is_up());
            proxy.cut();
        }
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Where there may only be some connections, one that nothing is published on would be in the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_makes_room_for_that_of_the_engine() {
    for program in programs() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        let limit = |max: usize| {
            let store = directory.path();
            let text = format!("max_connections: {max}\njetstream {{ store_dir: {store:?} }}");
            std::fs::write(&config, text).unwrap();
        };
        limit(2);
        let mut server = Server::new(&program);
        // After a reload, only what the file says counts.
        server.has_jetstream = false;
        server.arguments = vec!["-c".to_owned(), config.display().to_string()];
        server.run();
        let runtimes = runtimes(1);
        let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
        let engine = engine_on(&server, address, handles(&runtimes)).await;
        let topic = fresh("room");
        for _ in 0..4 {
            until(|| connections(&server) == 2, &engine, &runtimes, &topic).await;
            // The server ends any one of them.
            limit(1);
            server.signal("-HUP");
            let ended = async {
                while connections(&server) == 2 {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            soon(ended).await;
            sleep(Duration::from_millis(100)).await;
            until_up(&engine, true).await;
            limit(2);
            server.signal("-HUP");
        }
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_may_end() {
    for program in programs() {
        let server = Server::start(&program);
        let proxy = Proxy::to(server.port(), Duration::ZERO).await;
        let mut runtimes = runtimes(2);
        let engine = engine_on(&server, proxy.address, handles(&runtimes)).await;
        let topic = fresh("ended");
        connected(&proxy, 3, &engine, &runtimes, &topic).await;
        runtimes.pop().unwrap().shutdown_background();
        published(&runtimes[0], &engine, &topic, "second").await;
        soon(engine.publish(&topic, vec!["third".into()])).await.unwrap();
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Also what nobody waits for, in any runtime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_is_published_when_the_engine_has_finished() {
    const COUNT: usize = 1000;
    for program in programs() {
        let server = Server::start(&program);
        let proxy = Proxy::to(server.port(), Duration::from_millis(20)).await;
        let runtimes = runtimes(2);
        let engine = engine_on(&server, proxy.address, handles(&runtimes)).await;
        let topic = fresh("finish");
        connected(&proxy, 3, &engine, &runtimes, &fresh("others")).await;
        for runtime in &runtimes {
            let (engine, topic) = (Arc::clone(&engine), topic.clone());
            let begun = runtime.spawn(async move {
                for n in 0..COUNT {
                    drop(engine.publish(&topic, vec![format!("{n}").into()]));
                }
            });
            soon(begun).await.unwrap();
        }
        soon(engine.finish()).await.unwrap();
        proxy.stop();
        let other = server.engine(server.options()).await;
        assert_eq!(texts(&other, &topic).await.len(), 2 * COUNT);
        runtimes.into_iter().for_each(Runtime::shutdown_background);
    }
}
