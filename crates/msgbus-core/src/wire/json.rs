//! The JSON encoding, both ways. Nothing else knows it. See docs/protocol.md, section 3.

mod groups;
mod patterns;
mod services;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::groups::GroupObject;
pub use self::{
    groups::{
        leased_size_hint, read_leased, write_group, write_lease, write_leased, write_leased_as,
        write_unsettled,
    },
    patterns::{add_position, write_sums},
    services::{
        content_size_hint, request_size_hint, write_content, write_request, write_request_fields,
        write_services,
    },
};
pub use super::text::shorter_than_base64;
pub use super::time::format_time;
use super::{
    base64,
    headers::{self, HeadersIn, HeadersObject},
    time::{self, NEVER, Time},
};
use crate::{
    model::{HeaderError, Headers, Message, NameError, TokenError, TopicInfo, WallTime},
    options::Overflow,
    stats::{BusStats, Counters, GroupStats, SubscriberStats, TopicStats},
};

/// Why a message could not be decoded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Not JSON, or not an object of the expected shape.
    #[error("not a message: {}", brief(.0))]
    Shape(#[from] serde_json::Error),
    /// The name of the topic is invalid.
    #[error("not a message: {0}")]
    Name(#[from] NameError),
    /// A header is invalid, or there are too many.
    #[error("not a message: {0}")]
    Header(#[from] HeaderError),
    /// The payload is not base64.
    #[error("not a message: the payload is not base64: {0}")]
    Payload(#[from] base64::DecodeError),
    /// The token of the lease is not one.
    #[error("not a message: {0}")]
    Token(#[from] TokenError),
}

/// The parser's error, cut to its first 200 characters. It repeats the unexpected input, however long.
pub fn brief(error: &serde_json::Error) -> String {
    const MAX_CHARS: usize = 200;
    let text = error.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// In nanoseconds: the field of prologic/msgbus is a signed 64-bit number.
const MAX_TTL: u64 = i64::MAX.cast_unsigned();

/// How a payload is written in the JSON of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PayloadForm {
    /// `"payload"`: base64.
    #[default]
    Base64,
    /// `"text"`: the payload itself, if it is UTF-8 and takes no more bytes than its base64. Others are base64.
    Text,
}

/// Appends a message as one JSON object, without a line end.
pub fn write_message(out: &mut Vec<u8>, message: &Message) {
    write_message_as(out, message, PayloadForm::Base64);
}

/// Appends a message as [`write_message`] does, with its payload in this form.
pub fn write_message_as(out: &mut Vec<u8>, message: &Message, form: PayloadForm) {
    write_object(out, message, Some(ttl_of(message.topic())), form);
}

/// Appends a message that a store has read, as [`write_message`] does, but without the `ttl` of its topic: that is a
/// setting, which a store does not keep.
pub fn write_recovered(out: &mut Vec<u8>, message: &Message) {
    write_object(out, message, None, PayloadForm::Base64);
}

/// Writes the fields one by one, because that takes a third of the instructions that a serializer takes, which
/// would search times and base64 for characters to escape. The order of the fields is part of the contract.
fn write_object(out: &mut Vec<u8>, message: &Message, ttl: Option<u64>, form: PayloadForm) {
    let topic = message.topic();
    out.extend_from_slice(br#"{"id":"#);
    write_number(out, message.id());
    out.extend_from_slice(br#","topic":{"name":"#);
    write(out, topic.name.as_str());
    if let Some(ttl) = ttl {
        out.extend_from_slice(br#","ttl":"#);
        write_number(out, ttl);
    }
    out.extend_from_slice(br#","seq":"#);
    // As it was when the message was appended, so that a message always has the same encoding.
    write_number(out, message.id().saturating_add(1));
    out.extend_from_slice(br#","created":""#);
    time::write(out, topic.created);
    out.extend_from_slice(br#""}"#);
    write_payload(out, message.payload(), form);
    out.extend_from_slice(br#","expires":""#);
    time::write(out, message.expires().unwrap_or(NEVER));
    out.extend_from_slice(br#"","created":""#);
    time::write(out, message.created());
    out.push(b'"');
    // Absent if there are none: prologic/msgbus has no headers.
    if let Some(headers) = HeadersObject::of(message.headers()) {
        out.extend_from_slice(br#","headers":"#);
        write(out, &headers);
    }
    out.push(b'}');
}

/// Appends the field with the payload, after a comma.
fn write_payload(out: &mut Vec<u8>, payload: &[u8], form: PayloadForm) {
    if form == PayloadForm::Text
        && let Some(text) = shorter_than_base64(payload)
    {
        out.extend_from_slice(br#","text":"#);
        return write(out, &text);
    }
    out.extend_from_slice(br#","payload":""#);
    base64::encode(out, payload);
    out.push(b'"');
}

/// Appends headers as one JSON object, from each name to its value or to an array of its values.
pub fn write_headers(out: &mut Vec<u8>, headers: &Headers) {
    match HeadersObject::of(headers) {
        Some(object) => write(out, &object),
        None => out.extend_from_slice(b"{}"),
    }
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// The longest time that a topic keeps messages, in nanoseconds; 0 is without limit.
fn ttl_of(topic: &TopicInfo) -> u64 {
    let ttl = topic.ttl.unwrap_or_default().as_nanos();
    u64::try_from(ttl).unwrap_or(u64::MAX).min(MAX_TTL)
}

/// An estimate of how many bytes [`write_message`] and [`add_position`] append. It is not too low, unless names or values
/// have to be escaped.
pub fn size_hint(message: &Message) -> usize {
    const FIELDS: usize = 312;
    let name = message.topic().name.as_str().len();
    let headers = headers::size_hint(message.headers());
    base64::encoded_len(message.payload().len()) + FIELDS + name + headers
}

/// Reads one message. Unknown fields are ignored. `expires` and the `ttl` of the topic may be
/// absent, as they are in newer versions of prologic/msgbus.
///
/// # Errors
/// When `json` is not such an object.
pub fn read_message(json: &[u8]) -> Result<Message, JsonError> {
    let wire: MessageIn<'_> = serde_json::from_slice(json)?;
    let topic = TopicInfo {
        name: wire.topic.name.parse()?,
        epoch: 0,
        created: wire.topic.created,
        ttl: Some(Duration::from_nanos(wire.topic.ttl.min(MAX_TTL))).filter(|ttl| !ttl.is_zero()),
    };
    let expires = wire.expires.filter(|time| *time != NEVER);
    let payload = base64::decode(wire.payload.as_bytes())?;
    Ok(Message::new(
        Arc::new(topic),
        wire.id,
        wire.created.into(),
        expires.map_or(WallTime::NEVER, WallTime::from),
        payload.into(),
        wire.headers.map_or(Ok(Headers::default()), HeadersIn::into_headers)?,
    ))
}

/// Reads the headers of a message: an object from name to value, or to an array of values. Order and repeats are kept.
///
/// # Errors
/// When `json` is not such an object, or a header is invalid.
pub fn read_headers(json: &str) -> Result<Headers, JsonError> {
    Ok(serde_json::from_str::<HeadersIn<'_>>(json)?.into_headers()?)
}

/// Decodes a payload in base64, as a message has it.
///
/// # Errors
/// When `text` is not base64.
pub fn read_base64(text: &str) -> Result<Vec<u8>, JsonError> {
    Ok(base64::decode(text.as_bytes())?)
}

/// Appends topics as one JSON object, from name to topic object with counters, in the order of the names.
pub fn write_topics<'a>(out: &mut Vec<u8>, topics: impl IntoIterator<Item = &'a TopicStats>) {
    let wire: BTreeMap<&str, TopicStatsObject<'_>> = topics
        .into_iter()
        .map(|stats| (stats.topic.name.as_str(), TopicStatsObject::new(stats)))
        .collect();
    write(out, &wire);
}

/// Appends one topic with its subscriptions and its groups as one JSON object.
pub fn write_topic(
    out: &mut Vec<u8>,
    stats: &TopicStats,
    subscribers: &[SubscriberStats],
    groups: &[GroupStats],
) {
    #[derive(Serialize)]
    struct Inspected<'a> {
        #[serde(flatten)]
        topic: TopicStatsObject<'a>,
        max_messages: usize,
        max_bytes: u64,
        overflow: &'static str,
        durability: &'static str,
        subscriptions: Vec<SubscriberObject<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        groups: Vec<GroupObject<'a>>,
    }
    let settings = stats.settings;
    let wire = Inspected {
        topic: TopicStatsObject::new(stats),
        max_messages: settings.max_messages,
        max_bytes: settings.max_bytes,
        overflow: match settings.overflow {
            Overflow::DropOldest => "drop-oldest",
            Overflow::Reject => "reject",
        },
        durability: stats.durability.as_str(),
        subscriptions: subscribers.iter().map(SubscriberObject::new).collect(),
        groups: groups.iter().map(|group| GroupObject::new(&stats.topic.name, group)).collect(),
    };
    write(out, &wire);
}

/// Appends the counters of a whole bus as one JSON object.
pub fn write_stats(out: &mut Vec<u8>, stats: &BusStats) {
    #[derive(Serialize)]
    struct Stats {
        topics: usize,
        subscribers: usize,
        retained: u64,
        bytes: u64,
        #[serde(flatten)]
        counters: CountersObject,
        deleted: u64,
        deleted_unpulled: u64,
        patterns: usize,
        references: u64,
    }
    let deleted = stats.counters.deleted;
    let wire = Stats {
        topics: stats.topics,
        subscribers: stats.subscribers,
        retained: stats.retained,
        bytes: stats.bytes,
        counters: stats.counters.into(),
        deleted: deleted.total,
        deleted_unpulled: deleted.unpulled,
        patterns: stats.patterns,
        references: stats.references,
    };
    write(out, &wire);
}

fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, wire: &T) {
    // These types have string keys and nothing that can fail, and neither can a Vec.
    let _ = serde_json::to_writer(out, wire);
}

#[derive(Serialize)]
struct TopicStatsObject<'a> {
    name: &'a str,
    ttl: u64,
    seq: u64,
    created: Time,
    epoch: String,
    first_id: u64,
    next_id: u64,
    retained: u64,
    unpulled: u64,
    bytes: u64,
    subscribers: usize,
    waiters: usize,
    #[serde(flatten)]
    counters: CountersObject,
}

impl<'a> TopicStatsObject<'a> {
    fn new(stats: &'a TopicStats) -> Self {
        Self {
            name: stats.topic.name.as_str(),
            ttl: ttl_of(&stats.topic),
            seq: stats.next_id,
            created: Time(stats.topic.created),
            // Too large for the numbers of JavaScript, and opaque anyway.
            epoch: stats.topic.epoch.to_string(),
            first_id: stats.first_id,
            next_id: stats.next_id,
            retained: stats.retained,
            unpulled: stats.unpulled,
            bytes: stats.bytes,
            subscribers: stats.subscribers,
            waiters: stats.waiters,
            counters: stats.counters.into(),
        }
    }
}

#[derive(Serialize)]
struct CountersObject {
    published: u64,
    pulled: u64,
    delivered: u64,
    missed: u64,
    expired: u64,
    expired_unpulled: u64,
    evicted: u64,
    evicted_unpulled: u64,
}

impl From<Counters> for CountersObject {
    fn from(counters: Counters) -> Self {
        Self {
            published: counters.published,
            pulled: counters.pulled,
            delivered: counters.delivered,
            missed: counters.missed,
            expired: counters.expired.total,
            expired_unpulled: counters.expired.unpulled,
            evicted: counters.evicted.total,
            evicted_unpulled: counters.evicted.unpulled,
        }
    }
}

#[derive(Serialize)]
struct SubscriberObject<'a> {
    peer: Option<&'a str>,
    next_id: u64,
    received: u64,
    missed: u64,
    lag: u64,
}

impl<'a> SubscriberObject<'a> {
    fn new(subscriber: &'a SubscriberStats) -> Self {
        Self {
            peer: subscriber.label.as_deref(),
            next_id: subscriber.next_id,
            received: subscriber.stats.received,
            missed: subscriber.stats.missed,
            lag: subscriber.stats.pending,
        }
    }
}

#[derive(Deserialize)]
struct MessageIn<'a> {
    id: u64,
    topic: TopicIn,
    #[serde(borrow)]
    payload: std::borrow::Cow<'a, str>,
    expires: Option<DateTime<Utc>>,
    created: DateTime<Utc>,
    #[serde(borrow)]
    headers: Option<HeadersIn<'a>>,
}

#[derive(Deserialize)]
struct TopicIn {
    name: String,
    #[serde(default)]
    ttl: u64,
    created: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use ::base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    /// All lengths around those at which the encoder changes its method, and one that is many vectors long.
    #[test]
    fn a_message_is_what_a_serializer_writes() {
        let topic = Arc::new(TopicInfo {
            name: "a/\"b\"".parse().expect("a name"),
            epoch: 1,
            created: DateTime::from_timestamp(1, 2).expect("a time"),
            ttl: None,
        });
        let headers = [("key", "value")];
        for length in (0..300).chain([100_000]) {
            let bytes: Vec<u8> = (0..=u8::MAX).rev().cycle().take(length).collect();
            let expires = if length % 2 == 0 { WallTime::NEVER } else { topic.created.into() };
            let headers = Headers::new(headers.into_iter().take(length % 2)).expect("headers");
            let created = topic.created.into();
            let payload = bytes.clone().into();
            let message = Message::new(Arc::clone(&topic), 7, created, expires, payload, headers);
            let mut json = b"before".to_vec();
            write_message(&mut json, &message);
            assert!(json.len() <= "before".len() + size_hint(&message), "{length}");
            let text = STANDARD.encode(&bytes);
            let mut expected = format!(
                r#"before{{"id":7,"topic":{{"name":"a/\"b\"","ttl":0,"seq":8,"created":"1970-01-01T00:00:01.000000002Z"}},"payload":"{text}","expires":"{}","created":"1970-01-01T00:00:01.000000002Z""#,
                if length % 2 == 0 {
                    "0001-01-01T00:00:00Z"
                } else {
                    "1970-01-01T00:00:01.000000002Z"
                },
            );
            expected += if length % 2 == 0 { "}" } else { r#","headers":{"key":"value"}}"# };
            assert_eq!(String::from_utf8_lossy(&json), expected);
            let read = read_message(&json["before".len()..]).expect("a message");
            assert_eq!(read.payload()[..], bytes, "{length}");
        }
    }

    #[test]
    fn an_error_does_not_repeat_the_whole_input() {
        let json = format!("{{\"id\":\"{}\"}}", "é".repeat(1 << 20));
        let error = read_message(json.as_bytes()).expect_err("no number").to_string();
        assert!(error.starts_with("not a message: invalid type: string \"éé"), "{error}");
        assert!(error.len() < 500 && error.ends_with("é…"), "{error}");
    }
}
