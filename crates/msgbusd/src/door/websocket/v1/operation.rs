//! Operations as a client sends them: one JSON object in each line. docs/protocol.md, 16.3.

use std::borrow::Cow;

use msgbus_core::json;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{identifier::Identifier, plain, refusal::Refusal};

/// The operations that there are.
pub(super) const NAMES: &str =
    "pub, sub, unsub, pull, ack, nack, extend, credit, request, serve, reply or ping";

/// A line of a client.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) rid: Option<Identifier<'a>>,
    pub(super) operation: Operation<'a>,
}

/// A line that is not an operation, as far as it could be read.
#[derive(Debug)]
pub(super) struct Unreadable<'a> {
    pub(super) rid: Option<Identifier<'a>>,
    pub(super) of: Option<&'static str>,
    pub(super) refusal: Refusal,
}

/// A text, which is borrowed unless it has escapes.
#[derive(Debug, Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

impl Text<'_> {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A field, which may be absent but not `null`.
#[derive(Debug)]
pub(super) struct Field<T>(Option<T>);

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> From<Option<T>> for Field<T> {
    fn from(value: Option<T>) -> Self {
        Self(value)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(|value| Self(Some(value)))
    }
}

impl<T> Field<T> {
    pub(super) fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }

    pub(super) fn take(&mut self) -> Option<T> {
        self.0.take()
    }

    /// The value of a field that the operation needs.
    pub(super) fn needed(&self, name: &'static str) -> Result<&T, Refusal> {
        self.0.as_ref().ok_or(Refusal::Missing(name))
    }
}

impl Field<Text<'_>> {
    pub(super) fn text(&self) -> Option<&str> {
        self.0.as_ref().map(Text::as_str)
    }

    /// The text that the operation needs.
    pub(super) fn needed_text(&self, name: &'static str) -> Result<&str, Refusal> {
        self.text().ok_or(Refusal::Missing(name))
    }
}

macro_rules! operations {
    ($($(#[$about:meta])* $name:ident = $word:literal { $($field:ident: $type:ty,)* })+) => {
        /// An operation with its fields.
        #[derive(Debug)]
        pub(super) enum Operation<'a> { $($name($name<'a>),)+ }

        $(
            $(#[$about])*
            #[derive(Debug, Default, Deserialize)]
            #[serde(default, deny_unknown_fields, bound(deserialize = "'de: 'a"))]
            pub(super) struct $name<'a> {
                op: Op,
                rid: Field<Identifier<'a>>,
                $(pub(super) $field: Field<$type>,)*
            }
        )+

        impl<'a> Operation<'a> {
            /// The word of the operation, if there is one of this name.
            fn word(name: &str) -> Option<&'static str> {
                match name { $($word => Some($word),)+ _ => None }
            }

            pub(super) fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => $word,)+ }
            }

            /// Parses an operation of this name.
            fn of(name: &'static str, line: &'a str) -> Result<Request<'a>, serde_json::Error> {
                match name {
                    $($word => {
                        let mut fields: $name<'a> = serde_json::from_str(line)?;
                        let rid = fields.rid.take();
                        Ok(Request { rid, operation: Self::$name(fields) })
                    })+
                    _ => unreachable!("{name} is no operation"),
                }
            }
        }
    };
}

operations! {
    /// Publishes a message.
    Publish = "pub" {
        topic: Text<'a>,
        text: Text<'a>,
        json: &'a RawValue,
        base64: Text<'a>,
        ttl: Text<'a>,
        headers: &'a RawValue,
    }
    /// Subscribes to a topic, or works for a group.
    Subscribe = "sub" {
        sid: Identifier<'a>,
        topic: Text<'a>,
        since: Text<'a>,
        lag: Text<'a>,
        payload: Form,
        group: Text<'a>,
        lease: Text<'a>,
        credit: u32,
    }
    /// Ends a subscription.
    Unsubscribe = "unsub" { sid: Identifier<'a>, }
    /// Takes messages, or leases them.
    Pull = "pull" {
        topic: Text<'a>,
        max: u64,
        wait: Text<'a>,
        payload: Form,
        group: Text<'a>,
        lease: Text<'a>,
        since: Text<'a>,
    }
    /// Acknowledges leases.
    Ack = "ack" { token: Text<'a>, tokens: Vec<Text<'a>>, }
    /// Gives leases back.
    Nack = "nack" {
        token: Text<'a>,
        tokens: Vec<Text<'a>>,
        delay: Text<'a>,
        reason: Text<'a>,
    }
    /// Prolongs leases.
    Extend = "extend" { token: Text<'a>, tokens: Vec<Text<'a>>, lease: Text<'a>, }
    /// Lets the server lease more messages to a subscription.
    Credit = "credit" { sid: Identifier<'a>, n: u32, }
    /// Asks a service.
    Ask = "request" {
        service: Text<'a>,
        text: Text<'a>,
        json: &'a RawValue,
        base64: Text<'a>,
        headers: &'a RawValue,
        timeout: Text<'a>,
        retry: bool,
        payload: Form,
    }
    /// Serves a service.
    Serve = "serve" { sid: Identifier<'a>, service: Text<'a>, max: u32, payload: Form, }
    /// Answers a request of a service.
    Reply = "reply" {
        token: Text<'a>,
        text: Text<'a>,
        json: &'a RawValue,
        base64: Text<'a>,
        headers: &'a RawValue,
        error: Text<'a>,
        retry: bool,
    }
    /// Asks whether the server answers.
    Ping = "ping" {}
}

/// The name of the operation, which was read before.
#[derive(Debug, Default)]
struct Op;

impl<'de> Deserialize<'de> for Op {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Text::deserialize(deserializer).map(|_| Self)
    }
}

/// How a client wants payloads.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Form {
    Text,
    Base64,
}

impl Field<Form> {
    pub(super) fn form(&self) -> json::PayloadForm {
        match self.0 {
            Some(Form::Text) => json::PayloadForm::Text,
            Some(Form::Base64) | None => json::PayloadForm::Base64,
        }
    }
}

/// Parses a line, which is not empty.
pub(super) fn parse(line: &str) -> Result<Request<'_>, Unreadable<'_>> {
    plain::publish(line).map_or_else(|| parse_json(line), Ok)
}

/// Parses a line with the JSON library.
pub(super) fn parse_json(line: &str) -> Result<Request<'_>, Unreadable<'_>> {
    let parsed = match first_word(line) {
        Some(name) => Operation::of(name, line),
        None => {
            let name = Head::read(line)?.name()?;
            Operation::of(name, line)
        }
    };
    parsed.map_err(|error| unreadable(line, &error))
}

/// The name of the operation, if it is the first field, as most clients write it.
fn first_word(line: &str) -> Option<&'static str> {
    let (name, _) = line.strip_prefix(r#"{"op":""#)?.split_once('"')?;
    Operation::word(name)
}

/// What identifies an operation. All other fields are skipped, whatever they are.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
struct Head<'a> {
    op: Option<&'a RawValue>,
    rid: Option<&'a RawValue>,
}

impl<'a> Head<'a> {
    fn read(line: &'a str) -> Result<Self, Unreadable<'a>> {
        let refusal = if line.trim_start_matches([' ', '\t', '\r']).starts_with('{') {
            // First whether it is JSON at all: a repeated field would end the search for other errors.
            match serde_json::from_str::<IgnoredAny>(line).map(|_| serde_json::from_str(line)) {
                Ok(Ok(head)) => return Ok(head),
                Ok(Err(error)) => Refusal::Shape(json::brief(&error)),
                Err(error) => Refusal::NotJson(json::brief(&error)),
            }
        } else {
            // An array would be taken for the values of the fields.
            Refusal::NotJson("it does not begin with {".to_owned())
        };
        Err(Unreadable { rid: None, of: None, refusal })
    }

    fn rid(&self) -> Option<Identifier<'a>> {
        self.rid.and_then(|rid| serde_json::from_str(rid.get()).ok())
    }

    fn word(&self) -> Option<Cow<'a, str>> {
        let op = serde_json::from_str::<Text<'a>>(self.op?.get());
        op.ok().map(|Text(op)| op)
    }

    fn name(&self) -> Result<&'static str, Unreadable<'a>> {
        let refusal = match self.word() {
            None => Refusal::NoOp,
            Some(word) => match Operation::word(&word) {
                Some(name) => return Ok(name),
                None => Refusal::UnknownOp(word.chars().take(40).collect()),
            },
        };
        Err(Unreadable { rid: self.rid(), of: None, refusal })
    }
}

/// Finds out what can be said about a line that could not be parsed.
fn unreadable<'a>(line: &'a str, error: &serde_json::Error) -> Unreadable<'a> {
    let head = match Head::read(line) {
        Ok(head) => head,
        Err(unreadable) => return unreadable,
    };
    let of = head.word().and_then(|word| Operation::word(&word));
    Unreadable { rid: head.rid(), of, refusal: Refusal::Shape(json::brief(error)) }
}
