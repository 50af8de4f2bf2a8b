//! `GET /<topic>`: pulling the next message. docs/protocol.md, section 5.

use std::{net::SocketAddr, sync::Arc};

use hyper::{
    Request,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use msgbus_core::{Message, TopicName, json};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tracing::debug;

use super::{Answer, App, accepts, content, error::Refusal, no_store, query};

/// What a header value cannot have, and the escape itself.
const HEADER_ESCAPES: &AsciiSet = &CONTROLS.add(b'%');
const OCTETS: &str = "application/octet-stream";

pub(super) fn pull<B>(
    app: &Arc<App>,
    peer: SocketAddr,
    topic: &TopicName,
    request: &Request<B>,
) -> Result<Answer, Refusal> {
    let raw = query(request).only(&["raw"])?.flag("raw")?;
    let headers = request.headers();
    let raw = raw || accepts(headers, OCTETS);

    let message = app.bus.get(topic).ok_or_else(|| Refusal::Empty(topic.clone()))?;
    debug!(%peer, %topic, id = message.id(), "GET");
    let mut answer = if raw { payload(&message) } else { object(&message) };
    no_store(&mut answer);
    Ok(answer)
}

fn object(message: &Message) -> Answer {
    let mut body = Vec::with_capacity(json::size_hint(message));
    json::write_message(&mut body, message);
    content("application/json", body)
}

fn payload(message: &Message) -> Answer {
    let mut answer = content(OCTETS, message.payload().clone());
    let headers = answer.headers_mut();
    if let Some(media_type) = message.content_type() {
        set(headers, header::CONTENT_TYPE, media_type);
        // Whoever may publish is not to run scripts as this server.
        set(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(headers, header::CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'");
    }
    let name = utf8_percent_encode(message.topic().name.as_str(), HEADER_ESCAPES).to_string();
    for (header, value) in [
        ("msgbus-topic", name),
        ("msgbus-id", message.id().to_string()),
        ("msgbus-epoch", message.topic().epoch.to_string()),
        ("msgbus-created", json::format_time(message.created())),
    ] {
        set(headers, HeaderName::from_static(header), &value);
    }
    if let Some(expires) = message.expires() {
        set(headers, HeaderName::from_static("msgbus-expires"), &json::format_time(expires));
    }
    answer
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // What came in a header, or was escaped for one, fits in one.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
