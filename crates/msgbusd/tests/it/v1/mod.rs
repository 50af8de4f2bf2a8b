//! Section 16: `msgbus.v1`, one websocket for all operations.

mod bounds;
mod examples;
mod frames;
mod groups;
mod keys;
mod operations;
mod patterns;
mod refusals;
mod schema;
mod services;
mod subscriptions;

use std::collections::VecDeque;

use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use self::schema::Schema;
use crate::support::{Daemon, Subscriber};

const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", "msgbus.v1");

/// A client. Everything that it sends by [`send`](Self::send) and receives is valid by the schema.
pub(crate) struct Client {
    socket: Subscriber,
    lines: VecDeque<Value>,
    schema: Schema,
}

impl Daemon {
    pub(crate) async fn client(&self) -> Client {
        self.client_with(&[]).await
    }

    async fn client_with(&self, headers: &[(&'static str, &str)]) -> Client {
        let headers = [&[PROTOCOL][..], headers].concat();
        let (socket, response) = self.subscribe_with("/", &headers).await;
        assert_eq!(response.headers()["sec-websocket-protocol"], "msgbus.v1");
        Client { socket, lines: VecDeque::new(), schema: Schema::read() }
    }
}

impl Client {
    /// Sends one frame with these lines.
    pub(crate) async fn send(&mut self, operations: &[Value]) {
        let mut text = String::new();
        for operation in operations {
            self.schema.check("fromClient", operation);
            text.push_str(&format!("{operation}\n"));
        }
        self.send_text(text).await;
    }

    async fn send_text(&mut self, text: impl Into<String>) {
        self.socket.0.send(Message::text(text.into())).await.unwrap();
    }

    /// The next line.
    pub(crate) async fn line(&mut self) -> Value {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return line;
            }
            self.frame().await;
        }
    }

    /// Receives one frame. Returns how many lines it has.
    async fn frame(&mut self) -> usize {
        let Message::Text(text) = self.socket.frame().await else { panic!("not text") };
        assert!(text.ends_with('\n'), "{text:?}");
        let before = self.lines.len();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            self.schema.check("fromServer", &line);
            self.lines.push_back(line);
        }
        self.lines.len() - before
    }

    /// Sends an operation, and returns the next line.
    async fn ask(&mut self, operation: Value) -> Value {
        self.send(&[operation]).await;
        self.line().await
    }

    /// Asserts that an operation is carried out, with `rid` 1.
    #[track_caller]
    fn ok(&mut self, mut operation: Value) -> impl Future<Output = Value> {
        operation["rid"] = json!(1);
        async move {
            let answer = self.ask(operation).await;
            assert_eq!((&answer["op"], &answer["rid"]), (&json!("ok"), &json!(1)), "{answer}");
            answer
        }
    }

    /// As [`ok`](Self::ok), with messages before the answer, which are dropped.
    async fn ok_among(&mut self, mut operation: Value) -> Value {
        operation["rid"] = json!("among");
        self.send(&[operation]).await;
        loop {
            let line = self.line().await;
            if line["rid"] == "among" {
                assert_eq!(line["op"], "ok", "{line}");
                return line;
            }
        }
    }

    /// Asserts that a line is refused. Returns the refusal.
    async fn refused(&mut self, line: &str, code: &str) -> Value {
        self.send_text(line).await;
        let refusal = self.line().await;
        assert_eq!(
            (&refusal["op"], &refusal["code"]),
            (&json!("error"), &json!(code)),
            "{line} {refusal}"
        );
        refusal
    }

    /// Waits until the server has handled everything that was sent. No other line comes before.
    async fn is_idle(&mut self) {
        assert_eq!(self.ask(json!({"op": "ping"})).await, json!({"op": "pong"}));
    }

    async fn close_code(&mut self) -> CloseCode {
        self.socket.close_code().await
    }
}

/// The payload of a message in base64, or as text.
fn payload(line: &Value) -> String {
    let message = &line["message"];
    if let Some(text) = message["text"].as_str() {
        return text.to_owned();
    }
    let message = msgbus_core::json::read_message(message.to_string().as_bytes()).unwrap();
    String::from_utf8_lossy(message.payload()).into_owned()
}
