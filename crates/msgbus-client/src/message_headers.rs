//! Converts between the headers of a message and those of HTTP. docs/protocol.md, 4.7 and 5.3.

use std::{borrow::Cow, str};

use hyper::{
    header::{HeaderMap, HeaderName},
    http::request::Builder,
};
use msgbus_core::{HeaderError, Headers};

const PREFIX: &str = "msgbus-header-";
/// The media type of responses whose payload has none.
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// The name of the HTTP header that carries a message header.
fn http_name(name: &str) -> Cow<'_, str> {
    let has_own_name = [
        Headers::CONTENT_TYPE,
        Headers::CONTENT_ENCODING,
        Headers::CORRELATION_ID,
        Headers::IDEMPOTENCY_KEY,
    ];
    let prefix = name.get(..Headers::CLOUD_EVENTS_PREFIX.len()).unwrap_or_default();
    if has_own_name.iter().any(|own| name.eq_ignore_ascii_case(own))
        || prefix.eq_ignore_ascii_case(Headers::CLOUD_EVENTS_PREFIX)
    {
        name.into()
    } else {
        format!("Msgbus-Header-{name}").into()
    }
}

/// Adds the headers of a message, or of a request to a service, to a request of HTTP: well-known ones by their own names,
/// and others as `Msgbus-Header-<Name>`.
pub fn write(headers: &Headers, mut request: Builder) -> Builder {
    for (name, value) in headers {
        request = request.header(&*http_name(name), value.as_bytes());
    }
    request
}

/// The headers of a message in a response. HTTP has lost the case of their names.
///
/// # Errors
/// They are too many or too large, or a value is not text.
pub(crate) fn read(response: &HeaderMap) -> Result<Headers, HeaderError> {
    let headers = response.iter().filter_map(|(name, value)| {
        let value = str::from_utf8(value.as_bytes()).ok()?;
        Some((message_name(name)?, value))
            .filter(|header| *header != (Headers::CONTENT_TYPE, UNKNOWN_TYPE))
    });
    Headers::new(headers)
}

/// The name of the message header in an HTTP header, if it has one.
fn message_name(name: &HeaderName) -> Option<&str> {
    let name = name.as_str();
    name.strip_prefix(PREFIX).or_else(|| (http_name(name) == name).then_some(name))
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let headers = [("content-type", "text/plain"), ("ce-id", "7"), ("tag", "a"), ("tag", "ö")];
        let headers = Headers::new(headers).unwrap();
        let request = write(&headers, Request::builder()).body(()).unwrap();
        assert_eq!(request.headers().get_all("msgbus-header-tag").iter().count(), 2);
        assert_eq!(read(request.headers()), Ok(headers));
    }

    #[test]
    fn other_headers_of_http_are_not_those_of_a_message() {
        let response = Request::builder()
            .header("Date", "today")
            .header("Content-Length", "7")
            .header("Content-Type", UNKNOWN_TYPE)
            .body(())
            .unwrap();
        assert_eq!(read(response.headers()), Ok(Headers::default()));
    }
}
