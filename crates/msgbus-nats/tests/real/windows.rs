//! What windows ask of the server.

use msgbus_core::{Subscription, TopicName};

use super::*;

/// How many consumers the stream has.
async fn consumers(server: &Server) -> usize {
    let client = async_nats::connect(server.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream("msgbus").await.unwrap();
    stream.get_info().await.unwrap().state.consumer_count
}

/// The next message. Nothing may be missing before it.
async fn next(follower: &mut Subscription) -> (u64, Vec<u8>) {
    let event = soon(follower.recv()).await.unwrap();
    let Event::Message { id, message, .. } = event else { panic!("{event:?}") };
    (id, message.payload().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_a_topic_share_a_consumer() {
    for program in programs() {
        let server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let topic = fresh("shared");
        let mut followers = Vec::new();
        for _ in 0..1000 {
            followers.push(soon(bus.follow(&topic, Position::New)).await.unwrap());
        }
        assert_eq!(consumers(&server).await, 1);
        soon(bus.publish(&topic, "x")).await.unwrap();
        for follower in &mut followers {
            assert_eq!(next(follower).await.1, b"x");
        }
        assert_eq!(consumers(&server).await, 1);
    }
}

/// All that the server delivers comes on one subscription.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_window_gets_what_is_published_to_its_topic() {
    for program in programs() {
        let server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let prefix = fresh("many");
        let names = (0..100).map(|n| format!("{prefix}/{n}").parse().unwrap());
        let names: Vec<TopicName> = names.collect();
        let mut followers = Vec::new();
        for name in &names {
            followers.push(soon(bus.follow(name, Position::New)).await.unwrap());
        }
        assert_eq!(consumers(&server).await, 100);
        for round in 0..5 {
            for name in &names {
                soon(bus.publish(name, format!("{name} {round}"))).await.unwrap();
            }
        }
        for (name, follower) in names.iter().zip(&mut followers) {
            for round in 0..5 {
                assert_eq!(next(follower).await.1, format!("{name} {round}").into_bytes());
            }
        }
        let windows = bus.engine_windows();
        assert!(windows.iter().all(|window| window.retained == 5), "{windows:?}");
    }
}

/// More than is asked of the server at a time: messages, and bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_goes_on_after_many_messages_and_after_large_ones() {
    for program in programs() {
        let server = Server::start(&program);
        let bus = bus(Arc::new(server.engine(server.options()).await));
        let topic = fresh("much");
        let mut follower = soon(bus.follow(&topic, Position::New)).await.unwrap();
        let small = |count: u32| (0..count).map(|n| NewMessage::new(n.to_string())).collect();
        let small: Vec<Vec<NewMessage>> = vec![small(1300), small(10)];
        let large = (0..30).map(|_| vec![NewMessage::new(vec![7; 900_000])]);
        let mut count = 0;
        for batch in small.iter().cloned().chain(large).chain(small.iter().cloned()) {
            for message in batch {
                soon(bus.publish(&topic, message)).await.unwrap();
                count += 1;
            }
        }
        let (mut last, mut bytes) = (0, 0);
        for _ in 0..count {
            let (id, payload) = next(&mut follower).await;
            assert_eq!(id, last + 1);
            (last, bytes) = (id, bytes + payload.len());
        }
        assert!(bytes > 27_000_000, "{bytes}");
        let windows = bus.engine_windows();
        assert_eq!(windows[0].next, last + 1, "{windows:?}");
    }
}
