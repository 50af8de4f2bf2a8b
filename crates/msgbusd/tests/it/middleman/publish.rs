//! Section 5 of the facts: publishing and subscribing; section 7: private channels.

use super::{Broker, header, message};
use crate::{keys::key, support::until};

#[tokio::test]
async fn every_subscriber_gets_it_once_also_the_sender() {
    let broker = Broker::start();
    let (mut one, mut other) = (broker.peer().await, broker.peer().await);
    // A repeated SUB is harmless.
    for line in ["SUB t", "SUB t"] {
        one.command(line).await;
        other.command(line).await;
    }
    one.is_idle().await;
    other.is_idle().await;
    one.send("PUB t\n\n1\n.\n").await;
    one.send("PUB T\n\nnobody\n.\n").await;
    one.send("PUB t\n\n2\n.\n").await;
    for number in ["\r\n1", "\r\n2"] {
        one.gets(&message("PUB t", &one.guid.clone(), "", number)).await;
        other.gets(&message("PUB t", &one.guid, "", number)).await;
    }
    one.is_idle().await;
    other.is_idle().await;
}

/// What was published before a SUB is not sent, and UNS ends a subscription.
#[tokio::test]
async fn a_subscription_begins_with_sub_and_ends_with_uns() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    peer.send("PUB t\n\nbefore\n.\n").await;
    for round in 0..3 {
        peer.command("SUB t").await;
        peer.send(format!("PUB t\n\n{round}\n.\n")).await;
        let guid = peer.guid.clone();
        peer.gets(&message("PUB t", &guid, "", &format!("\r\n{round}"))).await;
        peer.command("UNS t").await;
        peer.send("PUB t\n\nafter\n.\n").await;
        peer.command("UNS t").await;
        peer.command("UNS never").await;
        peer.is_idle().await;
    }
}

/// The messages of one connection are handled in order.
#[tokio::test]
async fn the_order_of_a_connection_is_kept() {
    let broker = Broker::start();
    let (mut one, mut other) = (broker.peer().await, broker.peer().await);
    other.command("SUB t").await;
    other.is_idle().await;
    for number in 0..500 {
        one.send(format!("PUB t\n\n{number}\n.\n")).await;
    }
    for number in 0..500 {
        other.gets(&message("PUB t", &one.guid, "", &format!("\r\n{number}"))).await;
    }
}

#[tokio::test]
async fn a_private_channel_reaches_one_connection_and_goes_with_it() {
    let broker = Broker::start();
    let (mut one, mut other, mut third) =
        (broker.peer().await, broker.peer().await, broker.peer().await);
    let line = format!("PUB MSG:{}", one.guid);
    other.send(format!("{line}\ncmd: hello\n\nyou\n.\n")).await;
    one.gets(&message(&line, &other.guid, "", "cmd: hello\r\n\r\nyou")).await;
    third.is_idle().await;
    // It is a topic: others can use it, too.
    assert_eq!(broker.put(&format!("/MSG:{}", one.guid), "from curl").await.status, 202);
    one.gets(&message(&line, "", "", "\r\nfrom curl")).await;

    // Deleted by somebody, it is there again.
    assert_eq!(broker.send("DELETE", &format!("/MSG:{}", one.guid), &[], b"").await.status, 204);
    other.send(format!("{line}\n\nagain\n.\n")).await;
    one.gets(&message(&line, &other.guid, "", "\r\nagain")).await;

    drop(one);
    let private = line[4..].parse().unwrap();
    until(|| broker.bus.topic(&private).is_none()).await;
    // Nobody is there: nothing is made.
    other.send(format!("{line}\n\nlate\n.\n")).await;
    other.is_idle().await;
    assert!(broker.bus.topic(&private).is_none());
}

/// A deleted topic is another one for users of HTTP. Clients of middleman do not know that.
#[tokio::test]
async fn a_subscription_outlives_its_topic() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    peer.command("SUB t").await;
    for text in ["one", "two", "three"] {
        peer.send(format!("PUB t\n\n{text}\n.\n")).await;
        let guid = peer.guid.clone();
        peer.gets(&message("PUB t", &guid, "", &format!("\r\n{text}"))).await;
        assert_eq!(broker.send("DELETE", "/t", &[], b"").await.status, 204);
    }
    broker.put("/t", "four").await;
    peer.gets(&message("PUB t", "", "", "\r\nfour")).await;
}

/// A super key gets a copy of every message, and is trusted as its grants say.
#[tokio::test]
async fn a_super_key_gets_a_copy_of_every_message() {
    let (root, service, weak) =
        (key("root", &["*:**"]), key("service", &["serve:**"]), key("weak", &["serve:a"]));
    let broker = Broker::with_keys(&[&root, &service, &weak], |config| {
        config.middleman.super_keys = vec!["root".to_owned(), "weak".to_owned()];
    });
    let mut all = broker.login(&root.secret).await;
    all.is_idle().await;
    let mut peer = broker.login(&service.secret).await;
    for topic in ["a", "b/c"] {
        peer.send(format!("PUB {topic}\n\nx\n.\n")).await;
        let got = all.frame().await;
        assert_eq!(got, message(&format!("PUB {topic}"), &peer.guid, "", "\r\nx"));
        assert_eq!(header(&got, "Cid"), peer.guid);
    }
    all.send(format!("PUB MSG:{}\n\ntrusted\n.\n", peer.guid)).await;
    let line = format!("PUB MSG:{}", peer.guid);
    for peer in [&mut peer] {
        peer.gets(&message(&line, &all.guid, "", "\r\ntrusted")).await;
    }
    let mut refused = broker.login(&weak.secret).await;
    refused.fails("Not trusted: SUB **").await;
}
