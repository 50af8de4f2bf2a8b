//! The fuzz target for the operations of a `msgbus.v1` client.

use std::{
    mem,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    task::Waker,
};

use msgbus_core::{LeaseOptions, LeaseToken, NewMessage, ServiceStats, TopicName};
use serde_json::Value;

use super::{V1, operation, operations::Operations, plain};
use crate::{
    config::Config,
    dialogue::{Client, MAX_OUTSTANDING, MAX_SUBSCRIPTIONS, Output as _},
    fuzzing::block_on,
    net::peer::Peer,
    state::App,
    websocket::outgoing::Outgoing,
    worker::Worker,
};

/// The placeholder for the token of a lease in the input.
const TOKEN: &str = "LEASE_TOKEN";
/// The placeholder for the token of the last request that the client was sent.
const REPLY: &str = "REPLY_TOKEN";

/// Carries out the lines of a client. Each is answered at most once, the answers are JSON that repeats its `rid`, and
/// the counters balance.
///
/// # Panics
/// When a property does not hold.
pub fn operations(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    block_on(async {
        let (worker, token) = worker();
        for line in text.lines() {
            check_parsing(line);
        }
        let text = text.replace(TOKEN, &token.to_string());
        serve(&worker, &text);
        worker.tasks.stop.cut();
    });
}

/// A line is taken for JSON if it is an object, whatever it contains. What is read without the JSON library is what the
/// library reads.
fn check_parsing(line: &str) {
    let line = line.trim_ascii();
    if let Some(plain) = plain::publish(line) {
        let parsed = operation::parse_json(line);
        assert!(parsed.is_ok_and(|parsed| format!("{parsed:?}") == format!("{plain:?}")), "{line}");
    }
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok();
    let is_refused_as_json = match operation::parse(line) {
        Ok(_) => false,
        Err(unreadable) => unreadable.refusal.code().word() == "bad_json",
    };
    if is_refused_as_json {
        assert!(
            !serde_json::from_str::<Value>(line).is_ok_and(|value| value.is_object()),
            "{line:?}"
        );
    } else {
        assert!(is_json && line.starts_with('{'), "{line:?}");
    }
}

fn serve(worker: &Arc<Worker>, text: &str) {
    let mut operations = Operations::new(V1, client(worker), Outgoing::default());
    operations.activities.register(Waker::noop());
    let mut token = String::new();
    for line in text.lines().map(str::trim_ascii).filter(|line| !line.is_empty()) {
        let line = &line.replace(REPLY, &token);
        operations.begin(line);
        let answers = lines(&mut operations);
        assert!(answers.len() <= 1, "{line} {answers:?}");
        for answer in &answers {
            check_answer(line, answer);
        }
        for _ in 0..100 {
            operations.run();
        }
        for event in lines(&mut operations) {
            assert!(event["op"].is_string(), "{event}");
            if let Some(reply) = event["reply"].as_str() {
                reply.clone_into(&mut token);
            }
        }
        assert!(operations.activities.outstanding() <= MAX_OUTSTANDING);
    }
    assert!(worker.bus.stats().subscribers <= MAX_SUBSCRIPTIONS);
    operations.drain();
    assert!(lines(&mut operations).iter().all(|line| line["op"] == "end"));
    drop(operations);
    for ServiceStats { responders, queued, in_hand, counters, .. } in worker.bus.services() {
        assert_eq!((responders, queued, in_hand), (0, 0, 0));
        let ended = counters.replied + counters.failed + counters.timed_out;
        assert_eq!(counters.asked, ended + counters.refused + counters.given_up);
    }
    let stats = worker.bus.stats();
    assert_eq!(stats.subscribers, 0);
    let counters = stats.counters;
    let removed = counters.expired.total + counters.evicted.total + counters.deleted.total;
    assert_eq!(counters.published, stats.retained + removed);
}

/// The lines of the frames that wait.
fn lines(operations: &mut Operations) -> Vec<Value> {
    let bytes = mem::take(operations.contact.output.outgoing()).payloads();
    let text = std::str::from_utf8(&bytes).expect("text");
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn check_answer(line: &str, answer: &Value) {
    let op = answer["op"].as_str().unwrap_or_default();
    assert!(matches!(op, "ok" | "error" | "pong"), "{line} {answer}");
    let Ok(asked) = serde_json::from_str::<Value>(line) else { return };
    if op == "error" {
        assert!(answer["code"].is_string() && answer["text"].is_string(), "{answer}");
        assert!(answer.get("rid").is_none_or(|rid| *rid == asked["rid"]), "{line} {answer}");
    } else {
        assert_eq!(answer.get("rid"), asked.get("rid"), "{line} {answer}");
        assert!(op == "pong" || asked.get("rid").is_some(), "{line} {answer}");
    }
}

pub(super) fn client(worker: &Arc<Worker>) -> Client {
    let address = (IpAddr::V4(Ipv4Addr::LOCALHOST), 1).into();
    let peer = Peer { address: Some(address), has_tls: false };
    Client::new(worker, peer, None)
}

/// A server with one topic, of which the first message is leased.
pub(super) fn worker() -> (Arc<Worker>, LeaseToken) {
    let mut config = Config { max_payload: 4 << 10, ..Config::default() };
    config.bus.topic.max_messages = 8;
    config.bus.max_topics = 4;
    let app = App::in_memory(config, None);
    let topic: TopicName = "t".parse().expect("a name");
    for payload in ["zero", "one", "\0\0"] {
        app.bus.put(&topic, NewMessage::new(payload)).expect("it fits");
    }
    let group = "g".parse().expect("a name");
    let leased = app.bus.lease(&topic, &group, LeaseOptions::default()).wait().expect("a lease");
    let token = leased.first().expect("a lease").token.clone();
    (Worker::new(&Arc::new(app)), token)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that fit some of the fields, and some that fit none.
    const VALUES: [&str; 33] = [
        "null",
        "true",
        "0",
        "1",
        "-1",
        "1.5",
        "1e400",
        "99999999999999999999",
        "10000",
        "\"\"",
        "\"t\"",
        "\"a/b\"",
        "\"a//b\"",
        "\"g\"",
        "\"all\"",
        "\"new\"",
        "\"1s\"",
        "\"1ms\"",
        "\"60s\"",
        "\"skip\"",
        "\"disconnect\"",
        "\"text\"",
        "\"base64\"",
        "\"aGk=\"",
        "\"\\u0000\\n\\ud83d\\ude00\"",
        "\"\\ud800\"",
        "\"LEASE_TOKEN\"",
        "\"REPLY_TOKEN\"",
        "[\"LEASE_TOKEN\",\"x\"]",
        "[]",
        "{}",
        "{\"a\":\"b\",\"a\":[\"c\"]}",
        "[[[[{\"a\":[1,{}]}]]]]",
    ];
    const FIELDS: [&str; 28] = [
        "rid", "rid", "sid", "sid", "topic", "topic", "text", "json", "base64", "ttl", "headers",
        "since", "lag", "payload", "group", "lease", "credit", "max", "wait", "token", "tokens",
        "delay", "reason", "n", "service", "timeout", "retry", "error",
    ];
    const OPS: [&str; 14] = [
        "pub",
        "sub",
        "unsub",
        "pull",
        "ack",
        "nack",
        "extend",
        "credit",
        "ping",
        "request",
        "request",
        "serve",
        "reply",
        "p\\u0075b",
    ];

    /// An operation that is often valid.
    fn line(random: &mut fastrand::Rng) -> String {
        let op = OPS[random.usize(..OPS.len())];
        let mut fields = vec![format!("\"op\":\"{op}\"")];
        let services = ["request", "serve", "reply"];
        for (field, values, fits) in [
            ("topic", &["\"t\"", "\"u\"", "\"v/w\""][..], !services.contains(&op)),
            ("sid", &["1", "\"a\""], !matches!(op, "request" | "reply")),
            ("service", &["\"s\"", "\"t\""], matches!(op, "request" | "serve")),
            ("token", &["\"REPLY_TOKEN\"", "\"LEASE_TOKEN\""], op == "reply"),
            ("rid", &["7", "\"x\""], true),
        ] {
            if fits && random.u8(..4) > 0 {
                fields.push(format!("\"{field}\":{}", values[random.usize(..values.len())]));
            }
        }
        for _ in 0..random.usize(..4) {
            let (field, value) =
                (FIELDS[random.usize(..FIELDS.len())], VALUES[random.usize(..VALUES.len())]);
            fields.push(format!("\"{field}\":{value}"));
        }
        if random.bool() {
            random.shuffle(&mut fields);
        }
        let mut line = format!("{{{}}}", fields.join(","));
        if random.u8(..20) == 0 {
            let at = random.usize(..line.len());
            line.replace_range(at..=at, ["\"", "{", "}", ",", "", "\\"][random.usize(..6)]);
        }
        line
    }

    #[test]
    fn seeded_operations() {
        for seed in 0..2000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let lines: Vec<String> = (0..random.usize(1..20)).map(|_| line(&mut random)).collect();
            operations(lines.join("\n").as_bytes());
        }
    }
}
