//! 16.3: what is refused, and that the websocket stays open.

use serde_json::{Value, json};

use super::schema::Schema;
use crate::support::Daemon;

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    for (line, code, rid, of) in [
        ("x", "bad_json", None, None),
        ("[]", "bad_json", None, None),
        (r#"["pub",1,"t"]"#, "bad_json", None, None),
        ("1", "bad_json", None, None),
        (r#""text""#, "bad_json", None, None),
        (r#"{"op":"pub""#, "bad_json", None, None),
        (r#"{"op":"ping"}}"#, "bad_json", None, None),
        (r#"{"op":"ping",}"#, "bad_json", None, None),
        (r#"{"op":"ping","rid":01}"#, "bad_json", None, None),
        (r#"{"op":"ping"} {"op":"ping"}"#, "bad_json", None, None),
        (r#"{"rid":1}"#, "unknown_op", Some("1"), None),
        (r#"{"op":1,"rid":1}"#, "unknown_op", Some("1"), None),
        (r#"{"op":"PUB","rid":"a"}"#, "unknown_op", Some(r#""a""#), None),
        (r#"{"op":"request","rid":1}"#, "bad_parameter", Some("1"), Some("request")),
        (r#"{"op":"ok","rid":1}"#, "unknown_op", Some("1"), None),
        (r#"{"op":"pub","rid":2}"#, "bad_parameter", Some("2"), Some("pub")),
        (r#"{"op":"pub","rid":3,"topik":"t"}"#, "bad_parameter", Some("3"), Some("pub")),
        (r#"{"op":"pub","rid":3,"sid":"t"}"#, "bad_parameter", Some("3"), Some("pub")),
        (r#"{"rid":3,"topic":7,"op":"pub"}"#, "bad_parameter", Some("3"), Some("pub")),
        (r#"{"rid":3,"topic":null,"op":"pub"}"#, "bad_parameter", Some("3"), Some("pub")),
        (
            r#"{"rid":3,"topic":"t","topic":"t","op":"pub"}"#,
            "bad_parameter",
            Some("3"),
            Some("pub"),
        ),
        (
            r#"{"op":"pub","rid":3,"topic":"t","text":"a","base64":""}"#,
            "bad_parameter",
            Some("3"),
            Some("pub"),
        ),
        (
            r#"{"op":"pub","rid":3,"topic":"t","base64":"YQ"}"#,
            "bad_parameter",
            Some("3"),
            Some("pub"),
        ),
        (r#"{"op":"pub","rid":3,"topic":"t","ttl":"0s"}"#, "bad_parameter", Some("3"), Some("pub")),
        (r#"{"op":"pub","rid":3,"topic":"t","ttl":30}"#, "bad_parameter", Some("3"), Some("pub")),
        (
            r#"{"op":"pub","rid":3,"topic":"t","headers":{"a":1}}"#,
            "bad_parameter",
            Some("3"),
            Some("pub"),
        ),
        (
            r#"{"op":"pub","rid":3,"topic":"t","headers":[]}"#,
            "bad_parameter",
            Some("3"),
            Some("pub"),
        ),
        (
            r#"{"op":"pub","rid":3,"topic":"t","headers":{"a b":"1"}}"#,
            "bad_header",
            Some("3"),
            Some("pub"),
        ),
        (r#"{"op":"pub","rid":3,"topic":"a//b"}"#, "bad_topic", Some("3"), Some("pub")),
        (r#"{"op":"pub","rid":3,"topic":"a/*"}"#, "bad_topic", Some("3"), Some("pub")),
        (r#"{"op":"pub","rid":-1,"topic":"t"}"#, "bad_parameter", None, Some("pub")),
        (r#"{"op":"pub","rid":9007199254740992,"topic":"t"}"#, "bad_parameter", None, Some("pub")),
        (r#"{"op":"pub","rid":1.0,"topic":"t"}"#, "bad_parameter", None, Some("pub")),
        (r#"{"op":"pub","rid":"","topic":"t"}"#, "bad_parameter", None, Some("pub")),
        (r#"{"op":"ping","rid":1,"rid":2}"#, "bad_parameter", None, None),
        (r#"{"op":"ping","n":1}"#, "bad_parameter", None, Some("ping")),
        (r#"{"op":"sub","rid":4,"topic":"t"}"#, "bad_parameter", Some("4"), Some("sub")),
        (r#"{"op":"sub","rid":4,"sid":[],"topic":"t"}"#, "bad_parameter", Some("4"), Some("sub")),
        (
            r#"{"op":"sub","rid":4,"sid":1,"topic":"t","since":"x"}"#,
            "bad_parameter",
            Some("4"),
            Some("sub"),
        ),
        (
            r#"{"op":"sub","rid":4,"sid":1,"topic":"t","lag":"x"}"#,
            "bad_parameter",
            Some("4"),
            Some("sub"),
        ),
        (
            r#"{"op":"sub","rid":4,"sid":1,"topic":"t","payload":"x"}"#,
            "bad_parameter",
            Some("4"),
            Some("sub"),
        ),
        (
            r#"{"op":"sub","rid":4,"sid":1,"topic":"t","credit":1}"#,
            "bad_parameter",
            Some("4"),
            Some("sub"),
        ),
        (
            r#"{"op":"sub","rid":4,"sid":1,"topic":"t","lease":"1m"}"#,
            "bad_parameter",
            Some("4"),
            Some("sub"),
        ),
        (
            r#"{"op":"sub","rid":4,"sid":1,"topic":"t","group":"g","lag":"skip"}"#,
            "bad_parameter",
            Some("4"),
            Some("sub"),
        ),
        (
            r#"{"op":"sub","rid":4,"sid":1,"topic":"t","group":"a b"}"#,
            "bad_parameter",
            Some("4"),
            Some("sub"),
        ),
        (
            r#"{"op":"sub","rid":4,"sid":1,"topic":"t","group":"g","credit":10001}"#,
            "bad_parameter",
            Some("4"),
            Some("sub"),
        ),
        (
            r#"{"op":"sub","rid":4,"sid":1,"topic":"t","group":"g","credit":1e3}"#,
            "bad_parameter",
            Some("4"),
            Some("sub"),
        ),
        (
            r#"{"op":"sub","rid":4,"sid":1,"topic":"t","group":"g","lease":"999ms"}"#,
            "bad_parameter",
            Some("4"),
            Some("sub"),
        ),
        (r#"{"op":"unsub","rid":5,"sid":1}"#, "unknown_sid", Some("5"), Some("unsub")),
        (r#"{"op":"credit","rid":5,"sid":1,"n":1}"#, "unknown_sid", Some("5"), Some("credit")),
        (r#"{"op":"credit","rid":5,"sid":1,"n":0}"#, "bad_parameter", Some("5"), Some("credit")),
        (r#"{"op":"pull","topic":"t"}"#, "bad_parameter", None, Some("pull")),
        (r#"{"op":"pull","rid":6,"topic":"t","max":0}"#, "bad_parameter", Some("6"), Some("pull")),
        (r#"{"op":"pull","rid":6,"topic":"t","max":-1}"#, "bad_parameter", Some("6"), Some("pull")),
        (
            r#"{"op":"pull","rid":6,"topic":"t","max":99999999999999999999}"#,
            "bad_parameter",
            Some("6"),
            Some("pull"),
        ),
        (
            r#"{"op":"pull","rid":6,"topic":"t","wait":"61s"}"#,
            "bad_parameter",
            Some("6"),
            Some("pull"),
        ),
        (
            r#"{"op":"pull","rid":6,"topic":"t","since":"all"}"#,
            "bad_parameter",
            Some("6"),
            Some("pull"),
        ),
        (
            r#"{"op":"pull","rid":6,"topic":"t","lease":"1m"}"#,
            "bad_parameter",
            Some("6"),
            Some("pull"),
        ),
        (r#"{"op":"ack","rid":7}"#, "bad_parameter", Some("7"), Some("ack")),
        (
            r#"{"op":"ack","rid":7,"token":"x","tokens":[]}"#,
            "bad_parameter",
            Some("7"),
            Some("ack"),
        ),
        (r#"{"op":"ack","rid":7,"token":"x"}"#, "invalid_lease", Some("7"), Some("ack")),
        (
            r#"{"op":"nack","rid":7,"token":"x","delay":"13h"}"#,
            "bad_parameter",
            Some("7"),
            Some("nack"),
        ),
        (
            r#"{"op":"extend","rid":7,"token":"x","lease":"1ms"}"#,
            "bad_parameter",
            Some("7"),
            Some("extend"),
        ),
    ] {
        let refusal = client.refused(line, code).await;
        let raw = refusal.get("rid").map(ToString::to_string);
        assert_eq!((raw.as_deref(), refusal["of"].as_str()), (rid, of), "{line} {refusal}");
        assert!(!refusal["text"].as_str().unwrap().contains('\n'), "{refusal}");
    }
    client.is_idle().await;
    assert!(daemon.bus.topics().is_empty());
    assert_eq!(daemon.refused("bad_json").await, 10);
}

#[tokio::test]
async fn texts_and_retry_after_are_those_of_http() {
    let daemon = Daemon::with(|config| {
        config.publish_rate = Some("1".parse().unwrap());
        config.max_payload = 100;
    });
    let mut client = daemon.client().await;
    let large = "x".repeat(101);
    let over_http = daemon.put("/t", &large).await;
    let refusal = client
        .refused(
            &json!({"op": "pub", "topic": "t", "text": large}).to_string(),
            "payload_too_large",
        )
        .await;
    assert_eq!(format!("{}\n", refusal["text"].as_str().unwrap()), over_http.text());
    let publish = json!({"op": "pub", "rid": 1, "topic": "t", "text": "x".repeat(100)});
    let refusal = loop {
        let answer = client.ask(publish.clone()).await;
        if answer["op"] == "error" {
            break answer;
        }
    };
    assert_eq!(
        (&refusal["code"], &refusal["retry_after"]),
        (&json!("too_many_messages"), &json!(1))
    );
    let over_http = loop {
        let reply = daemon.put("/t", "x").await;
        if reply.status != 202 {
            break reply;
        }
    };
    assert_eq!(format!("{}\n", refusal["text"].as_str().unwrap()), over_http.text());
    let many = json!({"op": "ack", "rid": 1, "tokens": vec!["x"; 10_001]});
    let refusal = client.refused(&many.to_string(), "payload_too_large").await;
    assert_eq!(refusal["rid"], 1);
}

/// A line that the schema does not allow is refused, and one that it allows is not a matter of its form.
#[tokio::test]
async fn the_schema_and_the_server_agree() {
    let (daemon, schema) = (Daemon::start(), Schema::read());
    let mut client = daemon.client().await;
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(10_001),
        json!(9_007_199_254_740_992_u64),
        json!(""),
        json!("skip"),
        json!("text"),
        json!("x".repeat(65)),
        json!([]),
        json!(["a"]),
        json!([1]),
        json!({}),
        json!({"a": "b"}),
        json!({"a": ["b"]}),
        json!({"a": 1}),
    ];
    let names = [
        "rid", "topic", "text", "json", "base64", "ttl", "headers", "sid", "since", "lag",
        "payload", "group", "lease", "credit", "max", "wait", "token", "tokens", "delay", "reason",
        "n", "other",
    ];
    for op in ["pub", "sub", "unsub", "pull", "ack", "nack", "extend", "credit", "ping"] {
        for name in names {
            for value in &values {
                let line = with_field(op, name, value);
                let is_allowed = schema.allows("fromClient", &line);
                let after = "{\"op\":\"unsub\",\"sid\":1}\n{\"op\":\"ping\",\"rid\":\"end\"}";
                client.send_text(format!("{line}\n{after}")).await;
                let mut is_misshapen = false;
                loop {
                    let answer = client.line().await;
                    if answer["rid"] == "end" {
                        break;
                    }
                    let text = answer["text"].as_str().unwrap_or_default();
                    is_misshapen |= text.starts_with("bad operation")
                        || text.starts_with("the operation needs")
                        || text.contains("parameter \"headers\"")
                        || text.contains("use a whole number, ")
                        || text.contains("use skip or disconnect");
                }
                assert_eq!(is_misshapen, !is_allowed, "{line}");
            }
        }
    }
}

/// An operation with the fields that it needs, and one more, which may replace one of them.
fn with_field(op: &str, name: &str, value: &Value) -> Value {
    let mut line = match op {
        "pub" => json!({"topic": "t"}),
        "sub" | "pull" if matches!(name, "credit" | "lease" | "group" | "since") => {
            json!({"sid": 1, "topic": "t", "group": "g"})
        }
        "sub" | "pull" => json!({"sid": 1, "topic": "t"}),
        "unsub" => json!({"sid": 1}),
        "credit" => json!({"sid": 1, "n": 1}),
        "ack" | "nack" | "extend" if !name.starts_with("token") => json!({"token": "x"}),
        _ => json!({}),
    };
    if op == "pull" {
        line["rid"] = json!("r");
        line.as_object_mut().unwrap().remove("sid");
    }
    line["op"] = json!(op);
    line[name] = value.clone();
    line
}
