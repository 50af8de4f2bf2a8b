//! Clients in the manner of the known ones, each with its peculiarities, against each other.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{Over, Peer, daemon};
use crate::support::Daemon;

/// Whose manner it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Answers every command, fires too, and ends with a line feed.
    Go,
    /// Answers `drs.response` even if its handler has failed; nothing if it has none. Fires have a key.
    Node,
    /// Answers with the action of the call; a fire with another fire. Fires have a key.
    TypeScript,
    /// Sends `version` 0 and an empty key with fires; its failures are bare values.
    Elixir,
    /// Of 2016: all fields always, failures are bare strings.
    Old,
}

const MANNERS: [Manner; 5] =
    [Manner::Go, Manner::Node, Manner::TypeScript, Manner::Elixir, Manner::Old];

type Handler = fn(&Value) -> Result<Value, String>;

struct Library {
    manner: Manner,
    peer: Peer,
    handlers: HashMap<&'static str, Handler>,
    calls: u32,
    /// The fires that it has got.
    fired: Vec<Value>,
}

impl Library {
    async fn connect(daemon: &Daemon, manner: Manner) -> Self {
        let over = if manner == Manner::Go { Over::Tcp } else { Over::Websocket };
        let peer = daemon.drs(over).await;
        Self { manner, peer, handlers: HashMap::new(), calls: 0, fired: Vec::new() }
    }

    fn key(&mut self) -> String {
        self.calls += 1;
        match self.manner {
            Manner::TypeScript => format!("0.{:016}", self.calls),
            Manner::Elixir => format!("8a1b2c3d-0000-4000-8000-{:012}", self.calls),
            _ => format!("-KY1abcd-{:011}", self.calls),
        }
    }

    async fn send(&mut self, key: &str, action: &str, body: Value) {
        let mut command = json!({"action": action});
        if !key.is_empty() || matches!(self.manner, Manner::Elixir | Manner::Old) {
            command["key"] = key.into();
        }
        if !body.is_null() || self.manner == Manner::Old {
            command["body"] = body;
        }
        if self.manner == Manner::Elixir {
            command["version"] = 0.into();
        }
        let feed = if self.manner == Manner::Go { "\n" } else { "" };
        self.peer.send(&format!("{command}{feed}")).await;
    }

    /// Fires. Nobody waits for an answer to the key that some add.
    async fn fire(&mut self, action: &str, body: Value) {
        let has_key = matches!(self.manner, Manner::Node | Manner::TypeScript);
        let key = if has_key { self.key() } else { String::new() };
        self.send(&key, action, body).await;
    }

    /// Sends a call, and waits for its answer while it handles what comes.
    async fn call(&mut self, action: &str, body: Value) -> Result<Value, (String, String)> {
        let key = self.key();
        self.send(&key, action, body).await;
        loop {
            let command = self.peer.value().await;
            let action = command["action"].as_str().unwrap_or_default().to_owned();
            if command["key"] == *key && action.starts_with("drs.") {
                let body = command["body"].clone();
                let text = body["message"].as_str().unwrap_or_default().to_owned();
                return if action == "drs.response" { Ok(body) } else { Err((action, text)) };
            }
            self.handle(&command).await;
        }
    }

    /// Handles the next command.
    async fn handle_next(&mut self) {
        let command = self.peer.value().await;
        self.handle(&command).await;
    }

    async fn handle(&mut self, command: &Value) {
        let action = command["action"].as_str().unwrap();
        let key = command["key"].as_str().unwrap_or_default();
        // An answer that nobody waits for, such as that to a fire with a key.
        if matches!(action, "drs.response" | "drs.error") {
            return;
        }
        assert!(!action.starts_with("drs."), "{command}");
        let handled = self.handlers.get(action).map(|handler| handler(&command["body"]));
        if key.is_empty() {
            self.fired.push(command.clone());
        }
        let failure = |text: String| match self.manner {
            Manner::Elixir | Manner::Old => json!(text),
            _ => json!({"message": text}),
        };
        let answer = match (handled, self.manner) {
            (None, Manner::Node | Manner::TypeScript) => return,
            (None, _) => ("drs.error", failure(format!("No handlers for {action}"))),
            (Some(Ok(result)), Manner::TypeScript) => (action, result),
            (Some(Ok(result)), _) => ("drs.response", result),
            (Some(Err(text)), Manner::Node) => ("drs.response", failure(text)),
            (Some(Err(text)), _) => ("drs.error", failure(text)),
        };
        match self.manner {
            Manner::Go => self.send(key, answer.0, answer.1).await,
            Manner::TypeScript if key.is_empty() => self.fire(answer.0, answer.1).await,
            _ if key.is_empty() => {}
            _ => self.send(key, answer.0, answer.1).await,
        }
    }
}

fn add(body: &Value) -> Result<Value, String> {
    match (body["a"].as_i64(), body["b"].as_i64()) {
        (Some(a), Some(b)) => Ok((a + b).into()),
        _ => Err("two numbers".to_owned()),
    }
}

#[tokio::test]
async fn clients_of_all_manners_call_each_other() {
    let daemon = daemon();
    for caller in MANNERS {
        for handler in MANNERS {
            let mut handling = Library::connect(&daemon, handler).await;
            handling.handlers.insert("math.add", add);
            assert_eq!(handling.call("drs.serve", "math.add".into()).await, Ok(Value::Null));
            let mut calling = Library::connect(&daemon, caller).await;
            for (body, expected) in [
                (json!({"a": 1, "b": 2}), Ok(json!(3))),
                (
                    json!({}),
                    match handler {
                        // It does not tell a failure from a result.
                        Manner::Node => Ok(json!({"message": "two numbers"})),
                        _ => Err(("drs.error".to_owned(), "two numbers".to_owned())),
                    },
                ),
            ] {
                let (result, ()) =
                    tokio::join!(calling.call("math.add", body), handling.handle_next());
                assert_eq!(result, expected, "{caller:?} calls {handler:?}");
            }
            assert_eq!(handling.call("drs.off", "math.add".into()).await, Ok(Value::Null));
        }
    }
}

#[tokio::test]
async fn clients_of_all_manners_get_fires() {
    let daemon = daemon();
    for firing in MANNERS {
        for handling in MANNERS {
            let mut handler = Library::connect(&daemon, handling).await;
            handler.handlers.insert("news", |_| Ok(Value::Null));
            handler.call("drs.subscribe", "news".into()).await.unwrap();
            let mut curl = daemon.subscribe("/news").await;
            let mut firer = Library::connect(&daemon, firing).await;
            firer.fire("news", json!({"n": 1})).await;
            handler.handle_next().await;
            // Whatever it has answered to the fire is no fire of its own.
            let time = handler.call("drs.ping", Value::Null).await.unwrap();
            assert!(time.as_i64().unwrap() > 1_600_000_000_000);
            let fired = json!({"action": "news", "body": {"n": 1}});
            assert_eq!(handler.fired, [fired], "{firing:?} fires at {handling:?}");
            assert_eq!(curl.message().await.payload(), r#"{"n":1}"#);
            daemon.put("/news", "end").await;
            assert_eq!(curl.message().await.payload(), "end");
        }
    }
}

#[tokio::test]
async fn a_chain_of_calls_goes_through_both_sides_of_each_connection() {
    let daemon = daemon();
    let mut peers = Vec::new();
    for manner in MANNERS {
        let mut peer = Library::connect(&daemon, manner).await;
        peer.handlers.insert("math.add", add);
        peers.push(peer);
    }
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.call("drs.serve", "math.add".into()).await.unwrap();
        // It calls while it handles calls, its own one too.
        let sum = peer.call("math.add", json!({"a": number, "b": 1})).await;
        assert_eq!(sum, Ok(json!(number + 1)));
        peer.call("drs.off", "math.add".into()).await.unwrap();
    }
}
