//! Every example of section 16 is valid by the schema, and every operation of them is understood.

use serde_json::{Value, json};

use super::schema::Schema;
use crate::support::Daemon;

/// The lines of JSON in section 16.
fn lines() -> Vec<Value> {
    let contract = include_str!("../../../../../docs/protocol.md");
    let section = contract.split("\n## 16. ").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```json\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.flat_map(str::lines).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Whether a line is from the client.
fn is_operation(schema: &Schema, line: &Value) -> bool {
    let [from_client, from_server] =
        ["fromClient", "fromServer"].map(|definition| schema.allows(definition, line));
    assert!(from_client != from_server, "{line}");
    from_client
}

#[tokio::test]
async fn examples_are_valid_and_understood() {
    let (daemon, schema) = (Daemon::start(), Schema::read());
    let mut client = daemon.client().await;
    let (operations, answers): (Vec<_>, Vec<_>) =
        lines().into_iter().partition(|line| is_operation(&schema, line));
    assert!(operations.len() >= 10 && answers.len() >= 10);
    for mut operation in operations {
        operation["rid"] = json!("example");
        if operation["op"] == "pull" {
            operation["wait"] = json!("1ms");
        }
        client.send(&[operation.clone()]).await;
        let answer = loop {
            let line = client.line().await;
            if line["rid"] == "example" {
                break line;
            }
        };
        // Their tokens and positions are those of another server.
        let code = answer["code"].as_str().unwrap_or("none");
        let is_expected =
            matches!(code, "none" | "invalid_lease" | "reply_not_wanted" | "no_responder");
        assert!(is_expected, "{operation} {answer}");
    }
}
