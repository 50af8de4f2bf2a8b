//! 16.1, 16.3 and 16.6: the handshake, operations and their answers.

use serde_json::json;

use super::{PROTOCOL, payload};
use crate::support::{Daemon, HANDSHAKE};

#[tokio::test]
async fn the_handshake_selects_the_protocol_that_is_offered() {
    let daemon = Daemon::start();
    let mut client = daemon.client_with(&[]).await;
    client.is_idle().await;
    let offers = [(PROTOCOL.0, "x, msgbus.v1, bearer.a2V5")];
    let (_, response) = daemon.subscribe_with("/", &offers).await;
    assert_eq!(response.headers()[PROTOCOL.0], "msgbus.v1");
    // On a topic there is no such protocol.
    let mut connection = daemon.connect().await;
    let request = format!(
        "GET /t HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}Sec-WebSocket-Protocol: msgbus.v1\r\n\r\n"
    );
    connection.write(request.as_bytes()).await;
    let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && !head.contains("sec-websocket-protocol"), "{head}");
    for (target, headers) in [
        (
            "/",
            &[
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            ][..],
        ),
        (
            "/?since=all",
            &[
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Protocol: msgbus.v1",
            ],
        ),
        (
            "/",
            &[
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Protocol: msgbus.v1",
            ],
        ),
    ] {
        assert_eq!(daemon.send("GET", target, headers, b"").await.status, 400, "{headers:?}");
    }
    let plain = daemon.send("GET", "/", &["Upgrade: websocket"], b"").await;
    plain.refuses(400, "must offer the subprotocol msgbus.v1");
}

#[tokio::test]
async fn a_publish_is_that_of_http() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    let first = client.ok(json!({"op": "pub", "topic": "t", "text": "hi"})).await;
    let second = daemon.put("/t", "there").await;
    assert_eq!((first["id"].as_u64(), second.number("Msgbus-Id")), (Some(0), 1));
    assert_eq!(first["epoch"].as_str(), second.header("Msgbus-Epoch"));
    assert_eq!(first["durability"].as_str(), second.header("Msgbus-Durability"));
    for (operation, bytes, content_type) in [
        (json!({"op": "pub", "topic": "p"}), &b""[..], None),
        (json!({"op": "pub", "topic": "p", "text": "\u{e9}\n\""}), "\u{e9}\n\"".as_bytes(), None),
        (json!({"op": "pub", "topic": "p", "base64": "AP8="}), b"\x00\xff", None),
        (json!({"op": "pub", "topic": "p", "json": null}), b"null", Some("application/json")),
        (
            json!({"op": "pub", "topic": "p", "json": {"a": [1]}, "headers": {"Content-Type": "x/y"}}),
            br#"{"a":[1]}"#,
            Some("x/y"),
        ),
    ] {
        client.ok(operation).await;
        let message = daemon.get("/p").await.message();
        assert_eq!((&message.payload()[..], message.content_type()), (bytes, content_type));
    }
    // The text of JSON is kept as it was sent, and may be anything.
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    for text in ["{ \"a\" :\t1e999 }", "123456789012345678901234567890", &deep] {
        client
            .send_text(format!("{{\"op\":\"pub\",\"topic\":\"p\",\"rid\":1,\"json\": {text} }}"))
            .await;
        assert_eq!(client.line().await["op"], "ok");
        assert_eq!(&daemon.get("/p").await.message().payload()[..], text.as_bytes());
    }
    let headers = json!({"a": "1", "b": ["2", "3"], "X-Y": "\u{e9}"});
    client.ok(json!({"op": "pub", "topic": "p", "headers": headers, "ttl": "500s"})).await;
    let message = daemon.get("/p").await.message();
    let pairs: Vec<_> = message.headers().iter().collect();
    assert_eq!(pairs, [("X-Y", "\u{e9}"), ("a", "1"), ("b", "2"), ("b", "3")]);
    assert_eq!((message.expires().unwrap() - message.created()).num_seconds(), 500);
}

#[tokio::test]
async fn operations_of_a_frame_are_answered_in_order_in_one_frame() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    let publish =
        |rid: usize| json!({"op": "pub", "rid": rid, "topic": "t", "text": rid.to_string()});
    client.send(&(0..16).map(publish).collect::<Vec<_>>()).await;
    assert_eq!(client.frame().await, 16);
    for id in 0..16 {
        let answer = client.line().await;
        assert_eq!((&answer["rid"], &answer["id"]), (&json!(id), &json!(id)));
    }
    // Without rid, only refusals are answered. Empty lines, spaces and a missing line feed are allowed.
    client.send_text("\n\n {\"op\":\"pub\",\"topic\":\"t\"}\r\n{\"op\":\"pub\",\"topic\":\"\"}\n\t{\"op\":\"ping\",\"rid\":\"\\u0061\"}").await;
    assert_eq!(client.line().await["code"], "bad_topic");
    assert_eq!(client.line().await, json!({"op": "pong", "rid": "a"}));
    assert_eq!(daemon.bus.stats().counters.published, 17);
    assert_eq!(daemon.metric("msgbus_server_operations_total").await, 19);
}

#[tokio::test]
async fn pulls_take_messages_as_over_http() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    let empty = client.ok(json!({"op": "pull", "topic": "t"})).await;
    assert_eq!(empty["messages"], json!([]));
    assert!(daemon.bus.topics().is_empty(), "it creates no topic");
    for id in 0..5 {
        daemon.put("/t", id.to_string()).await;
    }
    let two = client.ok(json!({"op": "pull", "topic": "t", "max": 2, "payload": "text"})).await;
    let texts: Vec<_> = two["messages"].as_array().unwrap().iter().map(|m| &m["text"]).collect();
    assert_eq!(texts, ["0", "1"]);
    let next = daemon.get("/t").await;
    assert_eq!(next.message().id(), 2);
    let rest = client.ok(json!({"op": "pull", "topic": "t", "max": 100_000, "wait": "20s"})).await;
    assert_eq!(rest["messages"].as_array().unwrap().len(), 2);
    let nothing = client.ok(json!({"op": "pull", "topic": "t", "wait": "1ms"})).await;
    assert_eq!(nothing["messages"], json!([]));
}

#[tokio::test]
async fn a_waiting_pull_delays_nothing_else() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    client.send(&[json!({"op": "pull", "rid": "wait", "topic": "t", "wait": "60s"})]).await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "u"})).await;
    client.send(&[json!({"op": "pub", "topic": "u", "text": "before"})]).await;
    assert_eq!(payload(&client.line().await), "before");
    daemon.put("/t", "late").await;
    let answer = client.line().await;
    assert_eq!((&answer["rid"], answer["messages"].as_array().unwrap().len()), (&json!("wait"), 1));
    // A deleted topic ends the wait.
    client.send(&[json!({"op": "pull", "rid": 2, "topic": "t", "wait": "60s"})]).await;
    client.is_idle().await;
    assert_eq!(daemon.send("DELETE", "/t", &[], b"").await.status, 204);
    assert_eq!(client.line().await, json!({"op": "ok", "rid": 2, "messages": []}));
}
