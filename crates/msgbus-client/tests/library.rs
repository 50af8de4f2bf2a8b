//! The client library against a real server.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::{num::NonZeroU32, pin::pin, time::Duration};

use futures_util::StreamExt as _;
use msgbus_client::{Client, ClientError, Event, NewMessage, Peeked, Position};

use msgbus_testkit::{Daemon, Proxy, name, nowhere, soon};

fn client_of(daemon: &Daemon) -> Client {
    Client::new(&daemon.uri()).unwrap()
}

#[tokio::test]
async fn publish_and_pull_are_a_pair() {
    let daemon = Daemon::start();
    let client = client_of(&daemon);
    let topic = name("a b/größe");
    assert!(client.pull(&topic).await.unwrap().is_none());
    let first = client.publish(&topic, "hi").await.unwrap();
    let second = client.publish(&topic, NewMessage::from(vec![0, 255])).await.unwrap();
    assert_eq!((first.id, second.id), (Some(0), Some(1)));
    assert_eq!(first.epoch, second.epoch);
    let message = client.pull(&topic).await.unwrap().unwrap();
    assert_eq!((message.id(), &message.payload()[..]), (0, &b"hi"[..]));
    assert_eq!(message.topic().name, topic);
}

#[tokio::test]
async fn errors_have_the_right_kind() {
    let client = Client::new(&nowhere().to_string()).unwrap();
    let error = client.publish(&name("t"), "x").await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }) && error.is_temporary(), "{error}");

    let daemon = Daemon::with(|config| {
        config.max_payload = 1;
        config.bus.max_topics = 1;
    });
    let error = client_of(&daemon).publish(&name("t"), "xx").await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 413, .. }), "{error}");
    daemon.put("t", "x");
    let error = client_of(&daemon).publish(&name("u"), "x").await.unwrap_err();
    assert!(matches!(error, ClientError::Busy { .. }), "{error}");
}

#[tokio::test]
async fn rate_limited_publishing_returns_busy() {
    let daemon = Daemon::with(|config| config.publish_rate = NonZeroU32::new(1));
    let client = client_of(&daemon);
    let error = client.publish_lines(&name("t"), "x\nx\n").await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 413, .. }), "{error}");
    // A slow machine may give a token back before the next request.
    let error = soon(async {
        loop {
            if let Err(error) = client.publish(&name("t"), "x").await {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(error, ClientError::Busy { .. }) && error.is_temporary(), "{error}");
}

#[tokio::test]
async fn a_stream_resumes_across_cuts_without_loss_or_repetition() {
    const COUNT: u64 = 3000;
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let client = Client::new(&proxy.uri()).unwrap();
    let mut stream = pin!(client.subscribe(&name("t"), Position::All).into_stream());
    let (mut next, mut cuts) = (0, 0);
    for _ in 0..COUNT {
        daemon.put("t", "x");
    }
    while next < COUNT {
        match soon(stream.next()).await.unwrap().unwrap() {
            Event::Message(message) => {
                assert_eq!(message.id(), next);
                next += 1;
                if next % 1000 == 500 {
                    proxy.cut();
                }
            }
            Event::Connected => {}
            Event::Disconnected { .. } => cuts += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(cuts > 0);
}

#[tokio::test]
async fn the_position_can_be_kept_by_the_caller() {
    let daemon = Daemon::start();
    for _ in 0..3 {
        daemon.put("t", "x");
    }
    let client = client_of(&daemon);
    let mut first = client.subscribe(&name("t"), Position::All);
    while !matches!(first.next().await.unwrap(), Event::Message(m) if m.id() == 1) {}
    let kept = first.position().to_string();
    first.close().await;

    let mut second = client.subscribe(&name("t"), kept.parse().unwrap());
    assert!(matches!(second.next().await.unwrap(), Event::Connected));
    assert!(matches!(second.next().await.unwrap(), Event::Message(m) if m.id() == 2));
}

#[tokio::test]
async fn a_subscription_that_cannot_start_returns_an_error() {
    let client = Client::new(&nowhere().to_string()).unwrap();
    let mut stream = pin!(client.subscribe(&name("t"), Position::New).into_stream());
    assert!(matches!(stream.next().await, Some(Err(ClientError::Connect { .. }))));
    assert!(stream.next().await.is_none(), "an error is the end of the stream");
}

#[tokio::test]
async fn a_path_in_front_of_the_topics_is_kept() {
    let daemon = Daemon::start();
    let client = Client::new(&format!("{}/front/", daemon.uri())).unwrap();
    client.publish(&name("t"), "x").await.unwrap();
    assert_eq!(daemon.bus.topics(), [name("front/t")]);
}

#[tokio::test]
async fn a_peek_distinguishes_expired_messages_from_no_new_ones() {
    let daemon = Daemon::with(|config| config.bus.topic.ttl = Some(Duration::from_millis(1)));
    let client = client_of(&daemon);
    let peek = async |from| client.peek(&name("t"), Some(from), 10).await.unwrap();
    assert_eq!(peek(Position::All).await, Peeked::default(), "no such topic");
    let epoch = client.publish(&name("t"), "x").await.unwrap().epoch;
    daemon.put("t", "x");
    tokio::time::sleep(Duration::from_millis(5)).await; // Real expiry needs real time.
    let nothing = Peeked { epoch, next_id: Some(2), ..Peeked::default() };
    assert_eq!(peek(Position::Id(0)).await, Peeked { missed: 2, ..nothing.clone() });
    assert_eq!(peek(Position::Id(2)).await, nothing);
    let other_epoch = Peeked { missed: 2, restarted: true, ..nothing };
    assert_eq!(peek(Position::After { epoch: 1, id: 7 }).await, other_epoch);
}
