//! Marks of leases do not stay in the stream.

use async_nats::jetstream::stream::{Config, Stream};
use futures_util::TryStreamExt as _;
use msgbus_core::{
    GroupName,
    engine::{Begin, Fetch},
};

use super::*;

async fn stream(server: &Server) -> Stream {
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect();
    let context = async_nats::jetstream::new(client.connect(server.url()).await.unwrap());
    context.get_stream("msgbus").await.unwrap()
}

/// How many marks there are.
async fn count(stream: &Stream) -> usize {
    let subjects = stream.info_with_subjects("msgbus.*.>").await.unwrap();
    let subjects: Vec<_> = subjects.try_collect().await.unwrap();
    subjects.iter().filter(|(name, _)| name.starts_with("msgbus.$")).count()
}

/// Jobs that were extended or given back leave nothing that grows, also where messages stay for ever and the server cannot
/// let marks expire.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_do_not_stay() {
    for program in programs() {
        let server = Server::start(&program);
        let lease = Duration::from_secs(1);
        let options = NatsOptions { max_age: None, lease, ..server.options() };
        let engine = server.engine(options).await;
        let (topic, group): (_, GroupName) = (fresh("marked"), "g".parse().unwrap());
        let limit = BatchLimit { events: 10, bytes: 1 << 20 };
        let fetch = Fetch { limit, lease, wait: Duration::from_secs(20), from: Begin::First };
        let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
        let extend = Settlement::Extend { lease };
        let jobs = (0..10).map(|job| NewMessage::new(job.to_string())).collect();
        soon(engine.publish(&topic, jobs)).await.unwrap();
        for settlement in [extend, back, Settlement::Ack] {
            let leased = soon(engine.fetch(&topic, Some(&group), fetch)).await.unwrap();
            let keys: Vec<_> = leased.messages.into_iter().map(|job| job.key).collect();
            assert!(!keys.is_empty());
            soon(engine.settle(&topic, Some(&group), keys, &settlement)).await.unwrap();
        }
        let stream = stream(&server).await;
        assert!(count(&stream).await > 0);
        // They are of no use some seconds after their leases.
        for seconds in 0.. {
            sleep(Duration::from_secs(1)).await;
            if count(&stream).await == 0 {
                break;
            }
            assert!(seconds < 120, "{} marks", count(&stream).await);
        }
        assert_eq!(soon(engine.stats(&topic)).await.unwrap().unwrap().retained, 10);
    }
}

/// A stream that an older server has made lets marks expire, as soon as the server can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_an_older_server_gets_what_it_lacks() {
    for program in programs() {
        let mut server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let own = stream(&server).await.cached_info().config.clone();
        let client = async_nats::connect(server.url()).await.unwrap();
        let context = async_nats::jetstream::new(client);
        context.delete_stream("msgbus").await.unwrap();
        let old = Config { allow_message_ttl: false, ..own.clone() };
        context.create_stream(old).await.unwrap();
        server.stop();
        server.run();
        until_ok(|| engine.publish(&fresh("x"), vec![NewMessage::new("x")])).await;
        let now = stream(&server).await.cached_info().config.clone();
        assert_eq!(now.allow_message_ttl, is_current(&program));
        let now = Config {
            allow_message_ttl: own.allow_message_ttl,
            metadata: own.metadata.clone(),
            ..now
        };
        assert_eq!(now, own, "all else is as it was");
    }
}
