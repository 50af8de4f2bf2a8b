//! Calls are requests to services, from and to every door.

use std::time::Duration;

use msgbus_core::{BatchLimit, NewRequest};
use msgbus_engine_testkit::server::{Kind, Server};
use msgbus_testkit::name;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::{ALL, Over, daemon, daemon_with, key_of};
use crate::{engines::live_in, support::soon};

#[tokio::test]
async fn a_call_reaches_a_responder_over_http() {
    let daemon = daemon();
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        let serve = || daemon.get("/-/serve/math.add?wait=60s");
        for (reply, expected) in [
            ("3\n", r#","body":3"#),
            ("{\"sum\": 3}", r#","body":{"sum": 3}"#),
            ("not JSON", r#","body":"not JSON""#),
            ("", ""),
        ] {
            let (request, ()) = tokio::join!(serve(), async {
                daemon.served("math.add").await;
                peer.send(r#"{"key":"k","action":"math.add","body":{"a":1, "b":2}}"#).await;
            });
            assert_eq!(request.text(), r#"{"a":1, "b":2}"#);
            assert_eq!(request.header("content-type"), Some("application/json"));
            let token = request.header("msgbus-reply").unwrap();
            assert_eq!(daemon.put(&format!("/-/reply/{token}"), reply).await.status, 204);
            assert_eq!(
                peer.text().await,
                format!(r#"{{"key":"k","action":"drs.response"{expected}}}"#)
            );
        }
        let (request, ()) = tokio::join!(serve(), async {
            daemon.served("math.add").await;
            peer.send(r#"{"key":"k","action":"math.add"}"#).await;
        });
        let token = request.header("msgbus-reply").unwrap();
        let refused = daemon.put(&format!("/-/reply/{token}?error=no%20such%20number"), "").await;
        assert_eq!(refused.status, 204);
        assert_eq!(
            peer.text().await,
            r#"{"key":"k","action":"drs.error","body":{"message":"no such number"}}"#
        );
    }
}

#[tokio::test]
async fn a_peer_answers_requests_of_curl() {
    let daemon = daemon();
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        peer.on("drs.serve", "math.add").await;
        for (sent, expected, answer, status, text) in [
            (r#"{"a":1}"#, r#","body":{"a":1}"#, r#""drs.response","body":3"#, 200, "3"),
            ("hi", r#","body":"hi""#, r#""drs.response","body":"yo""#, 200, r#""yo""#),
            ("", "", r#""drs.response""#, 200, ""),
            ("", "", r#""drs.error","body":"no""#, 502, "the responder failed: no\n"),
            ("", "", r#""drs.error","body":null"#, 502, "the responder failed: \n"),
            (
                "",
                "",
                r#""drs.exception","body":{"message":"boom","kind":"exception"}"#,
                502,
                "the responder failed: exception: boom\n",
            ),
        ] {
            let (reply, ()) = tokio::join!(daemon.put("/-/request/math.add", sent), async {
                let call = peer.text().await;
                let key = key_of(&call);
                assert_eq!(call, format!(r#"{{"key":"{key}","action":"math.add"{expected}}}"#));
                peer.send(&format!(r#"{{"key":"{key}","action":{answer}}}"#)).await;
            });
            assert_eq!((reply.status, reply.text()), (status, text), "{answer}");
            if status == 200 && !text.is_empty() {
                assert_eq!(reply.header("content-type"), Some("application/json"));
            }
        }
        peer.on("drs.off", "math.add").await;
    }
}

#[tokio::test]
async fn answers_overtake_each_other_and_calls_arrive_in_order() {
    let daemon = daemon();
    let (mut caller, mut handler) =
        (daemon.drs(Over::Websocket).await, daemon.drs(Over::Tcp).await);
    handler.on("drs.serve", "s").await;
    for key in 0..10 {
        caller.send(&format!(r#"{{"key":"{key}","action":"s","body":{key}}}"#)).await;
    }
    let mut calls = Vec::new();
    for number in 0..10 {
        let call = handler.value().await;
        assert_eq!(call["body"], number);
        calls.push(call["key"].as_str().unwrap().to_owned());
    }
    for (number, key) in calls.iter().enumerate().rev() {
        handler
            .send(&format!(r#"{{"key":"{key}","action":"drs.response","body":{number}}}"#))
            .await;
        assert_eq!(
            caller.value().await,
            json!({"key": number.to_string(), "action": "drs.response", "body": number})
        );
    }
}

#[tokio::test]
async fn commands_begin_one_by_one_if_that_is_wanted() {
    let daemon = daemon_with(|config| config.drs.is_serial = true);
    let (mut caller, mut handler) = (daemon.drs(Over::Tcp).await, daemon.drs(Over::Tcp).await);
    handler.on("drs.serve", "s").await;
    caller
        .send(r#"{"key":"1","action":"s"}{"key":"2","action":"s"}{"key":"3","action":"drs.ping"}"#)
        .await;
    for expected in ["1", "2"] {
        let key = key_of(&handler.text().await);
        // The next one is not there yet: it comes only after the answer.
        handler.is_idle().await;
        handler.send(&format!(r#"{{"key":"{key}","action":"drs.response"}}"#)).await;
        assert_eq!(caller.value().await["key"], expected);
    }
    assert_eq!(caller.value().await["key"], "3");
}

/// An answer waits for nothing: it may be what the call of the peer itself waits for.
#[tokio::test]
async fn answers_overtake_calls_that_wait_for_their_turn() {
    let daemon = daemon_with(|config| config.drs.is_serial = true);
    let mut peer = daemon.drs(Over::Tcp).await;
    peer.on("drs.serve", "s").await;
    peer.send(r#"{"key":"own","action":"s"}{"key":"next","action":"drs.ping"}"#).await;
    let key = key_of(&peer.text().await);
    peer.gives(
        &format!(r#"{{"key":"{key}","action":"drs.response","body":1}}"#),
        r#"{"key":"own","action":"drs.response","body":1}"#,
    )
    .await;
    assert_eq!(peer.value().await["key"], "next");
}

/// As `printf … | nc -N` does: nothing more is sent, and everything is answered, in order.
#[tokio::test]
async fn commands_that_wait_are_answered_on_a_half_closed_stream() {
    let daemon = daemon_with(|config| config.drs.is_serial = true);
    let mut handler = daemon.drs(Over::Websocket).await;
    handler.on("drs.serve", "s").await;
    let mut connection = daemon.drs_raw(Over::Tcp).await;
    connection
        .write(
            br#"{"key":"1","action":"s"}{"action":"t"}{"key":"2","action":"s"}
            {"key":"3","action":"drs.subscribe","body":"t"}{"key":"4","action":"drs.ping"}"#,
        )
        .await;
    connection.0.shutdown().await.unwrap();
    for _ in 0..2 {
        let key = key_of(&handler.text().await);
        handler.send(&format!(r#"{{"key":"{key}","action":"drs.response"}}"#)).await;
    }
    let rest = String::from_utf8(connection.rest().await).unwrap();
    let keys: Vec<_> = rest.lines().map(key_of).collect();
    assert_eq!(keys, ["1", "2", "3", "4"], "{rest}");
}

/// What waits is limited by its memory. The rest is not read until then, and nothing is lost.
#[tokio::test]
async fn many_commands_wait_for_their_turn() {
    const COUNT: usize = 10_000;
    let daemon = daemon_with(|config| config.drs.is_serial = true);
    for over in ALL {
        let (mut handler, mut peer) = (daemon.drs(over).await, daemon.drs(over).await);
        handler.on("drs.serve", "s").await;
        peer.send(r#"{"key":"first","action":"s"}"#).await;
        let key = key_of(&handler.text().await);
        for number in 0..COUNT {
            peer.send(&format!(r#"{{"key":"{number}","action":"drs.off","body":"x"}}"#)).await;
        }
        handler.send(&format!(r#"{{"key":"{key}","action":"drs.response"}}"#)).await;
        assert_eq!(key_of(&peer.text().await), "first");
        for number in 0..COUNT {
            assert_eq!(key_of(&peer.text().await), number.to_string());
        }
        handler.on("drs.off", "s").await;
    }
}

#[tokio::test]
async fn a_call_has_a_deadline() {
    let daemon = daemon_with(|config| config.drs.timeout = Duration::from_millis(300));
    for over in ALL {
        let (mut caller, mut handler) = (daemon.drs(over).await, daemon.drs(over).await);
        handler.on("drs.serve", "s").await;
        caller.send(r#"{"key":"slow","action":"s"}"#).await;
        let late = key_of(&handler.text().await);
        assert_eq!(
            caller.text().await,
            r#"{"key":"slow","action":"drs.exception","body":{"message":"there was no reply in time; a responder may have done the work"}}"#
        );
        // A late answer is ignored.
        handler.send(&format!(r#"{{"key":"{late}","action":"drs.response"}}"#)).await;
        handler.is_idle().await;
        handler.on("drs.off", "s").await;
    }
}

#[tokio::test]
async fn a_call_ends_with_the_connection_of_its_handler() {
    let daemon = daemon();
    for over in ALL {
        let (mut caller, mut handler) = (daemon.drs(over).await, daemon.drs(over).await);
        handler.on("drs.serve", "s").await;
        caller.send(r#"{"key":"gone","action":"s"}"#).await;
        handler.text().await;
        drop(handler);
        assert_eq!(
            caller.text().await,
            r#"{"key":"gone","action":"drs.exception","body":{"message":"Connection closed"}}"#
        );
    }
}

#[tokio::test]
async fn the_calls_of_a_peer_that_leaves_are_taken_back() {
    let daemon = daemon();
    for over in ALL {
        let (mut caller, mut handler) = (daemon.drs(over).await, daemon.drs(over).await);
        handler.on("drs.serve", "s").await;
        caller.send(r#"{"key":"k","action":"s"}"#).await;
        handler.text().await;
        assert_eq!(daemon.bus.service(&name("s")).unwrap().in_hand, 1);
        drop(caller);
        msgbus_testkit::until(|| daemon.bus.service(&name("s")).unwrap().in_hand == 0).await;
    }
}

#[tokio::test]
async fn a_request_is_handed_on_when_its_peer_leaves() {
    let daemon = daemon();
    let mut first = daemon.drs(Over::Tcp).await;
    first.on("drs.serve", "s").await;
    let (reply, ()) = tokio::join!(daemon.put("/-/request/s?retry&timeout=60s", "x"), async {
        first.text().await;
        let mut second = daemon.drs(Over::Websocket).await;
        second.on("drs.serve", "s").await;
        drop(first);
        let key = key_of(&second.text().await);
        second.send(&format!(r#"{{"key":"{key}","action":"drs.response","body":1}}"#)).await;
        second.is_idle().await;
    });
    assert_eq!((reply.status, reply.text()), (200, "1"));
}

#[tokio::test]
async fn nobody_completes_the_calls_of_another_connection() {
    let daemon = daemon();
    let (mut caller, mut handler, mut thief) =
        (daemon.drs(Over::Tcp).await, daemon.drs(Over::Tcp).await, daemon.drs(Over::Tcp).await);
    handler.on("drs.serve", "s").await;
    caller.send(r#"{"key":"k","action":"s"}"#).await;
    let key = key_of(&handler.text().await);
    for key in [&*key, "k"] {
        thief.send(&format!(r#"{{"key":"{key}","action":"drs.response","body":"stolen"}}"#)).await;
    }
    thief.is_idle().await;
    handler.send(&format!(r#"{{"key":"{key}","action":"drs.response","body":"mine"}}"#)).await;
    // A second answer is ignored.
    handler.send(&format!(r#"{{"key":"{key}","action":"drs.response","body":"again"}}"#)).await;
    handler.is_idle().await;
    assert_eq!(caller.text().await, r#"{"key":"k","action":"drs.response","body":"mine"}"#);
    caller.is_idle().await;
}

#[tokio::test]
async fn two_calls_with_one_key_are_both_answered() {
    let daemon = daemon();
    let (mut caller, mut handler) = (daemon.drs(Over::Tcp).await, daemon.drs(Over::Tcp).await);
    handler.on("drs.serve", "s").await;
    caller.send(r#"{"key":"k","action":"s","body":1}{"key":"k","action":"s","body":2}"#).await;
    let (one, two) = (key_of(&handler.text().await), key_of(&handler.text().await));
    assert_ne!(one, two);
    for key in [two, one] {
        handler.send(&format!(r#"{{"key":"{key}","action":"drs.response"}}"#)).await;
        assert_eq!(caller.text().await, r#"{"key":"k","action":"drs.response"}"#);
    }
}

#[tokio::test]
async fn a_peer_may_call_itself() {
    let daemon = daemon();
    let mut peer = daemon.drs(Over::Websocket).await;
    peer.on("drs.serve", "s").await;
    peer.send(r#"{"key":"own","action":"s"}"#).await;
    let key = key_of(&peer.text().await);
    peer.gives(
        &format!(r#"{{"key":"{key}","action":"drs.response","body":[]}}"#),
        r#"{"key":"own","action":"drs.response","body":[]}"#,
    )
    .await;
}

#[tokio::test]
async fn handlers_share_the_calls_and_can_be_removed() {
    let daemon = daemon();
    let (mut caller, mut one, mut two) = (
        daemon.drs(Over::Tcp).await,
        daemon.drs(Over::Tcp).await,
        daemon.drs(Over::Websocket).await,
    );
    // Twice is once.
    for _ in 0..2 {
        one.on("drs.serve", "s").await;
    }
    two.on("drs.serve", "s").await;
    for peer in [&mut one, &mut two] {
        caller.send(r#"{"key":"k","action":"s"}"#).await;
        let key = key_of(&peer.text().await);
        peer.send(&format!(r#"{{"key":"{key}","action":"drs.response"}}"#)).await;
        caller.text().await;
    }
    one.on("drs.off", "s").await;
    for _ in 0..3 {
        caller.send(r#"{"key":"k","action":"s"}"#).await;
        let key = key_of(&two.text().await);
        two.send(&format!(r#"{{"key":"{key}","action":"drs.response"}}"#)).await;
        caller.text().await;
    }
    one.is_idle().await;
}

#[tokio::test]
async fn a_stop_answers_the_calls_that_wait() {
    let daemon = daemon_with(|config| config.timeouts.drain = Duration::from_secs(60));
    let mut peers = Vec::new();
    let responder = daemon.bus.serve(&name("s"), BatchLimit::ONE).unwrap();
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        peer.send(r#"{"key":"k","action":"s"}"#).await;
        peer.is_idle().await;
        peers.push(peer);
    }
    let stopped = daemon.stop();
    for peer in &mut peers {
        assert_eq!(
            peer.text().await,
            r#"{"key":"k","action":"drs.exception","body":{"message":"Connection closed"}}"#
        );
        peer.is_closed().await;
    }
    drop(peers);
    assert_eq!(soon(stopped).await.unwrap().cut, 0);
    drop(responder);
}

#[tokio::test]
async fn a_requester_in_process_gets_what_a_peer_answers() {
    let daemon = daemon();
    let mut peer = daemon.drs_at("/socket?serve=a,s&subscribe=t").await;
    peer.is_idle().await;
    let asked = daemon.bus.request(&name("s"), NewRequest::new("[1]"));
    let key = key_of(&peer.text().await);
    peer.send(&format!(r#"{{"key":"{key}","action":"drs.response","body":[2]}}"#)).await;
    assert_eq!(&soon(asked).await.unwrap().payload[..], b"[2]");
    daemon.put("/t", "hello").await;
    assert_eq!(peer.text().await, r#"{"action":"t","body":"hello"}"#);
}

/// A responder may be at another server, so that somebody follows the name does not make it a fire.
#[tokio::test]
async fn a_call_reaches_a_responder_at_another_server() {
    for program in Kind::Nats.programs() {
        let nats = Server::start(&program);
        let daemon = || daemon_with(|config| live_in(&nats, config));
        let (one, other) = (daemon(), daemon());
        one.wait_for_engine().await;
        other.wait_for_engine().await;
        let (mut caller, mut follower) = (one.drs(Over::Tcp).await, one.drs(Over::Tcp).await);
        follower.on("drs.subscribe", "orders/price").await;
        caller
            .gives(
                r#"{"key":"k","action":"orders/price"}"#,
                r#"{"key":"k","action":"drs.error","body":{"message":"No handlers for orders/price"}}"#,
            )
            .await;
        let mut handler = other.drs(Over::Tcp).await;
        handler.on("drs.serve", "orders/price").await;
        let is_known = async {
            while one.bus.is_served_anywhere(&name("orders/price")).await != Ok(true) {
                tokio::task::yield_now().await;
            }
        };
        soon(is_known).await;
        caller.send(r#"{"key":"k","action":"orders/price"}"#).await;
        let key = key_of(&handler.text().await);
        handler.send(&format!(r#"{{"key":"{key}","action":"drs.response","body":3}}"#)).await;
        assert_eq!(caller.text().await, r#"{"key":"k","action":"drs.response","body":3}"#);
        follower.is_idle().await;
    }
}
