//! Headers in the JSON of a message: an object from name to value. A repeated name has an array of its values.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap as _,
};

use crate::model::{HeaderError, Headers};

pub(super) struct HeadersObject<'a>(&'a Headers);

impl<'a> HeadersObject<'a> {
    /// `None` if there are no headers: then there is no field for them.
    pub(super) fn of(headers: &'a Headers) -> Option<Self> {
        (!headers.is_empty()).then_some(Self(headers))
    }
}

impl Serialize for HeadersObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let headers = self.0;
        let mut map = serializer.serialize_map(None)?;
        for (index, (name, value)) in headers.iter().enumerate() {
            let same = |other: &(&str, &str)| other.0 == name;
            if headers.iter().take(index).any(|other| same(&other)) {
                continue;
            }
            let values: Vec<_> = headers.iter().filter(same).map(|(_, value)| value).collect();
            match values[..] {
                [_] => map.serialize_entry(name, value)?,
                _ => map.serialize_entry(name, &values)?,
            }
        }
        map.end()
    }
}

/// About how many bytes the headers take in JSON.
pub(super) fn size_hint(headers: &Headers) -> usize {
    const FIELD: usize = r#","headers":{}"#.len();
    const QUOTES: usize = r#""":"","#.len();
    if headers.is_empty() {
        return 0;
    }
    headers.iter().map(|(name, value)| name.len() + value.len() + QUOTES).sum::<usize>() + FIELD
}

pub(super) struct HeadersIn<'a>(Vec<(Cow<'a, str>, Values<'a>)>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values<'a> {
    One(#[serde(borrow)] Cow<'a, str>),
    Many(#[serde(borrow)] Vec<Cow<'a, str>>),
}

impl HeadersIn<'_> {
    pub(super) fn into_headers(self) -> Result<Headers, HeaderError> {
        Headers::new(self.0.iter().flat_map(|(name, values)| {
            let values = match values {
                Values::One(value) => std::slice::from_ref(value),
                Values::Many(values) => values,
            };
            values.iter().map(move |value| (name, value))
        }))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for HeadersIn<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = HeadersIn<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of headers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut headers = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    headers.push(entry);
                }
                Ok(HeadersIn(headers))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
