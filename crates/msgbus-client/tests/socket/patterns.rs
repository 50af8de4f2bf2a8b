//! Patterns, whose order does not survive a restart of the server.

use std::{net::SocketAddr, path::Path, time::Duration};

use msgbus_client::{Client, Event, Position, Socket, SocketSubscription, TopicPattern};
use msgbus_testkit::{Daemon, free_address, name, soon};

/// A server whose topics are durable.
fn start(address: SocketAddr, data: &Path) -> Daemon {
    Daemon::at(address, |config| {
        config.data = Some(data.to_owned());
        config.bus.topic.promise = config.sync;
        config.timeouts.drain = Duration::from_millis(300);
    })
}

fn put(daemon: &Daemon, topic: &str, payload: &str) {
    daemon.bus.put(&name(topic), payload.to_owned()).unwrap();
}

async fn follow(socket: &Socket, pattern: &str, from: Position) -> SocketSubscription {
    let pattern: TopicPattern = pattern.parse().unwrap();
    socket.subscribe(pattern, from).await.unwrap()
}

/// The next messages, as topic and payload. `Restarted` is noted as well.
async fn next(subscription: &mut SocketSubscription, count: usize) -> Vec<String> {
    let mut events = Vec::new();
    while events.len() < count {
        events.push(match soon(subscription.next()).await.unwrap() {
            Event::Message(message) => {
                let payload = String::from_utf8_lossy(message.payload());
                format!("{}: {payload}", message.topic().name)
            }
            Event::Restarted => "restarted".to_owned(),
            other => panic!("{other:?}"),
        });
    }
    events
}

#[tokio::test]
async fn a_pattern_follows_topics_that_are_made_later() {
    let daemon = Daemon::start();
    let socket = Client::new(&daemon.uri()).unwrap().connect().await.unwrap();
    daemon.put("a/1", "old");
    let mut new = follow(&socket, "a/*", Position::New).await;
    let mut all = follow(&socket, "a/**", Position::All).await;
    daemon.put("a/2", "x");
    daemon.put("a/2/b", "y");
    daemon.put("a/1", "z");
    assert_eq!(next(&mut new, 2).await, ["a/2: x", "a/1: z"]);
    assert_eq!(next(&mut all, 4).await, ["a/1: old", "a/2: x", "a/2/b: y", "a/1: z"]);
}

/// The order begins anew, and the server sends what its topics retain once more.
#[tokio::test]
async fn after_a_restart_nothing_is_received_twice() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let daemon = start(address, folder.path());
    put(&daemon, "t/0", "before");
    // `new` has seen nothing of it. The time that the server tells is in seconds.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let socket = Client::new(&daemon.uri()).unwrap().connect().await.unwrap();
    let mut all = follow(&socket, "t/*", Position::All).await;
    let mut new = follow(&socket, "t/*", Position::New).await;
    put(&daemon, "t/1", "1");
    assert_eq!(next(&mut all, 2).await, ["t/0: before", "t/1: 1"]);
    assert_eq!(next(&mut new, 1).await, ["t/1: 1"]);
    daemon.stop().await;
    let daemon = start(address, folder.path());
    put(&daemon, "t/2", "2");
    put(&daemon, "t/1", "3");
    assert_eq!(next(&mut all, 3).await, ["restarted", "t/2: 2", "t/1: 3"]);
    assert_eq!(next(&mut new, 3).await, ["restarted", "t/2: 2", "t/1: 3"]);

    // The positions can be kept by the caller.
    let (position, received) = (all.position(), all.topic_positions().cloned().unwrap());
    drop(all);
    daemon.stop().await;
    let daemon = start(address, folder.path());
    put(&daemon, "t/0", "4");
    let pattern: TopicPattern = "t/*".parse().unwrap();
    let mut all = socket.resume(pattern, position, received).await.unwrap();
    assert_eq!(next(&mut all, 2).await, ["restarted", "t/0: 4"]);
}
