//! Section 7 of the facts: user ids.

use super::{Broker, message};
use crate::keys::key;

#[tokio::test]
async fn a_service_attaches_a_user_to_a_connection() {
    let (service, client) = (key("auth", &["serve:Auth"]), key("client", &["pull:x"]));
    let broker = Broker::with_keys(&[&service, &client], |_| {});
    let (mut auth, mut peer) =
        (broker.login(&service.secret).await, broker.login(&client.secret).await);
    auth.command("EREQ Auth").await;
    auth.command("EPUB Auth").await;
    auth.command("SUB Auth").await;
    auth.is_idle().await;
    // The login flow of the facts, with the service's part of it.
    peer.send("REQ Auth\ncmd: Verify\nemail: a@b.c\nhash: 1\nReqID: 1\n\n.\n").await;
    let asked = "Rid: 1\r\ncmd: Verify\r\nemail: a@b.c\r\nhash: 1\r\nReqID: 1\r\n\r\n";
    auth.gets(&message("REQ Auth", &peer.guid, "", asked)).await;
    auth.send(format!("INT UID\nforcid: {}\nsetuid: a@b.c\n\n\r\n.\r\n", peer.guid)).await;
    auth.send("RES Auth\nrid:1\nauth:Y\n\n\r\n.\r\n").await;
    peer.gets(&message("RES Auth", &auth.guid, "", "auth: Y\r\nReqID: 1\r\n\r\n")).await;

    // From then on all of its messages have it.
    peer.send("PUB Auth\nUid: root\n\nhi\n.\n").await;
    auth.gets(&message("PUB Auth", &peer.guid, "a@b.c", "\r\nhi")).await;
    peer.send("REQ Auth\n\n.\n").await;
    auth.gets(&message("REQ Auth", &peer.guid, "a@b.c", "Rid: 2\r\n\r\n")).await;
    // Those of others have not.
    let mut other = broker.login(&client.secret).await;
    other.send("PUB Auth\n\nhi\n.\n").await;
    auth.gets(&message("PUB Auth", &other.guid, "", "\r\nhi")).await;
}

#[tokio::test]
async fn int_uid_is_for_services_and_for_connections_that_are_there() {
    let (service, client) = (key("auth", &["serve:Auth"]), key("client", &["publish:t"]));
    let broker = Broker::with_keys(&[&service, &client], |_| {});
    let (mut auth, mut peer) =
        (broker.login(&service.secret).await, broker.login(&client.secret).await);
    // Of an untrusted client it is ignored.
    peer.send(format!("INT UID\nforcid: {}\nsetuid: root\n\n.\n", peer.guid)).await;
    peer.is_idle().await;
    peer.command("PUB t").await;
    peer.is_idle().await;
    let t = broker.bus.peek(&"t".parse().unwrap(), None, msgbus_core::BatchLimit::ONE).await;
    let events = format!("{:?}", t.unwrap().unwrap());
    assert!(events.contains("\"Uid\", \"\""), "{events}");

    for (headers, refusal) in [
        ("setuid: x".to_owned(), "INT UID: the headers forcid and setuid are required"),
        (format!("forcid: {}", peer.guid), "INT UID: the headers forcid and setuid are required"),
        (
            "forcid: nobody\nsetuid: x".to_owned(),
            "INT UID: there is no connection with the id in forcid",
        ),
        (
            "forcid: 00000000000000000000\nsetuid: x".to_owned(),
            "INT UID: there is no connection with the id in forcid",
        ),
        (
            format!("forcid: {}\nsetuid: {}", peer.guid, "x".repeat(256)),
            "INT UID: the user id in setuid is too long",
        ),
    ] {
        auth.send(format!("INT UID\n{headers}\n\n.\n")).await;
        auth.fails(refusal).await;
    }
    drop(peer);
}
