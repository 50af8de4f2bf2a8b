//! Section 5 of the facts: which clients may do what; and access control that has an effect.

use super::{Broker, message};
use crate::{
    keys::{bearer, key},
    support::{soon, until},
};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// What is refused has no effect.
#[tokio::test]
async fn untrusted_clients_may_do_nothing_by_themselves() {
    let (service, client) = (key("service", &["serve:**"]), key("client", &["publish:other"]));
    let broker = Broker::with_keys(&[&service, &client], |_| {});
    let (mut peer, mut watcher) =
        (broker.login(&client.secret).await, broker.login(&service.secret).await);
    watcher.command("SUB t").await;
    watcher.command("EREQ served").await;
    watcher.is_idle().await;
    for command in ["PUB", "REQ", "RES", "EPUB", "ESUB", "EREQ"] {
        peer.command(&format!("{command} t")).await;
        peer.fails(&format!("Not trusted {command} t")).await;
    }
    peer.command("SUB t").await;
    peer.fails("Not trusted: SUB t").await;
    let private = format!("MSG:{}", watcher.guid);
    peer.command(&format!("PUB {private}")).await;
    peer.fails(&format!("Not trusted PUB {private}")).await;
    peer.command(&format!("SUB {private}")).await;
    peer.fails(&format!("Not trusted: SUB {private}")).await;

    watcher.send("PUB t\n\nfor those who may\n.\n").await;
    let guid = watcher.guid.clone();
    watcher.gets(&message("PUB t", &guid, "", "\r\nfor those who may")).await;
    watcher.is_idle().await;
    peer.is_idle().await;
}

#[tokio::test]
async fn services_enable_what_clients_may_do() {
    let (service, client) = (key("service", &["serve:a", "serve:b"]), key("client", &["pull:x"]));
    let broker = Broker::with_keys(&[&service, &client], |_| {});
    let (mut trusted, mut peer) =
        (broker.login(&service.secret).await, broker.login(&client.secret).await);
    trusted.command("EPUB a").await;
    trusted.command("ESUB b").await;
    trusted.command("EPUB c").await;
    trusted.fails("Not trusted EPUB c").await;
    // Names are exact, and the two sets are apart.
    for (line, refusal) in [
        ("SUB a", "Not trusted: SUB a"),
        ("PUB b", "Not trusted PUB b"),
        ("PUB A", "Not trusted PUB A"),
        ("REQ a", "No responder for REQ a"),
        ("RES a\r\nrid: 1", "No client for request ID  RES a"),
    ] {
        peer.command(line).await;
        peer.fails(refusal).await;
    }
    trusted.command("SUB a").await;
    peer.command("SUB b").await;
    peer.is_idle().await;
    trusted.is_idle().await;
    peer.send("PUB a\n\nup\n.\n").await;
    trusted.gets(&message("PUB a", &peer.guid, "", "\r\nup")).await;
    trusted.send("PUB b\n\ndown\n.\n").await;
    peer.gets(&message("PUB b", &trusted.guid, "", "\r\ndown")).await;

    // As it was, sets only grow.
    drop(trusted);
    peer.send("PUB a\n\nup\n.\n").await;
    peer.is_idle().await;
    let mut again = broker.login(&client.secret).await;
    again.send("PUB a\n\nup\n.\n").await;
    again.is_idle().await;
    assert_eq!(broker.bus.topic(&"a".parse().unwrap()).unwrap().counters.published, 3);
}

/// EREQ lets clients request and publish.
#[tokio::test]
async fn a_responder_enables_its_topic() {
    let (service, client) = (key("service", &["serve:a"]), key("client", &["pull:x"]));
    let broker = Broker::with_keys(&[&service, &client], |_| {});
    let (mut trusted, mut peer) =
        (broker.login(&service.secret).await, broker.login(&client.secret).await);
    trusted.command("EREQ a").await;
    trusted.command("SUB a").await;
    trusted.is_idle().await;
    peer.send("PUB a\n\n1\n.\n").await;
    trusted.gets(&message("PUB a", &peer.guid, "", "\r\n1")).await;
    peer.send("REQ a\n\n2\n.\n").await;
    trusted.gets(&message("REQ a", &peer.guid, "", "Rid: 1\r\n\r\n2")).await;
}

#[tokio::test]
async fn what_a_service_enables_may_end_with_it() {
    let (service, client) = (key("service", &["serve:a"]), key("client", &["pull:x"]));
    let broker = Broker::with_keys(&[&service, &client], |config| {
        config.middleman.ends_with_service = true;
    });
    let mut peer = broker.login(&client.secret).await;
    let (mut one, mut two) =
        (broker.login(&service.secret).await, broker.login(&service.secret).await);
    one.command("EPUB a").await;
    two.command("EPUB a").await;
    one.is_idle().await;
    two.is_idle().await;
    peer.command("PUB a").await;
    peer.is_idle().await;
    drop(one);
    broker.subscribers(2).await;
    peer.command("PUB a").await;
    peer.is_idle().await;
    drop(two);
    broker.subscribers(1).await;
    // The end of a subscription and what it enabled are one step for others, but not at the same instant.
    soon(async {
        loop {
            peer.command("PUB a").await;
            peer.command("SUB ").await;
            if peer.frame().await.contains("Not trusted PUB a") {
                break;
            }
        }
    })
    .await;
}

/// Grants of a key count as at every door.
#[tokio::test]
async fn clients_have_the_grants_of_their_keys() {
    let (client, service) =
        (key("client", &["publish:p", "subscribe:s", "request:r"]), key("service", &["serve:r"]));
    let broker = Broker::with_keys(&[&client, &service], |_| {});
    let (mut peer, mut responder) =
        (broker.login(&client.secret).await, broker.login(&service.secret).await);
    responder.command("EREQ r").await;
    responder.is_idle().await;
    for line in ["PUB p", "SUB s"] {
        peer.command(line).await;
    }
    peer.is_idle().await;
    for (line, refusal) in [("PUB s", "Not trusted PUB s"), ("SUB p", "Not trusted: SUB p")] {
        peer.command(line).await;
        peer.fails(refusal).await;
    }
    peer.command("REQ r").await;
    responder.gets(&message("REQ r", &peer.guid, "", "Rid: 1\r\n\r\n")).await;
    let refused = broker.send("PUT", "/p", &[&bearer(&service)], b"x").await;
    refused.refuses(403, "does not allow publish:p");
}

/// A key that is gone ends its connections; what its service has enabled ends with the key.
#[tokio::test]
async fn a_key_that_is_gone_counts_no_longer() {
    let (service, client, other) =
        (key("service", &["serve:a"]), key("client", &["pull:x"]), key("other", &["pull:x"]));
    // Nothing else wakes a connection.
    let broker = Broker::with_keys(&[&service, &client, &other], |config| {
        config.timeouts.ping = std::time::Duration::from_secs(3600);
    });
    let reload = || broker.keyring.as_ref().unwrap().reload().unwrap();
    let (mut trusted, mut peer, mut stays) = (
        broker.login(&service.secret).await,
        broker.login(&client.secret).await,
        broker.login(&other.secret).await,
    );
    trusted.command("EPUB a").await;
    trusted.command("ESUB a").await;
    trusted.is_idle().await;
    stays.command("SUB a").await;
    stays.command("PUB a").await;
    let guid = stays.guid.clone();
    stays.gets(&message("PUB a", &guid, "", "\r\n")).await;

    let private = format!("MSG:{}", peer.guid).parse().unwrap();
    broker.bus.put(&private, "hi").unwrap();
    peer.frame().await;
    broker.keys().write(&[], &[&service, &other]);
    reload();
    assert_eq!(peer.close().await.unwrap().0, CloseCode::from(4403));
    // Without its key, too, its private topic goes with it.
    until(|| broker.bus.topic(&private).is_none()).await;
    stays.command("PUB a").await;
    stays.gets(&message("PUB a", &guid, "", "\r\n")).await;

    broker.keys().write(&[], &[&other]);
    reload();
    assert_eq!(trusted.close().await.unwrap().0, CloseCode::from(4403));
    stays.fails("Not trusted: SUB a").await;
    stays.command("PUB a").await;
    stays.fails("Not trusted PUB a").await;
}

/// What several services have enabled stays while one of them may serve it: keys can be replaced.
#[tokio::test]
async fn subscriptions_outlive_the_key_of_one_service_of_several() {
    let (old, new, client) =
        (key("old", &["serve:**"]), key("new", &["serve:a"]), key("client", &["pull:x"]));
    let broker = Broker::with_keys(&[&old, &new, &client], |_| {});
    let mut services = [broker.login(&old.secret).await, broker.login(&new.secret).await];
    for service in &mut services {
        service.command("ESUB a").await;
        service.is_idle().await;
    }
    let mut page = broker.login(&client.secret).await;
    page.command("SUB a").await;
    page.is_idle().await;
    broker.keys().write(&[], &[&new, &client]);
    broker.keyring.as_ref().unwrap().reload().unwrap();
    let [mut gone, mut stays] = services;
    assert_eq!(gone.close().await.unwrap().0, CloseCode::from(4403));
    for number in 0..3 {
        stays.send(format!("PUB a\n\n{number}\n.\n")).await;
        page.gets(&message("PUB a", &stays.guid, "", &format!("\r\n{number}"))).await;
    }
}
