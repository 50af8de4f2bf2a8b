//! Section 6 of the facts: the texts of errors, to the byte. No subscription is needed for them.

use super::Broker;
use crate::keys::key;

#[tokio::test]
async fn errors_are_messages_without_headers() {
    let client = key("client", &["request:asked", "serve:served"]);
    let broker = Broker::with_keys(&[&client], |_| {});
    let mut peer = broker.login(&client.secret).await;
    for (line, error) in [
        ("PUB t", "PUB ERROR\r\n\r\nNot trusted PUB t\r\n.\r\n"),
        ("REQ t", "PUB ERROR\r\n\r\nNot trusted REQ t\r\n.\r\n"),
        ("RES t", "PUB ERROR\r\n\r\nNot trusted RES t\r\n.\r\n"),
        ("EPUB t", "PUB ERROR\r\n\r\nNot trusted EPUB t\r\n.\r\n"),
        ("ESUB t", "PUB ERROR\r\n\r\nNot trusted ESUB t\r\n.\r\n"),
        ("EREQ a b", "PUB ERROR\r\n\r\nNot trusted EREQ a b\r\n.\r\n"),
        ("SUB t", "PUB ERROR\r\n\r\nNot trusted: SUB t\r\n.\r\n"),
        ("REQ asked", "PUB ERROR\r\n\r\nNo responder for REQ asked\r\n.\r\n"),
        ("RES served\r\nRid: 5", "PUB ERROR\r\n\r\nNo client for request ID  RES served\r\n.\r\n"),
    ] {
        peer.command(line).await;
        peer.gets(error).await;
    }
    assert_eq!(broker.metric("msgbus_server_refused_total{code=\"not_granted\"}").await, 7);
    assert_eq!(broker.metric("msgbus_server_refused_total{code=\"no_responder\"}").await, 1);
    assert_eq!(broker.metric("msgbus_door_messages_total{door=\"middleman\"}").await, 9);
}
