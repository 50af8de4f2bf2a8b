//! Leases and groups: the client library against a real server.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use msgbus_client::{
    Client, ClientError, GroupChange, GroupDetails, GroupName, LeaseOptions, LeaseToken, Position,
    Settlement,
};
use msgbus_testkit::{Daemon, Proxy, name, soon};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    time::sleep,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTES: Duration = Duration::from_secs(300);

fn client_of(daemon: &Daemon) -> Client {
    Client::new(&daemon.uri()).unwrap()
}

fn workers() -> GroupName {
    "workers".parse().unwrap()
}

async fn inspect(client: &Client) -> GroupDetails {
    client.inspect_group(&name("t"), &workers()).await.unwrap().unwrap()
}

/// Waits until the group is in some state.
async fn until(client: &Client, mut is_so: impl FnMut(&GroupDetails) -> bool) {
    soon(async {
        while !is_so(&inspect(client).await) {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_is_leased_until_it_is_acknowledged() {
    let daemon = Daemon::start();
    let (client, topic, group) = (client_of(&daemon), name("t"), workers());
    for n in 0..3 {
        daemon.put("t", n.to_string());
    }
    let options = LeaseOptions { max: 2, ..LeaseOptions::default() };
    let leased = client.lease(&topic, &group, options).await.unwrap();
    let ids: Vec<u64> = leased.iter().map(|leased| leased.message.id()).collect();
    assert_eq!((&ids[..], leased[0].deliveries), (&[0, 1][..], 1));
    let [first, second] = &leased[..] else { panic!("{leased:?}") };
    assert_eq!(client.settle(&first.token, &Settlement::Ack).await.unwrap(), None);
    let again = client.settle(&first.token, &Settlement::Ack).await.unwrap_err();
    assert!(matches!(again, ClientError::LeaseLost), "{again}");
    let extend = Settlement::Extend { lease: Duration::from_secs(3600) };
    let expires = client.settle(&second.token, &extend).await.unwrap().unwrap();
    assert!(expires > second.expires + Duration::from_secs(3000), "{expires}");

    let nack = Settlement::Nack { delay: Duration::ZERO, reason: Some("a reason & more".into()) };
    client.settle(&second.token, &nack).await.unwrap();
    let leased = client.lease(&topic, &group, options).await.unwrap();
    let seen: Vec<_> = leased.iter().map(|one| (one.message.id(), one.deliveries)).collect();
    assert_eq!(seen, [(1, 2), (2, 1)], "what was given back comes first");
    assert!(client.lease(&topic, &group, options).await.unwrap().is_empty());
    let unacked = client.peek_group(&topic, &group, 10).await.unwrap();
    assert_eq!(unacked.iter().map(msgbus_client::Message::id).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn a_wait_is_passed_on_and_a_new_group_starts_where_it_says() {
    let daemon = Daemon::start();
    let (client, topic) = (client_of(&daemon), name("t"));
    daemon.put("t", "old");
    let since = Some(Position::New);
    let options = LeaseOptions { wait: Some(Duration::from_secs(60)), since, ..Default::default() };
    let group = workers();
    let (leased, ()) = tokio::join!(soon(client.lease(&topic, &group, options)), async {
        soon(async {
            while !matches!(client.inspect_group(&topic, &group).await, Ok(Some(group)) if group.group.waiters > 0)
            {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        daemon.put("t", "new");
    });
    assert_eq!(leased.unwrap()[0].message.payload(), "new");
}

#[tokio::test]
async fn many_leases_are_settled_at_once() {
    let daemon = Daemon::start();
    let (client, topic) = (client_of(&daemon), name("t"));
    for _ in 0..3 {
        daemon.put("t", "x");
    }
    let options = LeaseOptions { max: 10, ..LeaseOptions::default() };
    let leased = client.lease(&topic, &workers(), options).await.unwrap();
    let tokens: Vec<LeaseToken> = leased.into_iter().map(|leased| leased.token).collect();
    client.settle(&tokens[1], &Settlement::Ack).await.unwrap();
    let unsettled = client.settle_all(&tokens, &Settlement::Ack, MINUTES).await.unwrap();
    assert_eq!((unsettled.len(), &unsettled[0].token), (1, &tokens[1]), "{unsettled:?}");
    assert!(matches!(unsettled[0].error, ClientError::LeaseLost));
    assert_eq!(inspect(&client).await.group.acked, 3);
    assert!(client.settle_all(&[], &Settlement::Ack, MINUTES).await.unwrap().is_empty());
}

#[tokio::test]
async fn more_tokens_than_one_request_may_have_are_split() {
    let daemon = Daemon::start();
    let client = client_of(&daemon);
    daemon.put("t", "x");
    let leased = client.lease(&name("t"), &workers(), LeaseOptions::default()).await.unwrap();
    client.settle(&leased[0].token, &Settlement::Ack).await.unwrap();
    let tokens = vec![leased[0].token.clone(); 10_001];
    assert_eq!(client.settle_all(&tokens, &Settlement::Ack, MINUTES).await.unwrap().len(), 10_001);
}

#[tokio::test]
async fn a_delivery_extends_its_lease_until_it_is_settled() {
    let daemon = Daemon::start();
    let client = client_of(&daemon);
    daemon.put("t", "x");
    let group = client.group(&name("t"), &workers()).lease(3 * SECOND);
    let delivery = group.take(MINUTES).await.unwrap().unwrap();
    assert_eq!((delivery.message().id(), delivery.deliveries()), (0, 1));
    let begin = inspect(&client).await.leases[0].clone();
    let since = |at: &str| at.parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    // Longer than the lease.
    let later = since(&begin.expires) + 4 * SECOND;
    until(&client, |group| since(&group.leases[0].expires) > later).await;
    let extended = inspect(&client).await;
    assert_eq!((extended.leases[0].deliveries, extended.group.lease_expired), (1, 0));
    delivery.ack().await.unwrap();
    let settled = inspect(&client).await;
    assert_eq!((settled.group.acked, settled.leases.len()), (1, 0));
    assert!(group.try_take().await.unwrap().is_none());
}

#[tokio::test]
async fn a_dropped_delivery_is_given_back() {
    let daemon = Daemon::start();
    let client = client_of(&daemon);
    daemon.put("t", "x");
    let group = client.group(&name("t"), &workers());
    drop(group.try_take().await.unwrap().unwrap());
    let again = soon(group.take(Duration::from_secs(300))).await.unwrap().unwrap();
    assert_eq!(again.deliveries(), 2);
    // A caller that is cancelled has asked for the ack.
    drop(futures_util::FutureExt::now_or_never(again.ack()));
    until(&client, |group| group.group.acked == 1).await;
}

#[tokio::test]
async fn an_ack_is_tried_until_the_server_is_back() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let (direct, client) = (client_of(&daemon), Client::new(&proxy.uri()).unwrap());
    daemon.put("t", "x");
    let group = client.group(&name("t"), &workers());
    let delivery = group.try_take().await.unwrap().unwrap();
    proxy.close();
    let mut ack = tokio::spawn(delivery.ack());
    // It does not give up at the first error.
    assert!(tokio::time::timeout(SECOND, &mut ack).await.is_err());
    assert_eq!(inspect(&direct).await.group.acked, 0);
    proxy.open();
    soon(ack).await.unwrap().unwrap();
    assert_eq!(inspect(&direct).await.group.acked, 1);
}

#[tokio::test]
async fn a_lease_is_lost_with_the_server() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let (direct, client) = (client_of(&daemon), Client::new(&proxy.uri()).unwrap());
    for _ in 0..2 {
        daemon.put("t", "x");
    }
    let group = client.group(&name("t"), &workers()).lease(SECOND);
    let [first, second] = <[_; 2]>::try_from(group.take_many(2, SECOND).await.unwrap()).unwrap();
    proxy.close();
    soon(first.lost()).await;
    // The ack of the other was tried until its lease was over.
    let error = soon(second.ack()).await.unwrap_err();
    assert!(error.is_temporary() || matches!(error, ClientError::LeaseLost), "{error}");
    proxy.open();
    let error = soon(first.ack()).await.unwrap_err();
    assert!(matches!(error, ClientError::LeaseLost), "{error}");
    let group = direct.group(&name("t"), &workers());
    let again = soon(group.take(Duration::from_secs(300))).await.unwrap().unwrap();
    assert_eq!((again.message().id(), again.deliveries()), (0, 2));
}

#[tokio::test]
async fn an_ack_whose_response_was_lost_is_not_called_lost() {
    let daemon = Daemon::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let server = daemon.address;
    tokio::spawn(async move {
        for turn in 0.. {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(server).await.unwrap();
            if turn > 0 {
                tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
                continue;
            }
            // The request arrives, the response does not.
            let mut bytes = [0; 4096];
            let count = near.read(&mut bytes).await.unwrap();
            far.write_all(&bytes[..count]).await.unwrap();
            assert!(far.read(&mut bytes).await.unwrap() > 0);
        }
    });
    daemon.put("t", "x");
    let options = LeaseOptions::default();
    let leased = client_of(&daemon).lease(&name("t"), &workers(), options).await.unwrap();
    let within = Duration::from_secs(60);
    let error = client.settle_within(&leased[0].token, &Settlement::Ack, within).await.unwrap_err();
    assert!(matches!(error, ClientError::Unconfirmed), "{error}");
    assert_eq!(inspect(&client_of(&daemon)).await.group.acked, 1);
}

#[tokio::test]
async fn a_group_is_created_changed_moved_and_removed() {
    let daemon = Daemon::start();
    let (client, topic, group) = (client_of(&daemon), name("a b/ü"), workers());
    assert!(client.inspect_group(&topic, &group).await.unwrap().is_none());
    assert!(!client.remove_group(&topic, &group).await.unwrap());
    let change = GroupChange {
        max_deliveries: Some(3),
        dead_letters: Some(name("failed/ü")),
        ..GroupChange::default()
    };
    let created = client.set_group(&topic, &group, &change).await.unwrap().group;
    assert_eq!((&*created.group, &*created.topic), ("workers", "a b/ü"));
    assert_eq!((created.max_deliveries, created.dead_letters.as_deref()), (3, Some("failed/ü")));
    daemon.put("a b/ü", "x");
    assert_eq!(client.inspect(&topic).await.unwrap().unwrap().groups[0].pending, 1);
    let moved = GroupChange { since: Some(Position::New), ..GroupChange::default() };
    let moved = client.set_group(&topic, &group, &moved).await.unwrap().group;
    assert_eq!((moved.pending, moved.max_deliveries), (0, 3));
    assert!(client.remove_group(&topic, &group).await.unwrap());
    assert!(client.inspect_group(&topic, &group).await.unwrap().is_none());
}
