//! `PUT|POST /<topic>`: publishing. docs/protocol.md, section 4.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use msgbus_core::{Draft, TopicName, parse_duration};
use tracing::debug;

use super::{
    Answer, App,
    body::{self, BodyLimit},
    empty,
    error::Refusal,
    query,
};

const MSGBUS_ID: HeaderName = HeaderName::from_static("msgbus-id");
const MSGBUS_EPOCH: HeaderName = HeaderName::from_static("msgbus-epoch");
const TTL: HeaderName = HeaderName::from_static("ttl");
/// The longest media type that is kept with a message, in bytes.
const LONGEST_CONTENT_TYPE: usize = 255;

pub(super) async fn publish(
    app: &Arc<App>,
    peer: SocketAddr,
    topic: &TopicName,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let ttl = ttl(&request)?;
    let content_type = content_type(request.headers());
    let limit = BodyLimit { size: app.config.max_payload, patience: app.config.timeouts.body };
    let payload = body::read(request.into_body(), limit).await?;

    let size = payload.len();
    let mut draft = Draft::new(payload);
    if let Some(ttl) = ttl {
        draft = draft.ttl(ttl);
    }
    if let Some(media_type) = content_type {
        draft = draft.content_type(media_type);
    }
    let published = app.bus.put(topic, draft)?;
    debug!(%peer, %topic, id = published.id, bytes = size, "PUT");

    let mut answer = empty(StatusCode::ACCEPTED);
    let headers = answer.headers_mut();
    headers.insert(MSGBUS_ID, HeaderValue::from(published.id));
    headers.insert(MSGBUS_EPOCH, HeaderValue::from(published.epoch));
    Ok(answer)
}

/// How long the message is to live, from the parameter or else the header (RFC 8030, section 5.2).
fn ttl<B>(request: &Request<B>) -> Result<Option<Duration>, Refusal> {
    if let Some(text) = query(request).get("ttl")? {
        let ttl = parse_duration(text)?;
        if ttl.is_zero() {
            let why = "must be longer than 0".to_owned();
            return Err(Refusal::Parameter { name: "ttl", why });
        }
        return Ok(Some(ttl));
    }
    let Some(value) = request.headers().get(TTL) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let seconds = digits.and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    let why = "use a whole number of seconds, 1 or more";
    seconds.map(|s| Some(Duration::from_secs(s))).ok_or(Refusal::Header { name: "TTL", why })
}

/// What the payload is, unless it is only what curl says of any data.
fn content_type(headers: &HeaderMap) -> Option<Box<str>> {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .filter(|text| text.len() <= LONGEST_CONTENT_TYPE)
        .filter(|text| *text != "application/x-www-form-urlencoded")
        .map(Box::from)
}
