//! What the client sends on `msgbus.v1`: operations, each a line of JSON. docs/protocol.md, 16.3.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use msgbus_core::{
    GroupName, Headers, LeaseToken, NewMessage, Position, ReplyToken, Settlement, TopicName,
    format_duration, json,
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{client::PullOptions, lease::LeaseOptions, service::Answer, settle};

/// An operation. Fields that are `None` are left out.
#[derive(Debug, Default, Serialize)]
struct Line<'a> {
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<bool>,
}

impl Line<'_> {
    fn json(&self) -> String {
        // It has names for keys and nothing that can fail.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

pub(super) fn publish(rid: u64, topic: &TopicName, message: NewMessage) -> String {
    let (payload, ttl, headers) = message.into_parts();
    Line {
        op: "pub",
        rid: Some(rid),
        topic: Some(topic.as_str()),
        ttl: ttl.map(format_duration),
        ..content(&payload, &headers)
    }
    .json()
}

/// The fields of a payload and its headers.
fn content<'a>(payload: &'a [u8], headers: &Headers) -> Line<'a> {
    // A server accepts frames that are as large as the largest payload in base64.
    let text = json::shorter_than_base64(payload);
    let base64 = text.is_none().then(|| BASE64_STANDARD.encode(payload));
    let headers = (!headers.is_empty()).then(|| {
        let mut object = Vec::new();
        json::write_headers(&mut object, headers);
        String::from_utf8(object).ok().and_then(|object| RawValue::from_string(object).ok())
    });
    Line { text, base64, headers: headers.flatten(), ..Line::default() }
}

/// A request to a service.
pub(super) fn request(
    rid: u64,
    service: &TopicName,
    (payload, headers, timeout, may_repeat): (Bytes, Headers, Duration, bool),
) -> String {
    Line {
        op: "request",
        rid: Some(rid),
        service: Some(service.as_str()),
        timeout: Some(format_duration(timeout)),
        retry: may_repeat.then_some(true),
        ..content(&payload, &headers)
    }
    .json()
}

/// A responder with at most this many requests at a time.
pub(super) fn serve(number: u64, service: &str, at_a_time: usize) -> String {
    let (rid, sid, max) = (Some(number), Some(number), Some(at_a_time));
    Line { op: "serve", rid, sid, service: Some(service), max, ..Line::default() }.json()
}

/// Without `rid`, it is answered only if it is refused.
pub(super) fn reply(rid: Option<u64>, token: &ReplyToken, answer: &Answer) -> String {
    let line = match answer {
        Answer::Reply(reply) => content(&reply.payload, &reply.headers),
        Answer::Failure(failure) => Line { error: Some(failure.text()), ..Line::default() },
        Answer::Decline => Line { retry: Some(true), ..Line::default() },
    };
    Line { op: "reply", rid, token: Some(token.to_string()), ..line }.json()
}

/// A subscription to a topic or a pattern.
pub(super) fn subscribe(number: u64, topics: &str, since: Position) -> String {
    let (rid, sid) = (Some(number), Some(number));
    let since = (since != Position::New).then(|| since.to_string());
    Line { op: "sub", rid, sid, topic: Some(topics), since, ..Line::default() }.json()
}

/// A subscription that is pushed the messages of a group.
pub(super) fn work(
    number: u64,
    topic: &str,
    group: &GroupName,
    (lease, since, credit): (Duration, Option<Position>, u32),
) -> String {
    Line {
        op: "sub",
        rid: Some(number),
        sid: Some(number),
        topic: Some(topic),
        group: Some(group.as_str()),
        lease: Some(format_duration(lease)),
        since: since.map(|since| since.to_string()),
        credit: Some(credit),
        ..Line::default()
    }
    .json()
}

pub(super) fn unsubscribe(sid: u64) -> String {
    Line { op: "unsub", sid: Some(sid), ..Line::default() }.json()
}

pub(super) fn credit(sid: u64, n: u32) -> String {
    Line { op: "credit", sid: Some(sid), n: Some(n), ..Line::default() }.json()
}

pub(super) fn pull(rid: u64, topic: &TopicName, options: PullOptions) -> String {
    Line {
        op: "pull",
        rid: Some(rid),
        topic: Some(topic.as_str()),
        max: options.max,
        wait: options.wait.map(format_duration),
        ..Line::default()
    }
    .json()
}

pub(super) fn lease(
    rid: u64,
    topic: &TopicName,
    group: &GroupName,
    options: LeaseOptions,
) -> String {
    Line {
        op: "pull",
        rid: Some(rid),
        topic: Some(topic.as_str()),
        group: Some(group.as_str()),
        lease: Some(format_duration(options.lease)),
        max: Some(options.max),
        wait: options.wait.map(format_duration),
        since: options.since.map(|since| since.to_string()),
        ..Line::default()
    }
    .json()
}

/// Without `rid`, it is answered only if it is refused.
pub(super) fn settle(rid: Option<u64>, token: &LeaseToken, settlement: &Settlement) -> String {
    let token = Some(token.to_string());
    let line = Line { op: settle::action(settlement), rid, token, ..Line::default() };
    match settlement {
        Settlement::Ack => line.json(),
        Settlement::Nack { delay, reason } => Line {
            delay: Some(format_duration(*delay)),
            reason: reason.as_deref().map(settle::cut),
            ..line
        }
        .json(),
        Settlement::Extend { lease } => {
            Line { lease: Some(format_duration(*lease)), ..line }.json()
        }
    }
}

pub(super) fn ping(rid: u64) -> String {
    Line { op: "ping", rid: Some(rid), ..Line::default() }.json()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(message: NewMessage) -> String {
        publish(1, &"a b".parse().unwrap(), message)
    }

    #[test]
    fn a_payload_is_sent_in_its_shorter_form() {
        let rest = |payload: &[u8]| {
            let line = published(payload.to_vec().into());
            line.strip_prefix(r#"{"op":"pub","rid":1,"topic":"a b","#).unwrap().to_owned()
        };
        assert_eq!(rest("größe \"7\"".as_bytes()), "\"text\":\"größe \\\"7\\\"\"}\n");
        assert_eq!(rest(b""), "\"text\":\"\"}\n");
        assert_eq!(rest(&[255, 0]), "\"base64\":\"/wA=\"}\n");
        assert_eq!(rest(b"\0\0\0"), "\"base64\":\"AAAA\"}\n");
    }

    #[test]
    fn a_message_keeps_its_ttl_and_headers() {
        let headers = Headers::new([("Tag", "a"), ("type", "x"), ("Tag", "b")]).unwrap();
        let message = NewMessage::from("").ttl(Duration::from_secs(90)).headers(headers);
        let line = published(message);
        assert!(line.ends_with(
            "\"text\":\"\",\"ttl\":\"1m30s\",\"headers\":{\"Tag\":[\"a\",\"b\"],\"type\":\"x\"}}\n"
        ));
    }

    #[test]
    fn positions_and_durations_are_texts() {
        let since = Position::After { epoch: 5, id: 7 };
        assert_eq!(
            subscribe(3, "a/**", since),
            "{\"op\":\"sub\",\"rid\":3,\"sid\":3,\"topic\":\"a/**\",\"since\":\"5-7\"}\n"
        );
        let group = "g".parse().unwrap();
        assert_eq!(
            work(3, "a", &group, (Duration::from_secs(30), None, 2)),
            "{\"op\":\"sub\",\"rid\":3,\"sid\":3,\"topic\":\"a\",\"group\":\"g\",\"lease\":\"30s\",\"credit\":2}\n"
        );
    }
}
