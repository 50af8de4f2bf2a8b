//! `rid` and `sid`: what a client names its operations and subscriptions.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// An identifier chosen by the client: an integer or a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identifier<'a> {
    Number(u64),
    Text(Cow<'a, str>),
}

/// An identifier as JSON, which is repeated to the client. The same identifier is always the same text.
pub(super) type Label = Box<str>;

impl Identifier<'_> {
    /// The largest integer that every JSON library keeps exactly.
    const MAX_NUMBER: u64 = (1 << 53) - 1;
    const MAX_TEXT: usize = 64;

    /// The identifier of this text, if it is one.
    pub(super) fn of_text(text: &str) -> Option<Identifier<'_>> {
        (1..=Self::MAX_TEXT).contains(&text.len()).then_some(Identifier::Text(Cow::Borrowed(text)))
    }

    /// Appends it as JSON.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Number(number) => {
                out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes());
            }
            // Neither a text nor a Vec can fail.
            Self::Text(text) => drop(serde_json::to_writer(out, text)),
        }
    }

    pub(super) fn to_label(&self) -> Label {
        let mut json = Vec::new();
        self.write(&mut json);
        // It is UTF-8: a number, or what the serializer writes.
        String::from_utf8(json).unwrap_or_default().into()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Identifier<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Value)
    }
}

struct Value;

impl Value {
    fn text<E: Error>(text: Cow<'_, str>) -> Result<Identifier<'_>, E> {
        if (1..=Identifier::MAX_TEXT).contains(&text.len()) {
            return Ok(Identifier::Text(text));
        }
        Err(E::invalid_length(text.len(), &Self))
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Identifier<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer from 0 to 2^53-1, or a string of 1 to 64 bytes")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        if number <= Identifier::MAX_NUMBER {
            return Ok(Identifier::Number(number));
        }
        Err(E::invalid_value(serde::de::Unexpected::Unsigned(number), &self))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Self::text(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Self::text(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_an_integer_or_a_short_text() {
        for (json, label) in [
            ("0", "0"),
            ("9007199254740991", "9007199254740991"),
            (r#""a""#, r#""a""#),
            (r#""\u0061\/\n""#, r#""a/\n""#),
            (r#""é""#, r#""é""#),
        ] {
            let identifier: Identifier<'_> = serde_json::from_str(json).unwrap();
            assert_eq!(&*identifier.to_label(), label);
        }
        let long = format!("\"{}\"", "x".repeat(65));
        for json in
            ["-1", "9007199254740992", "1.0", "1e3", "\"\"", &long, "null", "true", "[]", "{}"]
        {
            assert!(serde_json::from_str::<Identifier<'_>>(json).is_err(), "{json}");
        }
    }
}
