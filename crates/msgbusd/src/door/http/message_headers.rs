//! Converts between the headers of a message and those of HTTP. docs/protocol.md, 4.7.

use std::str;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use msgbus_core::{Headers, TopicName};

use super::{error::ApiError, negotiate::find};
use crate::state::App;

/// The prefix of headers that are not kept by their own name.
const PREFIX: &str = "msgbus-header-";
/// The longest `Content-Type` and `Content-Encoding` that is kept, in bytes.
const MAX_CONTENT_VALUE: usize = 255;

/// Whether a header of this name, in lower case, goes with a message whatever the topic. `Content-Type` and
/// `Content-Encoding` do, too.
pub(super) fn is_kept(name: &str) -> bool {
    name.starts_with(PREFIX) || has_own_name(name)
}

fn has_own_name(name: &str) -> bool {
    name.starts_with(Headers::CLOUD_EVENTS_PREFIX)
        || matches!(name, Headers::CORRELATION_ID | Headers::IDEMPOTENCY_KEY)
}

/// The headers of a request that are kept with its message.
pub(super) fn read(
    app: &App,
    topic: &TopicName,
    split: bool,
    request: &HeaderMap,
) -> Result<Headers, ApiError> {
    let coding = content_encoding(request)?;
    if coding.is_some() && split {
        return Err(ApiError::EncodedLines);
    }
    let media_type = content_type(request).map(|value| (Headers::CONTENT_TYPE, value));
    let coding = coding.as_deref().map(|value| (Headers::CONTENT_ENCODING, value));
    let mut headers: Vec<_> = media_type.into_iter().chain(coding).collect();
    let patterns = app.config.keep_headers.of(topic);
    for (name, value) in request {
        let name = name.as_str();
        let kept = match name.strip_prefix(PREFIX) {
            Some(Headers::CONTENT_TYPE | Headers::CONTENT_ENCODING) => {
                let why = "use Content-Type or Content-Encoding itself";
                return Err(ApiError::Header { name: "Msgbus-Header-Content-…", why });
            }
            Some(name) => name,
            None if has_own_name(name) => name,
            None if patterns.iter().any(|pattern| pattern.matches(name)) => name,
            None => continue,
        };
        let value = str::from_utf8(value.as_bytes()).map_err(|_| ApiError::NotText)?;
        headers.push((kept, value));
    }
    Ok(Headers::new(headers)?)
}

/// Adds the headers of a message to a response. Only the well-known ones get their own names: a publisher must not be
/// able to set arbitrary headers of the server's responses.
pub(super) fn write(headers: &Headers, response: &mut HeaderMap) {
    for (name, value) in headers {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let name = if is(Headers::CONTENT_TYPE) || is(Headers::CONTENT_ENCODING) {
            // The caller has set the first of them, and there is one of each.
            continue;
        } else if has_own_name(&name.to_ascii_lowercase()) {
            HeaderName::from_bytes(name.as_bytes())
        } else {
            HeaderName::from_bytes(format!("{PREFIX}{name}").as_bytes())
        };
        // Names are tokens, and values have no control characters.
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            response.append(name, value);
        }
    }
}

/// The media type of the payload, except the one that curl sends by default.
fn content_type(headers: &HeaderMap) -> Option<&str> {
    find(headers, &header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .filter(|text| !text.is_empty() && text.len() <= MAX_CONTENT_VALUE)
        .filter(|text| *text != "application/x-www-form-urlencoded")
}

/// The codings of the payload, which is kept encoded. Codings that cannot be kept are refused, because the payload could
/// not be decoded without them.
fn content_encoding(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    if find(headers, &header::CONTENT_ENCODING).is_none() {
        return Ok(None);
    }
    let values = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::to_str);
    let bad = |why| ApiError::Header { name: "Content-Encoding", why };
    // Several lines are one list (RFC 9110, section 5.3).
    let codings: Result<Vec<_>, _> = values.collect();
    let codings = codings.map_err(|_| bad("use names of codings, such as gzip"))?.join(", ");
    if codings.len() > MAX_CONTENT_VALUE {
        return Err(bad("at most 255 bytes can be kept"));
    }
    let is_none = codings.is_empty() || codings.eq_ignore_ascii_case("identity");
    Ok(Some(codings).filter(|_| !is_none))
}
