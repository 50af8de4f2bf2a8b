//! Messages as NATS has them.
//!
//! The headers of a message are kept as JSON in one header of NATS, which keeps their order and spelling.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use msgbus_core::{Headers, NewMessage, store::RecoveredMessage};
use std::{collections::HashMap, time::Duration};

/// The list of headers.
const HEADERS: &str = "Msgbus-Headers";
/// How long a message lives, in seconds.
pub(crate) const TTL: &str = "Nats-TTL";

/// How many messages of one call have had each idempotency key.
pub(crate) type Repeats = HashMap<String, u64>;

/// Headers and payload of a message for NATS.
pub(crate) fn encode(
    message: NewMessage,
    subject: &str,
    repeats: &mut Repeats,
) -> (Option<HeaderMap>, Bytes) {
    let mut map = HeaderMap::new();
    if let Some(key) = message.repeat_key() {
        let count = repeats.entry(key.to_owned()).or_default();
        // Identities are those of a stream, keys those of a topic.
        map.insert(NATS_MESSAGE_ID, format!("{subject} {count} {key}").as_str());
        *count += 1;
    }
    let (payload, ttl, headers) = message.into_parts();
    if !headers.is_empty() {
        encode_headers(&headers, &mut map);
    }
    if let Some(ttl) = ttl {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        map.insert(TTL, format!("{}s", seconds.max(1)).as_str());
    }
    ((!map.is_empty()).then_some(map), payload)
}

/// Keeps headers in one of NATS.
pub(crate) fn encode_headers(headers: &Headers, map: &mut HeaderMap) {
    let list: Vec<(&str, &str)> = headers.iter().collect();
    if let Ok(json) = serde_json::to_string(&list) {
        map.insert(HEADERS, json.as_str());
    }
}

/// A message from NATS, also if another client has published it.
pub(crate) fn decode(
    id: u64,
    created: DateTime<Utc>,
    headers: Option<&HeaderMap>,
    payload: Bytes,
    max_age: Option<Duration>,
) -> RecoveredMessage {
    let ttl = headers.and_then(|headers| {
        let seconds = headers.get(TTL)?.as_str().strip_suffix('s')?.parse().ok()?;
        Some(Duration::from_secs(seconds))
    });
    let lives = ttl.into_iter().chain(max_age).min();
    let expires = lives.and_then(|lives| created.checked_add_signed(chrono_duration(lives)));
    let headers = headers.map(decode_headers).unwrap_or_default();
    RecoveredMessage { id, created, expires, headers, payload }
}

fn chrono_duration(duration: Duration) -> chrono::TimeDelta {
    chrono::TimeDelta::from_std(duration).unwrap_or(chrono::TimeDelta::MAX)
}

pub(crate) fn decode_headers(map: &HeaderMap) -> Headers {
    if let Some(json) = map.get(HEADERS) {
        let list: Vec<(String, String)> = serde_json::from_str(json.as_str()).unwrap_or_default();
        return Headers::new(list).unwrap_or_default();
    }
    let mut headers = Headers::default();
    for (name, values) in map.iter() {
        let name: &str = name.as_ref();
        for value in values.iter().filter(|_| !name.starts_with("Nats-")) {
            // What is not a header here is left out.
            headers = headers.with(name, value.as_str()).unwrap_or(headers);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were() {
        let headers = Headers::new([("B", "1"), ("a", "größe \"x\""), ("b", ""), ("B", "2")]);
        let headers = headers.unwrap();
        let message = NewMessage::new("x").headers(headers.clone()).ttl(Duration::from_millis(1));
        let (map, payload) = encode(message, "s", &mut Repeats::new());
        let now = Utc::now();
        let back = decode(3, now, map.as_ref(), payload, None);
        assert_eq!((back.id, back.headers), (3, headers));
        assert_eq!(back.expires, Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn messages_of_other_clients_are_messages() {
        let mut map = HeaderMap::new();
        map.insert("X-One", "1");
        map.insert("Nats-Msg-Id", "7");
        let age = Some(Duration::from_secs(5));
        let message = decode(1, DateTime::UNIX_EPOCH, Some(&map), Bytes::new(), age);
        assert_eq!(message.headers.iter().collect::<Vec<_>>(), [("X-One", "1")]);
        assert_eq!(message.expires.map(|time| time.timestamp()), Some(5));
        assert!(decode(1, DateTime::UNIX_EPOCH, None, Bytes::new(), None).headers.is_empty());
    }
}
