//! Messages as the body of a response: JSON, JSON lines, or the payload itself. docs/protocol.md, sections 3 and 5.

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use msgbus_core::{Event, Headers, Message, json};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::task::yield_now;

use super::{message_headers, names, response::HttpResponse, response::content};
use crate::{encode::events, state::App};

/// The characters of a topic name that are escaped in a header value.
const HEADER_ESCAPES: &AsciiSet = &CONTROLS.add(b'%').add(b' ');
pub(super) const OCTETS: &str = "application/octet-stream";

/// The number of bytes that are encoded before the task yields to other requests.
const BYTES_AT_ONCE: usize = 256 << 10;

/// One message, as JSON or as its payload.
pub(super) fn one(app: &App, message: &Message, raw: bool) -> HttpResponse {
    if raw {
        return payload(app, message);
    }
    let mut body = Vec::with_capacity(json::size_hint(message));
    json::write_message(&mut body, message);
    content(app, "application/json", body)
}

/// Messages and, if wanted, the gaps between them as JSON lines.
pub(super) async fn events(app: &App, events: &[Event], reports_gaps: bool) -> HttpResponse {
    let size = |event: &Event| match event {
        Event::Message { message, .. } => json::size_hint(message) + 1,
        Event::Missed { .. } => 0,
    };
    let write = |body: &mut Vec<u8>, event: &Event| match event {
        Event::Message { message, .. } => {
            json::write_message(body, message);
            body.push(b'\n');
        }
        Event::Missed { count, next_id } if reports_gaps => {
            body.extend_from_slice(events::gap(*count, *next_id).as_bytes());
        }
        Event::Missed { .. } => {}
    };
    lines(app, events, size, write).await
}

/// Encodes JSON lines, whose sizes are estimated by `size`. It yields in between, so that other requests of the same
/// thread make progress.
pub(super) async fn lines<T>(
    app: &App,
    items: &[T],
    size: impl Fn(&T) -> usize,
    mut write: impl FnMut(&mut Vec<u8>, &T),
) -> HttpResponse {
    let mut body = Vec::with_capacity(items.iter().map(size).sum());
    let mut part = 0;
    for item in items {
        if body.len() - part >= BYTES_AT_ONCE {
            part = body.len();
            yield_now().await;
        }
        write(&mut body, item);
    }
    content(app, "application/x-ndjson", body)
}

/// A payload as the body, with the headers that came with it.
pub(super) fn body(app: &App, payload: &Bytes, kept: &Headers) -> HttpResponse {
    let mut response = content(app, OCTETS, payload.clone());
    let headers = response.headers_mut();
    if let Some(codings) = kept.content_encoding() {
        set(headers, header::CONTENT_ENCODING, codings);
    }
    if let Some(media_type) = kept.content_type() {
        set(headers, header::CONTENT_TYPE, media_type);
        // A publisher must not be able to run scripts in the origin of this server.
        set(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(headers, header::CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'");
    }
    message_headers::write(kept, headers);
    response
}

fn payload(app: &App, message: &Message) -> HttpResponse {
    let mut response = body(app, message.payload(), message.headers());
    let headers = response.headers_mut();
    let name = utf8_percent_encode(message.topic().name.as_str(), HEADER_ESCAPES).to_string();
    for (header, value) in [
        (names::MSGBUS_TOPIC, name),
        (names::MSGBUS_ID, message.id().to_string()),
        (names::MSGBUS_EPOCH, message.topic().epoch.to_string()),
        (names::MSGBUS_CREATED, json::format_time(message.created())),
    ] {
        set(headers, header, value);
    }
    if let Some(expires) = message.expires() {
        set(headers, names::MSGBUS_EXPIRES, json::format_time(expires));
    }
    response
}

pub(super) fn set<T>(headers: &mut HeaderMap, name: HeaderName, value: T)
where
    HeaderValue: TryFrom<T>,
{
    // It cannot fail: the value came in a header, or was escaped for one.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}
