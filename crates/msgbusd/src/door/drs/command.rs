//! A command as JSON. Its fields go out in the order key, action, body, version.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use msgbus_core::{Headers, Message, PublishError, TopicName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    MAX_HANDLERS, MAX_KEY,
    split::{Malformed, is_shallow},
};
use crate::service::error::ServiceError;

/// The actions that answer a call: with its result, with a refusal, or with a failure that may not come again.
pub(super) const RESPONSE: &str = "drs.response";
pub(super) const ERROR: &str = "drs.error";
pub(super) const EXCEPTION: &str = "drs.exception";
/// The beginning of the reason of a failure that a peer has answered with an exception, for other doors.
pub(super) const UNEXPECTED: &str = "exception: ";
/// The header that carries the version of a command.
pub(super) const VERSION: &str = "drs-version";

/// A command of a peer.
#[derive(Debug, Default)]
pub(super) struct Command<'a> {
    /// As JSON, with its quotes; `None` if it is absent or empty.
    pub(super) key: Option<&'a str>,
    pub(super) action: Cow<'a, str>,
    /// As JSON; `None` if it is absent or null.
    pub(super) body: Option<&'a str>,
    /// A number; `None` if it is absent or 0.
    pub(super) version: Option<&'a str>,
}

impl<'a> Command<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(borrow)]
            key: Option<&'a RawValue>,
            #[serde(borrow)]
            action: Option<&'a RawValue>,
            #[serde(borrow)]
            body: Option<&'a RawValue>,
            #[serde(borrow)]
            version: Option<&'a RawValue>,
        }
        let fields: Fields<'a> =
            serde_json::from_slice(bytes).map_err(|error| Malformed::Json(error.to_string()))?;
        let wrong = |what: &str| Malformed::Json(what.to_owned());
        let key = fields.key.map(RawValue::get).filter(|key| *key != "\"\"");
        if key.is_some_and(|key| !key.starts_with('"')) {
            return Err(wrong("key must be a string"));
        }
        if key.is_some_and(|key| key.len() > MAX_KEY) {
            return Err(wrong("a key has at most 1024 bytes"));
        }
        let action = fields.action.map_or(Some(Cow::Borrowed("")), |action| text(action.get()));
        let version = fields.version.map(RawValue::get).filter(|version| *version != "0");
        if version.is_some_and(|version| version.parse::<i64>().is_err()) {
            return Err(wrong("version must be an integer"));
        }
        Ok(Self {
            key,
            action: action.ok_or_else(|| wrong("action must be a string"))?,
            body: fields.body.map(RawValue::get),
            version,
        })
    }

    /// The headers of a message or request with this body.
    pub(super) fn headers(&self) -> Headers {
        let json = self.body.map(|_| (Headers::CONTENT_TYPE, "application/json"));
        let version = self.version.map(|version| (VERSION, version));
        // Both are valid.
        Headers::new(json.into_iter().chain(version)).unwrap_or_default()
    }

    /// The names that the command is about: a string, or a list of them. There is at least one.
    pub(super) fn names(&self) -> Result<Vec<String>, Failure> {
        let body = self.body.unwrap_or_default();
        let names = match text(body) {
            Some(name) => Some(vec![name.into_owned()]),
            None => serde_json::from_str(body).ok(),
        };
        let names = names.filter(|names: &Vec<String>| (1..=MAX_HANDLERS).contains(&names.len()));
        names.ok_or_else(|| Failure::error("expected a name, or a list of names"))
    }

    /// The text of a failure: a string, an object with a `message`, or nothing.
    pub(super) fn failure(&self) -> Cow<'a, str> {
        #[derive(Deserialize)]
        struct Failure<'a> {
            #[serde(borrow)]
            message: Option<&'a RawValue>,
        }
        let Some(body) = self.body else { return Cow::Borrowed("") };
        let message = serde_json::from_str::<Failure<'a>>(body).ok();
        let message = message.and_then(|failure| failure.message).map_or(body, RawValue::get);
        text(message).unwrap_or(Cow::Borrowed(message))
    }
}

pub(super) fn topic_name(action: &str) -> Result<TopicName, Failure> {
    TopicName::new(action).map_err(|why| Failure::error(why.to_string()))
}

/// The text of a JSON string; `None` if it is something else.
pub(super) fn text(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(json).ok().map(Cow::Owned)
}

/// A payload as the body of a command, in JSON: as it is if it can be JSON and its headers do not say that it is something
/// else; else as text, or in base64 if it is not UTF-8.
pub(super) fn body<'a>(payload: &'a [u8], headers: &Headers) -> Option<Cow<'a, str>> {
    let is_json = |media: &str| {
        let media = media.split(';').next().unwrap_or_default().trim_end();
        media.is_empty() || media.ends_with("json")
    };
    if payload.is_empty() {
        return None;
    }
    if headers.content_type().is_none_or(is_json)
        && is_shallow(payload)
        && let Ok(json) = serde_json::from_slice::<&RawValue>(payload)
    {
        return Some(Cow::Borrowed(json.get())).filter(|json| json != "null");
    }
    let text =
        str::from_utf8(payload).map_or_else(|_| STANDARD.encode(payload).into(), Cow::Borrowed);
    Some(json_text(&text).into())
}

/// Writes a command and a line feed. `key` and `body` are JSON.
pub(super) fn write(
    out: &mut Vec<u8>,
    key: Option<&str>,
    action: &str,
    body: Option<&str>,
    version: Option<&str>,
) {
    out.push(b'{');
    if let Some(key) = key {
        out.extend([br#""key":"#, key.as_bytes(), b","].concat());
    }
    out.extend([br#""action":"#, json_text(action).as_bytes()].concat());
    if let Some(body) = body {
        out.extend_from_slice(br#","body":"#);
        out.extend_from_slice(body.as_bytes());
    }
    if let Some(version) = version {
        out.extend([br#","version":"#, version.as_bytes()].concat());
    }
    out.extend_from_slice(b"}\n");
}

/// The version that a header carries, if it is one.
pub(super) fn version(headers: &Headers) -> Option<&str> {
    headers.get(VERSION).filter(|version| version.parse::<i64>().is_ok_and(|number| number != 0))
}

/// Writes a message as the command that its publisher may have fired.
pub(super) fn write_fire(out: &mut Vec<u8>, message: &Message) {
    let headers = message.headers();
    let body = body(message.payload(), headers);
    write(out, None, message.topic().name.as_str(), body.as_deref(), version(headers));
}

/// A JSON string.
pub(super) fn json_text(text: &str) -> String {
    // A text cannot fail.
    serde_json::to_string(text).unwrap_or_default()
}

/// Why a command has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// `drs.error` if the same command would fail again, or `drs.exception`.
    pub(super) action: &'static str,
    pub(super) text: String,
}

impl Failure {
    pub(super) fn error(text: impl Into<String>) -> Self {
        Self { action: ERROR, text: text.into() }
    }

    pub(super) fn exception(text: impl Into<String>) -> Self {
        Self { action: EXCEPTION, text: text.into() }
    }

    /// The body that says why, in JSON.
    pub(super) fn body(&self) -> String {
        format!("{{\"message\":{}}}", json_text(&self.text))
    }
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::NoResponder { service } => {
                Self::error(format!("No handlers for {service}"))
            }
            ServiceError::KeyNeeded { .. } => Self::error("Authentication required"),
            ServiceError::ResponderFailed { reason } => match reason.strip_prefix(UNEXPECTED) {
                Some(text) => Self::exception(text),
                None => Self::error(reason),
            },
            ServiceError::ResponderGone | ServiceError::Publish(PublishError::Closed) => {
                Self::exception("Connection closed")
            }
            error
                if error.retry_after().is_some()
                    || matches!(error, ServiceError::RequestTimeout) =>
            {
                Self::exception(error.to_string())
            }
            error => Self::error(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_all_dialects_are_read() {
        for (text, key, action, body, version) in [
            (
                r#"{"key":"k","action":"a.b","body":{"a":1.50}}"#,
                Some("\"k\""),
                "a.b",
                Some(r#"{"a":1.50}"#),
                None,
            ),
            (r#"{"key":"","action":"a","body":null,"version":0}"#, None, "a", None, None),
            (r#"{"body":[1], "action":"\u0061","version":7}"#, None, "a", Some("[1]"), Some("7")),
            (r#"{"key":null,"action":null,"kind":{"x":[]}}"#, None, "", None, None),
            ("{}", None, "", None, None),
        ] {
            let command = Command::read(text.as_bytes()).unwrap();
            let read = (command.key, &*command.action, command.body, command.version);
            assert_eq!(read, (key, action, body, version), "{text}");
        }
        for text in [
            r#"{"key":1}"#,
            r#"{"action":{}}"#,
            r#"{"version":1.5}"#,
            r#"{"version":"1"}"#,
            r#"{"a"}"#,
            "{\"action\":\"\u{1}\"}",
        ] {
            let error = Command::read(text.as_bytes()).expect_err(text);
            assert!(!error.to_string().contains('\n'));
        }
        assert!(Command::read(b"{\"action\":\"\xff\"}").is_err());
    }

    #[test]
    fn failures_have_every_known_form() {
        for (body, expected) in [
            (r#""no""#, "no"),
            (r#"{"message":"no\n"}"#, "no\n"),
            (r#"{"message":"no","kind":"error"}"#, "no"),
            ("null", ""),
            ("42", "42"),
            (r#"{"code":1}"#, r#"{"code":1}"#),
            (r#"{"message":{"a":1}}"#, r#"{"a":1}"#),
        ] {
            let text = format!(r#"{{"key":"k","action":"drs.error","body":{body}}}"#);
            assert_eq!(Command::read(text.as_bytes()).unwrap().failure(), expected, "{body}");
        }
    }

    #[test]
    fn payloads_are_json_text_or_base64() {
        let none = Headers::default();
        let plain = Headers::new([("content-type", "text/plain")]).unwrap();
        let json =
            Headers::new([("content-type", "application/problem+json; charset=utf-8")]).unwrap();
        let deep = "[".repeat(200) + &"]".repeat(200);
        for (payload, headers, body) in [
            (&b"{\"a\": 1}\n"[..], &none, r#","body":{"a": 1}"#),
            (b" 3 ", &json, r#","body":3"#),
            (b"3", &plain, r#","body":"3""#),
            (b"hi \"you\"", &none, r#","body":"hi \"you\"""#),
            (b"\xff", &none, r#","body":"/w==""#),
            (b"null", &none, ""),
            (b"", &none, ""),
            (b"]}", &none, r#","body":"]}""#),
            (deep.as_bytes(), &none, &format!(r#","body":"{deep}""#)),
        ] {
            let mut out = Vec::new();
            let json = super::body(payload, headers);
            write(&mut out, Some("\"k\""), "a/\"", json.as_deref(), Some("2"));
            let expected = format!("{{\"key\":\"k\",\"action\":\"a/\\\"\"{body},\"version\":2}}\n");
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
