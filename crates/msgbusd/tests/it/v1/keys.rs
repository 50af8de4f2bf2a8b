//! 16.1 and section 13: keys, grants and their reload.

use std::fs;

use msgbusd::auth::{KeyFile, NewKey};
use serde_json::json;
use tempfile::NamedTempFile;

use crate::support::Daemon;

pub(super) fn key(name: &str, grants: &[&str]) -> NewKey {
    let grants: Vec<_> = grants.iter().map(|grant| grant.parse().unwrap()).collect();
    NewKey::make(name, &grants).unwrap()
}

/// A server with these keys, and with `public` for everybody.
fn start(keys: &[&NewKey]) -> (Daemon, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    write(&file, keys);
    let keys = KeyFile::read(file.path()).unwrap();
    (Daemon::with(|config| config.keys = Some(keys)), file)
}

fn write(file: &NamedTempFile, keys: &[&NewKey]) {
    let keys: Vec<&str> = keys.iter().map(|key| key.lines.as_str()).collect();
    let keys = keys.join("\n");
    fs::write(file.path(), format!("[anonymous]\nallow = [\"publish:public\"]\n{keys}")).unwrap();
}

#[tokio::test]
async fn each_operation_has_the_permission_of_its_request() {
    let worker = key("worker", &["pull:jobs", "subscribe:news"]);
    let (daemon, _file) = start(&[&worker]);
    let bearer = format!("Bearer {}", worker.secret);
    let mut client = daemon.client_with(&[("authorization", &bearer)]).await;
    client.ok(json!({"op": "pub", "topic": "public"})).await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "news"})).await;
    client.ok(json!({"op": "pull", "topic": "jobs"})).await;
    client.ok(json!({"op": "sub", "sid": 2, "topic": "jobs", "group": "g"})).await;
    for line in [
        r#"{"op":"pub","topic":"news"}"#,
        r#"{"op":"sub","sid":3,"topic":"jobs"}"#,
        r#"{"op":"sub","sid":3,"topic":"news","group":"g"}"#,
        r#"{"op":"pull","rid":3,"topic":"news"}"#,
        r#"{"op":"pull","rid":3,"topic":"news","wait":"60s"}"#,
        r#"{"op":"pull","rid":3,"topic":"news","group":"g"}"#,
    ] {
        let refusal = client.refused(line, "not_granted").await;
        assert!(refusal["text"].as_str().unwrap().contains("\"worker\""), "{refusal}");
    }
    // Without a key.
    let mut client = daemon.client().await;
    client.ok(json!({"op": "pub", "topic": "public"})).await;
    client.refused(r#"{"op":"sub","sid":1,"topic":"news"}"#, "key_needed").await;
    // An unknown key.
    let upgrade = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: msgbus.v1",
    ];
    for header in ["Authorization: Bearer x", "Sec-WebSocket-Protocol: bearer.eA"] {
        let headers = [&upgrade[..], &[header]].concat();
        assert_eq!(daemon.send("GET", "/", &headers, b"").await.status, 401, "{header}");
    }
    assert_eq!(daemon.send("GET", "/?ticket=mbt_x", &upgrade, b"").await.status, 401);
}

#[tokio::test]
async fn a_page_sends_its_key_as_a_subprotocol_or_a_ticket() {
    let worker = key("worker", &["subscribe:news"]);
    let (daemon, _file) = start(&[&worker]);
    let encoded = {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&worker.secret)
    };
    let offers = format!("msgbus.v1, bearer.{encoded}");
    let mut client = daemon.client_with(&[("sec-websocket-protocol", &offers)]).await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "news"})).await;
}

#[tokio::test]
async fn a_revocation_ends_what_it_concerns() {
    let worker = key("worker", &["pull:jobs", "subscribe:*", "publish:t"]);
    let (daemon, file) = start(&[&worker]);
    let bearer = format!("Bearer {}", worker.secret);
    let mut client = daemon.client_with(&[("authorization", &bearer)]).await;
    client.ok(json!({"op": "sub", "sid": 1, "topic": "a"})).await;
    client.ok(json!({"op": "sub", "sid": 2, "topic": "b"})).await;
    client.ok(json!({"op": "sub", "sid": 3, "topic": "jobs", "group": "g", "credit": 0})).await;
    client.ok(json!({"op": "pub", "topic": "t"})).await;
    client.send(&[json!({"op": "pull", "rid": 4, "topic": "jobs", "wait": "60s"})]).await;
    client.is_idle().await;
    let less = worker
        .lines
        .replace("pull:jobs", "pull:other")
        .replace("subscribe:*", "subscribe:a")
        .replace("publish:t", "publish:u");
    fs::write(file.path(), less).unwrap();
    daemon.keyring.as_ref().unwrap().reload().unwrap();
    let mut lines = [client.line().await, client.line().await, client.line().await].to_vec();
    lines.sort_by_key(|line| line["sid"].as_u64().unwrap_or(9));
    assert_eq!(
        lines,
        [
            json!({"op": "end", "sid": 2, "reason": "revoked"}),
            json!({"op": "end", "sid": 3, "reason": "revoked"}),
            json!({"op": "ok", "rid": 4, "messages": []}),
        ]
    );
    client.refused(r#"{"op":"pub","topic":"t"}"#, "not_granted").await;
    client.ok(json!({"op": "pub", "topic": "u"})).await;
    daemon.bus.put(&"a".parse().unwrap(), "still").unwrap();
    assert_eq!(client.line().await["sid"], 1);
    // The key is gone.
    write(&file, &[]);
    daemon.keyring.as_ref().unwrap().reload().unwrap();
    assert_eq!(client.line().await, json!({"op": "end", "sid": 1, "reason": "revoked"}));
    client.refused(r#"{"op":"pub","topic":"u"}"#, "wrong_key").await;
}
