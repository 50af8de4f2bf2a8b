//! 16.9: requests to services, and their responders.

use std::{collections::HashSet, fs};

use msgbus_core::{NewRequest, TopicName};
use msgbusd::auth::KeyFile;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{Client, keys::key};
use crate::{
    rfc6455::{TEXT, frame},
    support::{Daemon, soon, until},
};

impl Client {
    /// Serves a service.
    async fn serve(&mut self, service: &str, max: u32) {
        let serve = json!({"op": "serve", "sid": service, "service": service, "max": max, "payload": "text"});
        assert_eq!(self.ok(serve).await["sid"], service);
    }

    /// Asks, without waiting for the reply.
    async fn begin(&mut self, rid: impl Into<Value>, service: &str, more: Value) {
        let mut ask =
            json!({"op": "request", "rid": rid.into(), "service": service, "timeout": "60s"});
        for (name, value) in more.as_object().unwrap() {
            ask[name] = value.clone();
        }
        self.send(&[ask]).await;
    }

    /// The next line, which is a request. Returns its token.
    async fn request(&mut self) -> String {
        let line = self.line().await;
        assert_eq!(line["op"], "request", "{line}");
        line["reply"].as_str().unwrap().to_owned()
    }

    /// Asserts that the next line is an error.
    async fn error(&mut self, rid: impl Into<Value>, code: &str) -> String {
        let line = self.line().await;
        assert_eq!((&line["rid"], &line["code"]), (&rid.into(), &json!(code)), "{line}");
        line["text"].as_str().unwrap().to_owned()
    }
}

/// A request of which the time is over while its responder has it. Returns its token.
async fn late(requester: &mut Client, responder: &mut Client) -> String {
    let mut timeout = 50;
    loop {
        requester.begin("late", "s", json!({"timeout": format!("{timeout}ms")})).await;
        requester.error("late", "request_timeout").await;
        // On a slow machine, it may have been over before it was sent.
        responder.send(&[json!({"op": "ping"})]).await;
        match responder.line().await {
            request if request["op"] == "request" => {
                assert_eq!(responder.line().await["op"], "pong");
                return request["reply"].as_str().unwrap().to_owned();
            }
            pong => assert_eq!(pong["op"], "pong"),
        }
        timeout *= 2;
    }
}

fn name(service: &str) -> TopicName {
    service.parse().unwrap()
}

#[tokio::test]
async fn a_request_goes_to_a_responder_and_its_reply_to_the_requester() {
    let daemon = Daemon::start();
    let (mut responder, mut requester) = (daemon.client().await, daemon.client().await);
    responder.serve("upper", 10).await;
    responder.ok(json!({"op": "serve", "sid": "b", "service": "binary"})).await;
    requester.begin("a", "upper", json!({"text": "größe", "headers": {"tag": ["1", "2"]}})).await;
    let request = responder.line().await;
    assert_eq!((&request["op"], &request["sid"]), (&json!("request"), &json!("upper")));
    assert_eq!(
        (&request["text"], &request["headers"]),
        (&json!("größe"), &json!({"tag": ["1", "2"]}))
    );
    let left = msgbus_core::parse_duration(request["timeout"].as_str().unwrap()).unwrap();
    assert!(left <= NewRequest::MAX_TIMEOUT && !left.is_zero(), "{left:?}");
    let token = &request["reply"];
    responder.ok(json!({"op": "reply", "token": token, "json": ["GRÖSSE"]})).await;
    let reply = json!({"op": "ok", "rid": "a", "payload": "WyJHUsOWU1NFIl0=",
        "headers": {"content-type": "application/json"}});
    assert_eq!(requester.line().await, reply);
    let again = json!({"op": "reply", "token": token, "text": "again"}).to_string();
    assert_eq!(responder.refused(&again, "reply_not_wanted").await["of"], "reply");

    requester.begin(1, "binary", json!({"base64": "/wA=", "payload": "text"})).await;
    let request = responder.line().await;
    assert_eq!((&request["payload"], request.get("headers")), (&json!("/wA="), None));
    responder.send(&[json!({"op": "reply", "token": request["reply"], "text": "hi there"})]).await;
    assert_eq!(requester.line().await, json!({"op": "ok", "rid": 1, "text": "hi there"}));
    requester.begin(2, "upper", json!({})).await;
    let token = responder.request().await;
    responder.ok(json!({"op": "reply", "token": token})).await;
    assert_eq!(requester.line().await, json!({"op": "ok", "rid": 2, "payload": ""}));

    let stats = daemon.bus.service(&name("upper")).unwrap();
    assert_eq!((stats.responders, stats.queued, stats.in_hand), (1, 0, 0));
    assert_eq!((stats.counters.replied, stats.counters.not_wanted), (2, 1));
    assert_eq!(daemon.metric("msgbus_service_replied_total{service=\"upper\"}").await, 2);
    assert_eq!(daemon.metric("msgbus_server_subscriptions").await, 2);
}

#[tokio::test]
async fn failures_are_told_as_over_http() {
    let daemon = Daemon::start();
    let (mut responder, mut requester) = (daemon.client().await, daemon.client().await);
    requester.begin(1, "s", json!({})).await;
    assert!(requester.error(1, "no_responder").await.contains("nobody serves s"));
    responder.serve("s", 10).await;
    requester.begin(2, "s", json!({"retry": true})).await;
    let token = responder.request().await;
    // Declined: it comes again, as there is no other responder.
    responder.send(&[json!({"op": "reply", "rid": 1, "token": token, "retry": true})]).await;
    let lines = [responder.line().await, responder.line().await];
    let again = lines.iter().find(|line| line["op"] == "request").unwrap();
    responder.ok(json!({"op": "reply", "token": again["reply"]})).await;
    assert_eq!(requester.line().await["rid"], 2);
    requester.begin(3, "s", json!({})).await;
    let token = responder.request().await;
    responder.ok(json!({"op": "reply", "token": token, "retry": true})).await;
    assert!(requester.error(3, "responder_failed").await.contains("left without a reply"));
    requester.begin(4, "s", json!({})).await;
    let token = responder.request().await;
    let reason = "ö".repeat(600);
    responder.ok(json!({"op": "reply", "token": token, "error": reason})).await;
    let text = requester.error(4, "responder_failed").await;
    assert_eq!(text, format!("the responder failed: {}", "ö".repeat(512)));
    let late = late(&mut requester, &mut responder).await;
    let late = json!({"op": "reply", "token": late}).to_string();
    responder.refused(&late, "reply_not_wanted").await;
}

/// `max`, and that a request whose time is over counts no longer.
#[tokio::test]
async fn a_responder_gets_as_many_at_a_time_as_it_wants() {
    let daemon = Daemon::start();
    let (mut responder, mut requester) = (daemon.client().await, daemon.client().await);
    responder.serve("s", 2).await;
    for n in 0..3 {
        requester.begin(n, "s", json!({"text": n.to_string()})).await;
    }
    let first = responder.request().await;
    let second = responder.request().await;
    until(|| daemon.bus.service(&name("s")).unwrap().queued == 1).await;
    responder.is_idle().await;
    responder.send(&[json!({"op": "reply", "token": second})]).await;
    let third = responder.line().await;
    assert_eq!(third["text"], "2");
    assert_eq!(requester.line().await["rid"], 1);
    // Others get what it does not take.
    let mut other = daemon.client().await;
    requester.begin(3, "s", json!({"text": "3"})).await;
    other.serve("s", 1).await;
    assert_eq!(other.line().await["text"], "3");
    for token in [first.as_str(), third["reply"].as_str().unwrap()] {
        responder.ok(json!({"op": "reply", "token": token})).await;
    }
    for _ in 0..2 {
        assert_eq!(requester.line().await["op"], "ok");
    }
    for _ in 0..2 {
        late(&mut requester, &mut responder).await;
    }
    requester.begin(6, "s", json!({"text": "6"})).await;
    assert_eq!(responder.line().await["text"], "6");
}

/// After `unsub`, what is in hand can be answered.
#[tokio::test]
async fn a_responder_ends_without_a_loss() {
    let daemon = Daemon::start();
    let (mut responder, mut requester) = (daemon.client().await, daemon.client().await);
    responder.serve("s", 1).await;
    requester.begin(1, "s", json!({})).await;
    let token = responder.request().await;
    requester.begin(2, "s", json!({})).await;
    assert_eq!(responder.ok(json!({"op": "unsub", "sid": "s"})).await["sid"], "s");
    responder.ok(json!({"op": "reply", "token": token})).await;
    assert_eq!(requester.line().await["rid"], 1);
    requester.error(2, "no_responder").await;
    responder.is_idle().await;
}

/// A responder that asks itself on the same websocket, as often as it may.
#[tokio::test]
async fn a_loop_of_1024_requests_is_answered() {
    const COUNT: usize = 1024;
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    client.serve("s", 10_000).await;
    let ask = |rid| json!({"op": "request", "rid": rid, "service": "s", "text": format!("{rid}"), "timeout": "60s"});
    client.send(&(0..=COUNT).map(ask).collect::<Vec<_>>()).await;
    let mut replies = Vec::new();
    let mut is_refused = false;
    while replies.len() < COUNT || !is_refused {
        let line = client.line().await;
        if line["op"] == "error" {
            assert_eq!((&line["rid"], &line["code"]), (&json!(COUNT), &json!("too_many_requests")));
            is_refused = true;
        } else {
            assert_eq!(line["op"], "request", "{line}");
            replies.push(json!({"op": "reply", "token": line["reply"], "text": format!("{}!", line["text"].as_str().unwrap())}));
        }
    }
    client.is_idle().await;
    client.send(&replies).await;
    let mut answered = HashSet::new();
    while answered.len() < COUNT {
        let line = client.line().await;
        let rid = line["rid"].as_u64().unwrap();
        // Not in base64 only where that is shorter.
        let text = line["text"].as_str().map(str::to_owned);
        let text = text.unwrap_or_else(|| {
            let bytes = msgbus_core::json::read_base64(line["payload"].as_str().unwrap()).unwrap();
            String::from_utf8(bytes).unwrap()
        });
        assert_eq!(text, format!("{rid}!"));
        assert!(answered.insert(rid));
    }
    client.begin(COUNT, "s", json!({})).await;
    client.request().await;
}

#[tokio::test]
async fn the_requests_of_a_responder_that_vanishes_fail_at_once_or_are_handed_on() {
    let daemon = Daemon::start();
    let mut requester = daemon.client().await;
    let mut vanishing = daemon.client().await;
    vanishing.serve("s", 10).await;
    vanishing.serve("t", 10).await;
    requester.begin(1, "s", json!({})).await;
    vanishing.request().await;
    requester.begin(2, "s", json!({"retry": true, "text": "again"})).await;
    let lost = vanishing.request().await;
    requester.begin(3, "t", json!({})).await;
    vanishing.request().await;
    let mut other = daemon.client().await;
    other.serve("s", 10).await;
    drop(vanishing);
    let mut failed = HashSet::new();
    for _ in 0..2 {
        let line = requester.line().await;
        assert_eq!(line["code"], "responder_failed", "{line}");
        failed.insert(line["rid"].as_u64().unwrap());
    }
    assert_eq!(failed, HashSet::from([1, 3]));
    let again = other.line().await;
    assert_eq!(again["text"], "again");
    // The token of the first responder died with it.
    let late = json!({"op": "reply", "token": lost}).to_string();
    other.refused(&late, "reply_not_wanted").await;
    other.ok(json!({"op": "reply", "token": again["reply"], "text": "here"})).await;
    assert_eq!(requester.line().await["rid"], 2);
}

#[tokio::test]
async fn the_requests_of_a_requester_that_vanishes_are_taken_back() {
    let daemon = Daemon::start();
    let (mut responder, mut requester) = (daemon.client().await, daemon.client().await);
    responder.serve("s", 1).await;
    requester.begin(1, "s", json!({})).await;
    let token = responder.request().await;
    requester.begin(2, "s", json!({})).await;
    until(|| daemon.bus.service(&name("s")).unwrap().queued == 1).await;
    drop(requester);
    until(|| daemon.bus.service(&name("s")).unwrap().counters.given_up == 2).await;
    let late = json!({"op": "reply", "token": token}).to_string();
    responder.refused(&late, "reply_not_wanted").await;
    responder.is_idle().await;
}

/// Requests and responders over HTTP and websockets are the same.
#[tokio::test]
async fn http_asks_websockets_and_they_ask_it() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    client.serve("s", 2).await;
    let (reply, ()) = tokio::join!(daemon.send("POST", "/-/request/s", &[], b"hi there"), async {
        let request = client.line().await;
        assert_eq!(request["text"], "hi there");
        client.ok(json!({"op": "reply", "token": request["reply"], "text": "reply"})).await;
    });
    assert_eq!((reply.status, reply.text()), (200, "reply"));
    // A token works at every door, and its place is free again at once.
    client.ok(json!({"op": "unsub", "sid": "s"})).await;
    client.serve("s", 1).await;
    client.begin(1, "s", json!({})).await;
    let token = client.request().await;
    assert_eq!(
        daemon.send("POST", &format!("/-/reply/{token}"), &[], b"by HTTP").await.status,
        204
    );
    assert_eq!(client.line().await["payload"], "YnkgSFRUUA==");
    client.begin(3, "s", json!({})).await;
    let token = client.request().await;
    client.send(&[json!({"op": "reply", "token": token})]).await;
    assert_eq!(client.line().await["rid"], 3);
    client.ok(json!({"op": "unsub", "sid": "s"})).await;
    client.begin(2, "s", json!({})).await;
    let request = daemon.get("/-/serve/s?wait=60s").await;
    let token = request.header("Msgbus-Reply").unwrap();
    client.ok(json!({"op": "reply", "token": token, "retry": true})).await;
    client.error(2, "responder_failed").await;
}

#[tokio::test]
async fn a_stop_ends_requests_and_responders() {
    let daemon = Daemon::start();
    let (mut responder, mut requester) = (daemon.client().await, daemon.client().await);
    responder.serve("s", 1).await;
    requester.begin(1, "s", json!({})).await;
    responder.request().await;
    requester.begin(2, "s", json!({})).await;
    until(|| daemon.bus.service(&name("s")).unwrap().queued == 1).await;
    let drained = soon(daemon.stop()).await.unwrap();
    assert_eq!(drained.cut, 0);
    assert_eq!(responder.line().await, json!({"op": "end", "sid": "s", "reason": "closed"}));
    assert_eq!(responder.close_code().await, CloseCode::Away);
    for _ in 0..2 {
        assert_eq!(requester.line().await["code"], "closed");
    }
    assert_eq!(requester.close_code().await, CloseCode::Away);
}

#[tokio::test]
async fn a_revocation_ends_what_it_concerns() {
    let both = key("both", &["serve:s", "request:s"]);
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), &both.lines).unwrap();
    let keys = KeyFile::read(file.path()).unwrap();
    let daemon = Daemon::with(|config| config.keys = Some(keys));
    let bearer = format!("Bearer {}", both.secret);
    let headers = [("authorization", bearer.as_str())];
    let (mut responder, mut requester) =
        (daemon.client_with(&headers).await, daemon.client_with(&headers).await);
    for (line, code) in [
        (r#"{"op":"serve","sid":1,"service":"t"}"#, "not_granted"),
        (r#"{"op":"request","rid":1,"service":"t"}"#, "not_granted"),
    ] {
        responder.refused(line, code).await;
    }
    responder.serve("s", 1).await;
    requester.begin(1, "s", json!({})).await;
    let token = responder.request().await;
    let less = both.lines.replace("serve:s", "serve:t");
    fs::write(file.path(), &less).unwrap();
    daemon.keyring.as_ref().unwrap().reload().unwrap();
    assert_eq!(responder.line().await, json!({"op": "end", "sid": "s", "reason": "revoked"}));
    requester.error(1, "responder_failed").await;
    let late = json!({"op": "reply", "token": token}).to_string();
    responder.refused(&late, "reply_not_wanted").await;
    responder.refused(r#"{"op":"serve","sid":1,"service":"s"}"#, "not_granted").await;
    responder.serve("t", 1).await;
    fs::write(file.path(), less.replace("request:s", "request:u")).unwrap();
    daemon.keyring.as_ref().unwrap().reload().unwrap();
    requester.refused(r#"{"op":"request","rid":1,"service":"s"}"#, "not_granted").await;
}

#[tokio::test]
async fn rubbish_is_refused() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    client.serve("s", 1).await;
    let unknown = format!(r#"{{"op":"reply","token":"{}"}}"#, "0".repeat(32));
    for (line, code) in [
        (r#"{"op":"request","service":"s"}"#, "bad_parameter"),
        (r#"{"op":"request","rid":1}"#, "bad_parameter"),
        (r#"{"op":"request","rid":1,"service":"s","timeout":"0s"}"#, "bad_parameter"),
        (r#"{"op":"request","rid":1,"service":"s","timeout":"2d"}"#, "bad_parameter"),
        (r#"{"op":"request","rid":1,"service":"s","timeout":5}"#, "bad_parameter"),
        (r#"{"op":"request","rid":1,"service":"s","retry":"yes"}"#, "bad_parameter"),
        (r#"{"op":"request","rid":1,"service":"s","text":"","json":1}"#, "bad_parameter"),
        (r#"{"op":"request","rid":1,"service":"s","topic":"s"}"#, "bad_parameter"),
        (r#"{"op":"request","rid":1,"service":"s","headers":{"a b":"c"}}"#, "bad_header"),
        (r#"{"op":"request","rid":1,"service":"a//b"}"#, "bad_topic"),
        (r#"{"op":"request","rid":1,"service":"a/*"}"#, "bad_topic"),
        (r#"{"op":"request","rid":1,"service":""}"#, "bad_topic"),
        (r#"{"op":"serve","service":"s"}"#, "bad_parameter"),
        (r#"{"op":"serve","sid":1}"#, "bad_parameter"),
        (r#"{"op":"serve","sid":1,"service":"**"}"#, "bad_topic"),
        (r#"{"op":"serve","sid":1,"service":"s","max":0}"#, "bad_parameter"),
        (r#"{"op":"serve","sid":1,"service":"s","max":10001}"#, "bad_parameter"),
        (r#"{"op":"serve","sid":"s","service":"t"}"#, "sid_in_use"),
        (r#"{"op":"credit","sid":"s","n":1}"#, "bad_parameter"),
        (r#"{"op":"reply","rid":1}"#, "bad_parameter"),
        (r#"{"op":"reply","token":"x"}"#, "invalid_reply"),
        (&unknown, "reply_not_wanted"),
        (r#"{"op":"reply","token":"x","error":"a","retry":true}"#, "invalid_reply"),
    ] {
        client.refused(line, code).await;
    }
    let large = "x".repeat((1 << 20) + 1);
    client
        .refused(
            &json!({"op": "request", "rid": 1, "service": "s", "text": large}).to_string(),
            "payload_too_large",
        )
        .await;
    client.begin(1, "s", json!({})).await;
    let token = client.request().await;
    for (field, value, code) in [
        ("text", json!(large), "payload_too_large"),
        ("base64", json!("a"), "bad_parameter"),
        ("headers", json!({"a": 1}), "bad_parameter"),
        ("error", json!("no"), "bad_parameter"),
    ] {
        let mut reply = json!({"op": "reply", "token": token, "retry": true});
        if field != "error" {
            reply["retry"] = json!(false);
        }
        reply[field] = value;
        client.refused(&reply.to_string(), code).await;
    }
    // It is in hand all the same.
    client.send(&[json!({"op": "reply", "token": token, "text": large[1..]})]).await;
    let reply = client.line().await;
    assert_eq!(reply["payload"].as_str().unwrap().len(), (1usize << 20).div_ceil(3) * 4);
}

/// What a blocked websocket does not take goes to others.
#[tokio::test]
async fn a_responder_that_does_not_read_holds_up_no_service() {
    let daemon = Daemon::start();
    let mut slow = daemon.slow_v1(64 << 10).await;
    slow.write(&frame(TEXT, r#"{"op":"serve","sid":1,"service":"s","max":10000}"#)).await;
    until(|| daemon.bus.service(&name("s")).is_some_and(|stats| stats.responders == 1)).await;
    let mut asked = Vec::new();
    let is_left = || {
        let stats = daemon.bus.service(&name("s")).unwrap();
        stats.responders == 0 && stats.queued > 0
    };
    let ask = || {
        let request = NewRequest::new(vec![0; 256 << 10]).timeout(NewRequest::MAX_TIMEOUT);
        daemon.bus.request(&name("s"), request)
    };
    // 100 MiB are more than sockets buffer.
    soon(async {
        while asked.len() < 400 && !is_left() {
            asked.push(ask());
            tokio::task::yield_now().await;
        }
        until(is_left).await;
    })
    .await;
    let mut other = daemon.client().await;
    other.ok(json!({"op": "serve", "sid": 1, "service": "s"})).await;
    other.request().await;
}

/// 16.7: replies are not buffered for a requester that does not read.
#[tokio::test]
async fn replies_to_a_requester_that_does_not_read_are_bounded() {
    const COUNT: usize = 100;
    let daemon = Daemon::start();
    let mut slow = daemon.slow_v1(64 << 10).await;
    let service = name("s");
    let responder = daemon.bus.serve(&service, msgbus_core::BatchLimit::ONE).unwrap();
    let ask = "{\"op\":\"request\",\"rid\":1,\"service\":\"s\",\"timeout\":\"60s\"}\n";
    slow.write(&frame(TEXT, ask.repeat(COUNT))).await;
    let mut requests = soon(responder).await.unwrap();
    while requests.len() < COUNT {
        let responder = daemon.bus.serve(&service, msgbus_core::BatchLimit::ONE).unwrap();
        requests.extend(soon(responder).await.unwrap());
    }
    for request in requests {
        request.reply(vec![b'x'; 1 << 20]).unwrap();
    }
    assert_eq!(daemon.bus.service(&service).unwrap().counters.replied, COUNT as u64);
    // The server goes on, and has taken few of them.
    let mut other = daemon.client().await;
    other.is_idle().await;
    let in_flight = daemon.metric("msgbus_server_inflight_bytes").await;
    assert!(in_flight < 20 << 20, "{in_flight}");
}
