//! Each operation, once and in unusual situations.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt as _;
use msgbus_client::{
    Client, ClientError, Event, GroupName, Headers, LeaseOptions, NewMessage, Position,
    PullOptions, Settlement, Socket, SocketStatus, SocketSubscription, TopicPattern, WorkOptions,
};
use msgbus_testkit::{Daemon, Proxy, name, nowhere, soon, until};

async fn connect(daemon: &Daemon) -> Socket {
    Client::new(&daemon.uri()).unwrap().connect().await.unwrap()
}

fn topic(text: &str) -> TopicPattern {
    text.parse().unwrap()
}

/// The payload of the next event, which has to be a message.
async fn payload(subscription: &mut SocketSubscription) -> String {
    match soon(subscription.next()).await.unwrap() {
        Event::Message(message) => String::from_utf8_lossy(message.payload()).into_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_socket_publishes_follows_and_pulls() {
    let daemon = Daemon::start();
    let socket = connect(&daemon).await;
    let mut one = socket.subscribe(topic("a b/größe"), Position::New).await.unwrap();
    let mut two = socket.subscribe(topic("other"), Position::All).await.unwrap();
    let headers = Headers::new([("tag", "a"), ("tag", "b")]).unwrap();
    let message = NewMessage::from("größe").headers(headers.clone());
    let published = socket.publish(&name("a b/größe"), message).await.unwrap();
    assert_eq!(published.id, Some(0));
    let Event::Message(message) = soon(one.next()).await.unwrap() else { panic!("no message") };
    assert_eq!((message.payload(), message.headers()), (&"größe".into(), &headers));
    assert_eq!(Some(one.position()), published.epoch.map(|epoch| Position::After { epoch, id: 0 }));
    socket.publish(&name("other"), vec![0, 255]).await.unwrap();
    let Event::Message(message) = soon(two.next()).await.unwrap() else { panic!("no message") };
    assert_eq!(message.payload()[..], [0, 255]);

    let pulled = socket.pull(&name("a b/größe"), PullOptions::default()).await.unwrap();
    assert_eq!(pulled[0].payload(), "größe");
    assert!(socket.pull(&name("a b/größe"), PullOptions::default()).await.unwrap().is_empty());
    soon(socket.ping()).await.unwrap();
    drop(one);
    until(|| daemon.bus.stats().subscribers == 1).await;
    soon(socket.close()).await;
    assert!(matches!(two.next().await, Err(ClientError::Lost { .. })));
    daemon.subscribers(0).await;
}

#[tokio::test]
async fn errors_have_the_kind_that_they_have_over_http() {
    let client = Client::new(&nowhere().to_string()).unwrap();
    let error = client.connect().await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");

    let daemon = Daemon::with(|config| {
        config.max_payload = 1 << 10;
        config.bus.max_topics = 1;
    });
    let socket = connect(&daemon).await;
    let too_large = socket.publish(&name("t"), vec![b'x'; 1025]).await.unwrap_err();
    assert!(matches!(too_large, ClientError::Refused { status: 413, .. }), "{too_large}");
    socket.publish(&name("t"), "x").await.unwrap();
    let busy = socket.publish(&name("u"), "x").await.unwrap_err();
    assert!(matches!(busy, ClientError::Busy { .. }), "{busy}");
}

/// The server closes the connection: a frame cannot be refused before it is read.
#[tokio::test]
async fn a_message_larger_than_a_frame_is_refused_and_the_others_are_not_lost() {
    let daemon = Daemon::with(|config| config.max_payload = 1 << 10);
    let socket = connect(&daemon).await;
    let topic = name("t");
    let huge = socket.publish_at_least_once(&topic, vec![b'x'; 1 << 20]);
    let small = socket.publish_at_least_once(&topic, "x");
    let (huge, small) = soon(async { tokio::join!(huge, small) }).await;
    assert!(matches!(huge, Err(ClientError::Refused { status: 413, .. })), "{huge:?}");
    small.unwrap();
}

#[tokio::test]
async fn publishes_are_pipelined_in_order() {
    const COUNT: u64 = 5000;
    let daemon = Daemon::start();
    let socket = connect(&daemon).await;
    let mut pending = Vec::new();
    for n in 0..COUNT {
        pending.push(soon(socket.begin_publish(&name("t"), n.to_string())).await.unwrap());
    }
    for (id, publishing) in (0..).zip(pending) {
        assert_eq!(soon(publishing).await.unwrap().id, Some(id));
    }
}

/// It is published although nobody waits for the answer, or for the connection.
#[tokio::test]
async fn what_was_begun_is_published_before_the_connection_ends() {
    let daemon = Daemon::start();
    let socket = connect(&daemon).await;
    for _ in 0..100 {
        drop(socket.begin_publish(&name("t"), "x").await.unwrap());
    }
    drop(socket);
    until(|| daemon.bus.topic(&name("t")).is_some_and(|t| t.counters.published == 100)).await;
}

#[tokio::test]
async fn a_slow_subscription_is_paused_and_holds_up_no_other() {
    const COUNT: usize = 5 * SocketSubscription::MAX_QUEUED;
    let daemon = Daemon::start();
    let socket = connect(&daemon).await;
    let mut slow = socket.subscribe(topic("busy"), Position::All).await.unwrap();
    let mut other = socket.subscribe(topic("quiet"), Position::All).await.unwrap();
    for n in 0..COUNT {
        daemon.put("busy", n.to_string());
    }
    // The server no longer follows the busy topic.
    daemon.subscribers(1).await;
    socket.publish(&name("quiet"), "x").await.unwrap();
    assert_eq!(payload(&mut other).await, "x");
    for n in 0..COUNT {
        assert_eq!(payload(&mut slow).await, n.to_string());
    }
    daemon.subscribers(2).await;
}

#[tokio::test]
async fn what_a_paused_subscription_misses_is_counted() {
    const LIMIT: usize = 2000;
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = LIMIT);
    let socket = connect(&daemon).await;
    let mut slow = socket.subscribe(topic("t"), Position::All).await.unwrap();
    let put = |count: usize| (0..count).for_each(|_| _ = daemon.put("t", "x"));
    put(SocketSubscription::MAX_QUEUED + 1);
    daemon.subscribers(0).await;
    put(2 * LIMIT);
    let (mut received, mut missed) = (0, 0);
    while received + missed < SocketSubscription::MAX_QUEUED as u64 + 1 + 2 * LIMIT as u64 {
        match soon(slow.next()).await.unwrap() {
            Event::Message(message) => {
                assert_eq!(message.id(), received + missed, "in order, without a repetition");
                received += 1;
            }
            Event::Missed(count) => missed += count,
            other => panic!("{other:?}"),
        }
    }
    assert!(missed > 0 && received >= LIMIT as u64);
}

#[tokio::test]
async fn a_lost_answer_is_an_error_unless_a_repetition_is_wanted() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let socket = Client::new(&proxy.uri()).unwrap().connect().await.unwrap();
    let mut statuses = pin!(socket.statuses());
    // The pull waits, so the answers behind it are lost with certainty: none has arrived.
    let wait = PullOptions { wait: Some(Duration::from_secs(60)), max: None };
    let (empty, topic) = (name("empty"), name("t"));
    let mut pull = pin!(socket.pull(&empty, wait));
    tokio::select! {
        pulled = &mut pull => panic!("{pulled:?}"),
        () = daemon.waits_after("empty", 0) => {}
    }
    proxy.close();
    let lost = soon(pull).await.unwrap_err();
    assert!(matches!(lost, ClientError::Lost { .. }), "{lost}");
    let disconnected = soon(statuses.next()).await.unwrap();
    assert!(matches!(disconnected, SocketStatus::Disconnected { .. }), "{disconnected:?}");
    // What was not sent yet waits for the next connection.
    let mut waiting = pin!(socket.publish(&topic, "x"));
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut waiting).await.is_err());
    proxy.open();
    soon(waiting).await.unwrap();
    soon(async { while !matches!(statuses.next().await, Some(SocketStatus::Connected) | None) {} })
        .await;
}

#[tokio::test]
async fn subscriptions_resume_and_a_deleted_topic_is_told() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let socket = Client::new(&proxy.uri()).unwrap().connect().await.unwrap();
    let mut subscription = socket.subscribe(topic("t"), Position::New).await.unwrap();
    daemon.put("t", "0");
    assert_eq!(payload(&mut subscription).await, "0");
    proxy.close();
    daemon.put("t", "1");
    proxy.open();
    assert_eq!(payload(&mut subscription).await, "1");

    daemon.bus.delete(&name("t")).wait().unwrap();
    daemon.put("t", "new");
    let event = soon(subscription.next()).await.unwrap();
    assert!(matches!(event, Event::Restarted), "{event:?}");
    assert_eq!(payload(&mut subscription).await, "new");
    let kept = subscription.position();
    drop(subscription);
    daemon.put("t", "later");
    let mut next = socket.subscribe(topic("t"), kept).await.unwrap();
    assert_eq!(payload(&mut next).await, "later");
}

fn workers() -> GroupName {
    "workers".parse().unwrap()
}

async fn group_counters(daemon: &Daemon) -> msgbus_client::GroupSummary {
    let client = Client::new(&daemon.uri()).unwrap();
    client.inspect_group(&name("t"), &workers()).await.unwrap().unwrap().group
}

#[tokio::test]
async fn leases_are_pushed_as_long_as_there_is_credit() {
    let daemon = Daemon::start();
    let socket = connect(&daemon).await;
    for n in 0..10 {
        daemon.put("t", n.to_string());
    }
    let options = WorkOptions { credit: 2, ..WorkOptions::default() };
    let mut deliveries = socket.work(&name("t"), &workers(), options).await.unwrap();
    let first = soon(deliveries.next()).await.unwrap();
    let second = soon(deliveries.next()).await.unwrap();
    assert_eq!((first.message().id(), second.message().id()), (0, 1));
    assert_eq!(group_counters(&daemon).await.leased, 2);
    first.ack().await.unwrap();
    let third = soon(deliveries.next()).await.unwrap();
    assert_eq!(third.message().id(), 2);
    // It is given back, and comes first.
    drop(third);
    let third = soon(deliveries.next()).await.unwrap();
    assert_eq!((third.message().id(), third.deliveries()), (2, 2));
    // What waits in the stream is given back with it; what was returned stays leased.
    second.nack(Duration::from_secs(3600), None).await.unwrap();
    drop(deliveries);
    soon(async {
        while group_counters(&daemon).await.leased != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    third.ack().await.unwrap();
    assert_eq!(group_counters(&daemon).await.acked, 2);
}

#[tokio::test]
async fn workers_lose_no_message_across_cuts() {
    const COUNT: u64 = 300;
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let socket = Client::new(&proxy.uri()).unwrap().connect().await.unwrap();
    for _ in 0..COUNT {
        daemon.put("t", "x");
    }
    let lease = Duration::from_secs(1);
    let options = WorkOptions { credit: 10, lease, since: None };
    let mut deliveries = socket.work(&name("t"), &workers(), options).await.unwrap();
    let mut count = 0;
    while group_counters(&daemon).await.acked < COUNT {
        let delivery = soon(deliveries.next()).await.unwrap();
        count += 1;
        if count % 100 == 50 {
            proxy.cut();
        }
        match soon(delivery.ack()).await {
            Ok(()) | Err(ClientError::Unconfirmed | ClientError::LeaseLost) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn leases_can_be_taken_and_settled_by_hand() {
    let daemon = Daemon::start();
    let socket = connect(&daemon).await;
    daemon.put("t", "x");
    let options = LeaseOptions { max: 10, ..LeaseOptions::default() };
    let leased = socket.lease(&name("t"), &workers(), options).await.unwrap();
    let extend = Settlement::Extend { lease: Duration::from_secs(3600) };
    let expires = socket.settle(&leased[0].token, &extend).await.unwrap().unwrap();
    assert!(expires > leased[0].expires + Duration::from_secs(3000), "{expires}");
    socket.settle(&leased[0].token, &Settlement::Ack).await.unwrap();
    let again = socket.settle(&leased[0].token, &Settlement::Ack).await.unwrap_err();
    assert!(matches!(again, ClientError::LeaseLost), "{again}");
    assert!(socket.lease(&name("t"), &workers(), options).await.unwrap().is_empty());
}
