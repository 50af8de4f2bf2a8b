//! What goes over the wire, byte by byte.

use serde_json::Value;

use super::{Over, WITH_IPC, daemon, daemon_with, key_of};
use crate::support::soon;

#[tokio::test]
async fn a_call_is_answered_with_its_key() {
    let daemon = daemon();
    for over in WITH_IPC {
        let mut peer = daemon.drs(over).await;
        peer.gives(
            r#"{"key":"-KY1abc","action":"math.add","body":{"a":1,"b":2}}"#,
            r#"{"key":"-KY1abc","action":"drs.error","body":{"message":"No handlers for math.add"}}"#,
        )
        .await;
        peer.gives(
            r#"{"key":"k","action":"drs.kaboom","body":{"any":"thing"}}"#,
            "{\"key\":\"k\",\"action\":\"drs.exception\",\"body\":{\"message\":\"\u{1F4A5}\"}}",
        )
        .await;
        peer.gives(
            r#"{"key":"k","action":"auth.upgrade","body":{"token":1}}"#,
            r#"{"key":"k","action":"drs.error","body":{"message":"Token must be a string"}}"#,
        )
        .await;
        peer.gives(
            r#"{"key":"k"}"#,
            r#"{"key":"k","action":"drs.error","body":{"message":"No handlers for "}}"#,
        )
        .await;
        peer.gives(
            r#"{"key":"k","action":"drs.whatever"}"#,
            r#"{"key":"k","action":"drs.error","body":{"message":"No handlers for drs.whatever"}}"#,
        )
        .await;
        peer.gives(
            r#"{"key":"k","action":"a//b"}"#,
            r#"{"key":"k","action":"drs.error","body":{"message":"No handlers for a//b"}}"#,
        )
        .await;
        // Escapes in a key are repeated as they are.
        peer.gives(
            r#"{"key":"\u0041\n","action":"drs.off","body":["a"]}"#,
            r#"{"key":"\u0041\n","action":"drs.response"}"#,
        )
        .await;
    }
}

#[tokio::test]
async fn a_ping_gets_the_time_in_milliseconds() {
    let daemon = daemon();
    for over in WITH_IPC {
        let mut peer = daemon.drs(over).await;
        let before = chrono::Utc::now().timestamp_millis();
        peer.send(r#"{"key":"0.8372","action":"drs.ping","body":{"ignored":true}}"#).await;
        let answer = peer.text().await;
        let time =
            answer.strip_prefix(r#"{"key":"0.8372","action":"drs.response","body":"#).unwrap();
        let time: i64 = time.strip_suffix('}').unwrap().parse().unwrap();
        assert!((before..=chrono::Utc::now().timestamp_millis()).contains(&time), "{answer}");
    }
}

#[tokio::test]
async fn commands_pass_from_peer_to_peer() {
    let daemon = daemon();
    for (caller, handler) in
        [(Over::Tcp, Over::Websocket), (Over::Websocket, Over::Ipc), (Over::Ipc, Over::Tcp)]
    {
        let (mut caller, mut handler) = (daemon.drs(caller).await, daemon.drs(handler).await);
        handler.on("drs.serve", "math.add").await;
        for (body, result, expected) in [
            (
                r#","body":{"a":1,"b":2}"#,
                r#""drs.response","body":3"#,
                r#""drs.response","body":3"#,
            ),
            // Numbers and spaces pass as they are.
            (
                r#","body":[ 1.10, 12345678901234567890123 ]"#,
                r#""drs.response","body":{"x": 1e400}"#,
                r#""drs.response","body":{"x": 1e400}"#,
            ),
            ("", r#""drs.response","body":null"#, r#""drs.response""#),
            ("", r#""drs.response""#, r#""drs.response""#),
            (
                r#","body":"text","version":7"#,
                r#""drs.error","body":{"message":"no \"way\""}"#,
                r#""drs.error","body":{"message":"no \"way\""}"#,
            ),
            (
                "",
                r#""drs.exception","body":{"message":"boom"}"#,
                r#""drs.exception","body":{"message":"boom"}"#,
            ),
        ] {
            caller.send(&format!(r#"{{"key":"c","action":"math.add"{body}}}"#)).await;
            let call = handler.text().await;
            let key = key_of(&call);
            assert_eq!(key.len(), 20, "{key}");
            assert_eq!(call, format!(r#"{{"key":"{key}","action":"math.add"{body}}}"#));
            handler.send(&format!(r#"{{"key":"{key}","action":{result}}}"#)).await;
            assert_eq!(caller.text().await, format!(r#"{{"key":"c","action":{expected}}}"#));
        }
        handler.on("drs.off", "math.add").await;
    }
}

#[tokio::test]
async fn a_fire_is_not_answered_unless_that_is_wanted() {
    for answers in [false, true] {
        let daemon = daemon_with(|config| config.drs.answers_fires = answers);
        for over in WITH_IPC {
            let (mut peer, mut other) = (daemon.drs(over).await, daemon.drs(over).await);
            other.on("drs.subscribe", "news").await;
            peer.send(r#"{"action":"news","body":{"a":1},"version":3}"#).await;
            assert_eq!(other.text().await, r#"{"action":"news","body":{"a":1},"version":3}"#);
            peer.send(r#"{"key":"","action":"news","body":null,"version":0}"#).await;
            assert_eq!(other.text().await, r#"{"action":"news"}"#);
            peer.send(r#"{"action":"drs.kaboom"}{"action":"drs.ping"}"#).await;
            if answers {
                let ok = r#"{"action":"drs.response"}"#;
                assert_eq!([peer.text().await, peer.text().await], [ok, ok]);
                assert!(peer.text().await.starts_with(r#"{"action":"drs.exception","body""#));
                assert!(peer.text().await.starts_with(r#"{"action":"drs.response","body":1"#));
            }
            peer.is_idle().await;
            other.on("drs.off", "news").await;
        }
    }
}

#[tokio::test]
async fn values_follow_each_other_in_any_pieces() {
    let daemon = daemon();
    let ping = |key: usize| format!(r#"{{"key":"{key}","action":"drs.ping"}}"#);
    let text: String = (0..20).map(|key| ping(key) + ["", " ", "\n", "\r\n\t"][key % 4]).collect();
    for over in WITH_IPC {
        for piece in [1, 7, 40, text.len()] {
            let mut peer = daemon.drs(over).await;
            for piece in text.as_bytes().chunks(piece) {
                peer.send(str::from_utf8(piece).unwrap()).await;
            }
            for key in 0..20 {
                let answer: Value = peer.value().await;
                assert_eq!(answer["key"], key.to_string(), "{over:?} {piece}");
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_said_and_ends_the_connection() {
    let daemon = daemon_with(|config| config.max_payload = 1000);
    let deep = format!(r#"{{"body":{}"#, "[".repeat(200));
    // Nothing is left to read when it is refused.
    let large = r#"{"body":""#.to_owned() + &"x".repeat(66_537 - 9);
    for over in WITH_IPC {
        for (text, reason) in [
            ("[1]", "Malformed command: expected a JSON object"),
            ("nonsense", "Malformed command: expected a JSON object"),
            (r#"{"key":1}"#, "Malformed command: a key is a string of at most 1024 bytes"),
            (
                r#"{"action":[]}"#,
                "Malformed command: invalid type: sequence, expected a string at line 1 column 10",
            ),
            (
                r#"{"version":"x"}"#,
                "Malformed command: invalid type: string \\\"x\\\", expected i64 at line 1 column 14",
            ),
            (r#"{"action"}"#, "Malformed command: expected `:` at line 1 column 10"),
            (&deep, "Command nested too deeply: at most 128 levels are read"),
            (&large, "Command too large: at most 66536 bytes are read"),
        ] {
            // A frame that is too large is refused before it is read.
            let (text, reason) = match over {
                Over::Websocket if text.len() > 66_536 => {
                    let mut peer = daemon.drs(over).await;
                    peer.send(text).await;
                    let last = peer.text().await;
                    assert!(last.contains("at most 66536 bytes are read"), "{last}");
                    peer.is_closed().await;
                    continue;
                }
                _ => (text, reason),
            };
            let mut peer = daemon.drs(over).await;
            // What came before is answered.
            peer.gives(
                &format!(r#"{{"key":"k","action":"x"}}{text}"#),
                r#"{"key":"k","action":"drs.error","body":{"message":"No handlers for x"}}"#,
            )
            .await;
            let last = format!(r#"{{"action":"drs.exception","body":{{"message":"{reason}"}}}}"#);
            assert_eq!(peer.text().await, last, "{over:?}");
            peer.is_closed().await;
        }
    }
    assert!(daemon.metric(r#"msgbus_server_refused_total{code="bad_json"}"#).await >= 10);
}

#[tokio::test]
async fn the_handshake_of_the_go_client() {
    let daemon = daemon_with(|config| config.allowed_hosts.push("known".to_owned()));
    let address = daemon.drs_address(Over::Websocket).to_string();
    for (host, origin, status) in [
        (&*address, format!("http://{address}"), "101 "),
        (&*address, "http://evil.example".to_owned(), "403 "),
        // Another name needs --allow-host.
        ("known:12000", "http://known:12000".to_owned(), "101 "),
        ("bus:12000", "http://bus:12000".to_owned(), "403 "),
    ] {
        let mut connection = daemon.drs_raw(Over::Websocket).await;
        let head = format!(
            "GET /socket?token=&a=b&  HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Origin: {origin}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        connection.write(head.replace("&  HTTP", "& HTTP").as_bytes()).await;
        let head = connection.read_until(b"\r\n\r\n").await;
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        if status == "101 " {
            // A text frame, masked with zeros: JSON and a line feed, as Go sends it.
            let command = b"{\"key\":\"k\",\"action\":\"nope\"}\n";
            let head = [0x81, 0x80 | u8::try_from(command.len()).unwrap(), 0, 0, 0, 0];
            connection.write(&[&head, &command[..]].concat()).await;
            let (first, answer) = soon(connection.frame()).await;
            assert_eq!(first, 0x81);
            assert_eq!(
                String::from_utf8(answer).unwrap(),
                "{\"key\":\"k\",\"action\":\"drs.error\",\"body\":{\"message\":\"No handlers for nope\"}}\n"
            );
        }
    }
}
