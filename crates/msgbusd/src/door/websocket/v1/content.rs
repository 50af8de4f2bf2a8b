//! The payload and the headers that an operation carries.

use std::cell::RefCell;

use bytes::Bytes;
use msgbus_core::{Headers, json};
use serde_json::value::RawValue;

use super::{
    operation::{Field, Text},
    output::Output,
    refusal::Refusal,
};
use crate::{dialogue, limits::inflight::Inflight, service::parameters::BadParameter};

/// The size of encoded content that is not copied, in bytes.
const LARGE: usize = 16 << 10;

thread_local! {
    /// The headers of a payload that was sent as JSON.
    static JSON: RefCell<Headers> =
        RefCell::new(Headers::new([(Headers::CONTENT_TYPE, MEDIA_TYPE)]).unwrap_or_default());
}

const MEDIA_TYPE: &str = "application/json";

/// The fields of an operation that describe a payload and its headers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content<'f> {
    text: Option<&'f str>,
    json: Option<&'f RawValue>,
    base64: Option<&'f str>,
    headers: Option<&'f RawValue>,
}

impl<'f> Content<'f> {
    pub(super) fn of(
        text: &'f Field<Text<'_>>,
        json: &'f Field<&RawValue>,
        base64: &'f Field<Text<'_>>,
        headers: &'f Field<&RawValue>,
    ) -> Self {
        let (json, headers) = (json.get().copied(), headers.get().copied());
        Self { text: text.text(), json, base64: base64.text(), headers }
    }

    /// Whether there is any of them.
    pub(super) fn is_given(&self) -> bool {
        let Self { text, json, base64, headers } = self;
        text.is_some() || json.is_some() || base64.is_some() || headers.is_some()
    }

    /// The payload, of at most `limit` bytes. Empty if there is none.
    pub(super) fn payload(&self, limit: usize) -> Result<Bytes, Refusal> {
        let given = [self.text.is_some(), self.json.is_some(), self.base64.is_some()];
        if given.into_iter().filter(|is_given| *is_given).count() > 1 {
            return Err(Refusal::Exclusive("text, json and base64"));
        }
        let bytes = if let Some(text) = self.base64 {
            let decoded = json::read_base64(text);
            decoded
                .map_err(|_| {
                    let why = "not base64: use the standard alphabet, with padding";
                    BadParameter::new("base64", why)
                })?
                .into()
        } else {
            let text = self.text.or(self.json.map(RawValue::get)).unwrap_or_default();
            if text.len() > limit {
                return Err(dialogue::Refusal::PayloadTooLarge { limit }.into());
            }
            Bytes::copy_from_slice(text.as_bytes())
        };
        if bytes.len() > limit {
            return Err(dialogue::Refusal::PayloadTooLarge { limit }.into());
        }
        Ok(bytes)
    }

    /// The headers; `None` if there are none.
    pub(super) fn headers(&self) -> Result<Option<Headers>, Refusal> {
        let is_json = self.json.is_some();
        let Some(given) = self.headers else {
            return Ok(is_json.then(|| JSON.with_borrow(Clone::clone)));
        };
        let headers = json::read_headers(given.get()).map_err(|error| match error {
            json::JsonError::Header(error) => Refusal::from(error),
            _ => {
                let why = "use an object from names to strings or arrays of strings";
                BadParameter::new("headers", why).into()
            }
        })?;
        if is_json && headers.content_type().is_none() {
            return Ok(Some(headers.with(Headers::CONTENT_TYPE, MEDIA_TYPE)?));
        }
        Ok(Some(headers))
    }
}

/// Writes what has about this size, in bytes. If it is large, it counts as in flight until it is written.
pub(super) fn write_json(
    output: &mut Output,
    inflight: &Inflight,
    size: usize,
    write: impl FnOnce(&mut Vec<u8>),
) {
    if size < LARGE {
        return write(output.text());
    }
    let mut out = Vec::with_capacity(size);
    write(&mut out);
    output.push(inflight.track_response(out.into()));
}
