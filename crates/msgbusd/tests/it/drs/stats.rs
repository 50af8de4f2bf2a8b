//! `GET /stats`.

use serde_json::{Value, json};

use super::{Over, daemon, key_of};
use crate::support::{Daemon, Reply, until};

impl Daemon {
    async fn drs_get(&self, target: &str) -> Reply {
        let mut connection = self.drs_raw(Over::Websocket).await;
        let address = self.drs_address(Over::Websocket);
        connection
            .write(format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())
            .await;
        connection.reply().await
    }
}

#[tokio::test]
async fn commands_are_counted_by_how_they_end() {
    let daemon = daemon();
    let (mut caller, mut handler) =
        (daemon.drs(Over::Tcp).await, daemon.drs(Over::Websocket).await);
    handler.on("drs.serve", "math.add").await;
    for (answer, times) in [("drs.response", 3), ("drs.error", 2), ("drs.exception", 1)] {
        for _ in 0..times {
            caller.send(r#"{"key":"k","action":"math.add"}"#).await;
            let key = key_of(&handler.text().await);
            handler.send(&format!(r#"{{"key":"{key}","action":"{answer}","body":"x"}}"#)).await;
            caller.text().await;
        }
    }
    caller.send(r#"{"action":"news"}{"key":"k","action":"nobody"}{"action":"a//b"}"#).await;
    caller.text().await;
    caller.is_idle().await;
    handler.is_idle().await;
    let page = daemon.drs_get("/stats").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("application/json")));
    let text = page.text();
    let order = [
        "{\"hostname\":\"",
        "\"connections\":{\"inbound\":2}",
        "\"commands\":{",
        "\"functions\":[",
    ];
    let places: Vec<_> = order.iter().map(|part| text.find(part).expect(text)).collect();
    assert!(places.is_sorted(), "{text}");
    let page: Value = serde_json::from_str(text).unwrap();
    // Both sides of a call count it.
    assert_eq!(page["commands"]["math.add"], json!({"errors": 4, "exceptions": 2, "success": 6}));
    assert_eq!(page["commands"]["news"], json!({"errors": 0, "exceptions": 0, "success": 1}));
    // A peer could invent any number of them.
    assert_eq!(page["commands"]["nobody"], Value::Null);
    assert_eq!(page["commands"]["drs.ping"]["success"], 2);
    let functions: Vec<_> = page["functions"].as_array().unwrap().iter().collect();
    assert!(functions.contains(&&json!("math.add")) && functions.contains(&&json!("drs.ping")));
    assert!(daemon.metric(r#"msgbus_door_messages_total{door="drs-tcp"}"#).await >= 10);
    assert!(daemon.metric(r#"msgbus_door_connections_total{door="drs-ws"}"#).await >= 2);
    drop((caller, handler));
    loop {
        let page = daemon.drs_get("/stats").await;
        if page.text().contains("\"connections\":{\"inbound\":0}") {
            break;
        }
    }
}

#[tokio::test]
async fn other_paths_are_not_found() {
    let daemon = daemon();
    let reply = daemon.drs_get("/other").await;
    assert_eq!(reply.status, 404);
    assert!(reply.text().contains("/socket"));
    assert_eq!(daemon.drs_get("/socket").await.status, 400);
    until(|| true).await;
}
