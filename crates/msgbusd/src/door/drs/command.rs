//! A command as JSON. Its fields go out in the order key, action, body, version.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use msgbus_core::{Headers, Message, PublishError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::split::{is_shallow, malformed};
use crate::{
    code::Code,
    dialogue::{MAX_SUBSCRIPTIONS, Refusal, names::foreign},
    service::error::ServiceError,
    websocket::end::End,
};

/// The actions that answer a call: with its result, with a refusal, or with a failure that may not come again.
pub(super) const RESPONSE: &str = "drs.response";
pub(super) const ERROR: &str = "drs.error";
pub(super) const EXCEPTION: &str = "drs.exception";
/// The beginning of the reason of a failure that a peer has answered with an exception, for other doors.
pub(super) const UNEXPECTED: &str = "exception: ";
/// The header that carries the version of a command.
const VERSION: &str = "drs-version";
/// The maximum size of a key, in bytes.
const MAX_KEY: usize = 1 << 10;

/// A command of a peer.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Command<'a> {
    /// A JSON string. Not empty.
    #[serde(borrow)]
    pub(super) key: Option<&'a RawValue>,
    #[serde(borrow)]
    action: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) body: Option<&'a RawValue>,
    version: Option<i64>,
}

/// A text that is borrowed if it has no escapes.
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Command<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, End> {
        let bad = |why| malformed(Code::BadJson, format!("Malformed command: {why}"));
        let mut command: Self =
            serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        command.key = command.key.filter(|key| key.get() != "\"\"");
        let is_key = |key: &RawValue| key.get().starts_with('"') && key.get().len() <= MAX_KEY;
        if !command.key.is_none_or(is_key) {
            return Err(bad(format!("a key is a string of at most {MAX_KEY} bytes")));
        }
        Ok(command)
    }

    pub(super) fn action(&self) -> &str {
        self.action.as_ref().map_or("", |action| &action.0)
    }

    /// The body as a payload.
    pub(super) fn payload(&self) -> &[u8] {
        self.body.map_or("", RawValue::get).as_bytes()
    }

    /// The headers of a message or request with this body.
    pub(super) fn headers(&self) -> Headers {
        let json = self.body.map(|_| (Headers::CONTENT_TYPE, "application/json".to_owned()));
        let version = self.version.filter(|version| *version != 0);
        let version = version.map(|version| (VERSION, version.to_string()));
        // Both are valid.
        Headers::new(json.into_iter().chain(version)).unwrap_or_default()
    }

    /// The names that the command is about: a string, or a list of them. There is at least one.
    pub(super) fn names(&self) -> Result<Vec<String>, Refusal> {
        let body = self.payload();
        let one = serde_json::from_slice(body).map(|name| vec![name]);
        let names = one.or_else(|_| serde_json::from_slice(body)).unwrap_or_default();
        if (1..=MAX_SUBSCRIPTIONS).contains(&names.len()) {
            return Ok(names);
        }
        Err(Refusal::Door(Code::BadParameter, "expected a name, or a list of names"))
    }

    /// The text of a failure: a string, an object with a `message`, or nothing.
    pub(super) fn reason(&self) -> Cow<'a, str> {
        #[derive(Deserialize)]
        struct Failure<'a> {
            #[serde(borrow)]
            message: Option<&'a RawValue>,
        }
        let Some(body) = self.body else { return Cow::Borrowed("") };
        let failure = serde_json::from_str::<Failure<'a>>(body.get()).ok();
        let message = failure.and_then(|failure| failure.message).unwrap_or(body).get();
        serde_json::from_str::<Text<'a>>(message).map_or(Cow::Borrowed(message), |text| text.0)
    }
}

/// Writes a command and a line feed.
pub(super) fn write(
    out: &mut Vec<u8>,
    key: Option<impl Serialize>,
    action: &str,
    body: Option<impl Serialize>,
    version: Option<i64>,
) {
    #[derive(Serialize)]
    struct Written<'a, K, B> {
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<K>,
        action: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<B>,
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<i64>,
    }
    // It cannot fail: neither texts nor a Vec do.
    let _ = serde_json::to_writer(&mut *out, &Written { key, action, body, version });
    out.push(b'\n');
}

/// Writes a message, or a request with its key, as the command of a peer.
pub(super) fn write_payload(
    out: &mut Vec<u8>,
    key: Option<&str>,
    action: &str,
    (payload, headers): (&[u8], &Headers),
) {
    let version = headers.get(VERSION).and_then(|version| version.parse().ok());
    write(out, key, action, body(payload, headers), version.filter(|version| *version != 0));
}

/// Writes a message as the command that its publisher may have fired.
pub(super) fn write_fire(out: &mut Vec<u8>, message: &Message) {
    let content = (&message.payload()[..], message.headers());
    write_payload(out, None, &foreign(message.topic().name.as_str()), content);
}

/// The body of a command.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Body<'a> {
    Json(&'a RawValue),
    Text(Cow<'a, str>),
}

/// A payload as the body of a command: as it is if it can be JSON and its headers do not say that it is something else;
/// else as text, or in base64 if it is not UTF-8.
pub(super) fn body<'a>(payload: &'a [u8], headers: &Headers) -> Option<Body<'a>> {
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
        return (json.get() != "null").then_some(Body::Json(json));
    }
    let text = str::from_utf8(payload).map_or_else(|_| STANDARD.encode(payload).into(), Cow::from);
    Some(Body::Text(text))
}

/// How a refused command is answered: with an error if it would be refused again, or with an exception; and the text.
pub(super) fn failure(action: &str, refusal: &Refusal) -> (&'static str, String) {
    match refusal {
        Refusal::Service(ServiceError::ResponderFailed { reason }) => {
            match reason.strip_prefix(UNEXPECTED) {
                Some(text) => (EXCEPTION, text.to_owned()),
                None => (ERROR, reason.to_string()),
            }
        }
        Refusal::Service(ServiceError::KeyNeeded { .. }) => {
            (ERROR, "Authentication required".to_owned())
        }
        Refusal::Service(
            ServiceError::ResponderGone | ServiceError::Publish(PublishError::Closed),
        ) => (EXCEPTION, "Connection closed".to_owned()),
        _ if refusal.code() == Code::NoResponder => (ERROR, format!("No handlers for {action}")),
        Refusal::TooManyAsked | Refusal::Service(ServiceError::RequestTimeout) => {
            (EXCEPTION, refusal.to_string())
        }
        Refusal::Service(error) if error.retry_after().is_some() => (EXCEPTION, error.to_string()),
        _ => (ERROR, refusal.to_string()),
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
                r#"{"a":1.50}"#,
                None,
            ),
            (r#"{"key":"","action":"a","body":null,"version":0}"#, None, "a", "", None),
            (r#"{"body":[1], "action":"\u0061","version":7}"#, None, "a", "[1]", Some("7")),
            (r#"{"key":null,"action":null,"kind":{"x":[]}}"#, None, "", "", None),
            ("{}", None, "", "", None),
        ] {
            let command = Command::read(text.as_bytes()).unwrap();
            let key_and_body = (command.key.map(RawValue::get), command.payload());
            assert_eq!(
                (key_and_body, command.action()),
                ((key, body.as_bytes()), action),
                "{text}"
            );
            assert_eq!(command.headers().get(VERSION), version, "{text}");
        }
        for text in [
            r#"{"key":1}"#,
            r#"{"action":{}}"#,
            r#"{"version":1.5}"#,
            r#"{"version":"1"}"#,
            r#"{"a"}"#,
            "{\"action\":\"\u{1}\"}",
        ] {
            Command::read(text.as_bytes()).expect_err(text);
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
            assert_eq!(Command::read(text.as_bytes()).unwrap().reason(), expected, "{body}");
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
            write(&mut out, Some("k"), "a/\"", super::body(payload, headers), Some(2));
            let expected = format!("{{\"key\":\"k\",\"action\":\"a/\\\"\"{body},\"version\":2}}\n");
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
