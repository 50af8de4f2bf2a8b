//! Messages as Redis has them, and answers of scripts.

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use msgbus_core::{Headers, engine::EngineError, store::RecoveredMessage};
use redis::Value;

/// Headers as the stream has them: a list in JSON, which keeps their order and spelling. Empty if there are none.
pub(crate) fn encode_headers(headers: &Headers) -> String {
    if headers.is_empty() {
        return String::new();
    }
    let list: Vec<(&str, &str)> = headers.iter().collect();
    serde_json::to_string(&list).unwrap_or_default()
}

/// Headers from what the stream has.
pub(crate) fn decode_headers(text: &[u8]) -> Headers {
    let list: Vec<(String, String)> = serde_json::from_slice(text).unwrap_or_default();
    Headers::new(list).unwrap_or_default()
}

/// Which parts a message has besides its payload, as scripts take them and tell them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) has_key: bool,
    pub(crate) has_ttl: bool,
    pub(crate) has_headers: bool,
}

impl Shape {
    pub(crate) fn digit(self) -> char {
        let bits = [self.has_key, self.has_ttl, self.has_headers].map(u8::from);
        char::from(b'0' + bits[0] + 2 * bits[1] + 4 * bits[2])
    }

    pub(crate) fn parse(digit: u8) -> Self {
        let has = |bit: u8| digit & bit != 0;
        Self { has_key: has(1), has_ttl: has(2), has_headers: has(4) }
    }
}

/// A part of an answer. What is not as expected is not of a script of ours.
pub(crate) trait Answer: Sized {
    fn list(self) -> Result<Vec<Value>, EngineError>;
    fn bytes(self) -> Result<Vec<u8>, EngineError>;

    fn text(self) -> Result<String, EngineError> {
        String::from_utf8(self.bytes()?).map_err(|_| EngineError::Unavailable)
    }

    fn number(self) -> Result<u64, EngineError> {
        self.text()?.parse().map_err(|_| EngineError::Unavailable)
    }

    /// A time in milliseconds since 1970.
    fn time(self) -> Result<DateTime<Utc>, EngineError> {
        Ok(time(self.number()?))
    }
}

impl Answer for Value {
    fn list(self) -> Result<Vec<Value>, EngineError> {
        match self {
            Self::Array(list) => Ok(list),
            _ => Err(EngineError::Unavailable),
        }
    }

    fn bytes(self) -> Result<Vec<u8>, EngineError> {
        match self {
            Self::BulkString(bytes) => Ok(bytes),
            Self::SimpleString(text) => Ok(text.into_bytes()),
            Self::Int(number) => Ok(number.to_string().into_bytes()),
            _ => Err(EngineError::Unavailable),
        }
    }
}

/// The next part of an answer.
pub(crate) fn next(parts: &mut impl Iterator<Item = Value>) -> Result<Value, EngineError> {
    parts.next().ok_or(EngineError::Unavailable)
}

pub(crate) fn time(milliseconds: u64) -> DateTime<Utc> {
    let milliseconds = i64::try_from(milliseconds).unwrap_or(i64::MAX);
    DateTime::from_timestamp_millis(milliseconds).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// A message from its fields, see the scripts.
pub(crate) fn decode(
    id: u64,
    fields: Value,
    max_age_ms: u64,
) -> Result<RecoveredMessage, EngineError> {
    let mut fields = fields.list()?.into_iter();
    let (mut created, mut expires) = (None, None);
    let (mut headers, mut payload) = (Headers::default(), Bytes::new());
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match name.bytes()?.as_slice() {
            b"t" => created = Some(value.time()?),
            b"x" => expires = Some(value.time()?),
            b"h" => headers = decode_headers(&value.bytes()?),
            b"p" => payload = value.bytes()?.into(),
            _ => {}
        }
    }
    let created = created.ok_or(EngineError::Unavailable)?;
    Ok(recovered(id, created, expires, max_age_ms, headers, payload))
}

/// A message that expires at its own time, if it has one, or by its age.
pub(crate) fn recovered(
    id: u64,
    created: DateTime<Utc>,
    own: Option<DateTime<Utc>>,
    max_age_ms: u64,
    headers: Headers,
    payload: Bytes,
) -> RecoveredMessage {
    let max_age = i64::try_from(max_age_ms).ok().and_then(TimeDelta::try_milliseconds);
    let max_age = max_age.filter(|age| !age.is_zero());
    let by_age = max_age.and_then(|age| created.checked_add_signed(age));
    let expires = own.into_iter().chain(by_age).min();
    RecoveredMessage { id, created, expires, headers, payload }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&str, &[u8])]) -> Value {
        let parts = fields.iter().flat_map(|(name, value)| [name.as_bytes(), value]);
        Value::Array(parts.map(|part| Value::BulkString(part.to_vec())).collect())
    }

    #[test]
    fn headers_come_back_as_they_were() {
        let headers = Headers::new([("B", "1"), ("a", "größe \"x\""), ("b", ""), ("B", "2")]);
        let headers = headers.unwrap();
        let text = encode_headers(&headers);
        let kept = fields(&[("t", b"5000"), ("h", text.as_bytes()), ("p", &[0, 255])]);
        let message = decode(3, kept, 0).unwrap();
        assert_eq!((message.id, message.headers, message.expires), (3, headers, None));
        assert_eq!((message.created, message.payload.as_ref()), (time(5000), &[0, 255][..]));
    }

    #[test]
    fn a_message_expires_at_the_earlier_of_two_times() {
        let own = || fields(&[("t", b"5000"), ("x", b"9000"), ("p", b"")]);
        assert_eq!(decode(1, own(), 0).unwrap().expires, Some(time(9000)));
        assert_eq!(decode(1, own(), 1000).unwrap().expires, Some(time(6000)));
        assert_eq!(decode(1, own(), 10_000).unwrap().expires, Some(time(9000)));
        assert!(decode(1, fields(&[("p", b"")]), 0).is_err());
        assert!(decode(1, Value::Nil, 0).is_err());
    }
}
