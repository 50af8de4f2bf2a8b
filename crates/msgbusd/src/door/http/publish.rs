//! `PUT|POST /<topic>`: publishes. docs/protocol.md, section 4.

use std::{mem, time::Duration};

use bytes::Bytes;
use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{HeaderMap, HeaderName},
};
use memchr::memchr_iter;
use msgbus_core::{NewMessage, PublishedBatch, TopicName, store::Durability};
use tokio::task::yield_now;

use super::{
    body::{self, Begun, BodyLimit},
    error::ApiError,
    head::{HeaderScope, Outline},
    message_headers,
    names::{MSGBUS_DURABILITY, MSGBUS_EPOCH, MSGBUS_FIRST_ID, MSGBUS_ID, MSGBUS_LAST_ID, TTL},
    negotiate::find,
    query::Query,
    response,
    response::HttpResponse,
    response::empty,
};
use crate::{
    limits::inflight::Inflight,
    service::{Call, error::ServiceError, parameters, publish::Publish},
    state::App,
};

/// The number of lines that are split before the task yields to other requests.
const LINES_AT_ONCE: usize = 2048;

pub(super) async fn publish(
    call: &Call<'_>,
    topic: &TopicName,
    request: &mut Request<Incoming>,
    query: Query,
    outline: Outline,
) -> Result<HttpResponse, ApiError> {
    let app: &App = call.worker;
    let (message, split) = wanted(app, topic, request, &query, outline)?;
    // The payload may take a while; the query is not needed any more.
    drop(query);
    let limit = BodyLimit {
        size: app.config.max_payload,
        read_timeout: app.config.timeouts.body,
        small: Inflight::small(request.version()),
    };
    let publish = call.publish(topic)?;
    // The permit is held until the bus has stored or refused the payload.
    let (payload, _in_flight) = match body::begin(request, limit)? {
        Begun::Whole(payload) => (payload, None),
        // Boxed, like everything that is rare: the future of a request is moved before it starts, and should be small.
        Begun::Part(first) => Box::pin(body::read(request, first, limit, &app.inflight)).await?,
    };
    if split {
        let published = Box::pin(publish_lines(publish, payload, message)).await?;
        let (first, last) = (published.ids.start, published.ids.end - 1);
        let ids = [(MSGBUS_FIRST_ID, first), (MSGBUS_LAST_ID, last)];
        return Ok(accepted(request, ids, published.epoch, published.durability));
    }
    let published = publish.put(message.payload(payload)).await?;
    let ids = [(MSGBUS_ID, published.id)];
    Ok(accepted(request, ids, published.epoch, published.durability))
}

/// Publishes a message for each line.
async fn publish_lines(
    publish: Publish<'_>,
    body: Bytes,
    message: NewMessage,
) -> Result<PublishedBatch, ServiceError> {
    let count = lines(&body).count();
    publish.admit_batch(count)?;
    publish.put_batch(split_lines(body, count, message).await).await
}

/// The response to a publish. It reuses the header map of the request, which is no longer needed.
fn accepted<B, const N: usize>(
    request: &mut Request<B>,
    ids: [(HeaderName, u64); N],
    epoch: u64,
    durability: Durability,
) -> HttpResponse {
    let mut headers = mem::take(request.headers_mut());
    headers.clear();
    for (name, id) in ids {
        headers.insert(name, response::number(id));
    }
    headers.insert(MSGBUS_EPOCH, response::epoch(epoch));
    headers.insert(MSGBUS_DURABILITY, response::durability(durability));
    let mut response = empty(StatusCode::ACCEPTED);
    *response.headers_mut() = headers;
    response
}

/// Creates a message for each line. It yields in between, so that other requests of the same thread make progress.
async fn split_lines(body: Bytes, count: usize, message: NewMessage) -> Vec<NewMessage> {
    let mut messages = Vec::with_capacity(count);
    for (number, line) in lines(&body).enumerate() {
        if number % LINES_AT_ONCE == LINES_AT_ONCE - 1 {
            yield_now().await;
        }
        // A slice would keep the whole body in memory as long as one of its lines.
        messages.push(message.clone().payload(Bytes::copy_from_slice(line)));
    }
    messages
}

/// Whether the body is split into messages.
fn split(query: &Query) -> Result<bool, ApiError> {
    match query.get("split")? {
        None => Ok(false),
        Some("lines") => Ok(true),
        Some(_) => Err(ApiError::parameter("split", "use lines")),
    }
}

/// The lines of a body. A line end at the end of the body adds no line; an empty line is a message.
fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    let mut start = 0;
    memchr_iter(b'\n', body).chain([body.len()]).map(move |end| {
        let line = &body[start..end];
        start = end + 1;
        line.strip_suffix(b"\r").unwrap_or(line)
    })
}

/// The message that the request describes, without its payload; and whether the body is split into messages.
fn wanted<B>(
    app: &App,
    topic: &TopicName,
    request: &Request<B>,
    query: &Query,
    outline: Outline,
) -> Result<(NewMessage, bool), ApiError> {
    let has_message_headers = match outline.header_scope {
        HeaderScope::None => false,
        HeaderScope::SomeTopics => !app.config.keep_headers.is_empty(),
        HeaderScope::AllTopics => true,
    };
    if query.is_empty() && !has_message_headers {
        return Ok((NewMessage::default(), false));
    }
    let headers = has_message_headers.then(|| request.headers());
    let mut message = NewMessage::default();
    if let Some(ttl) = ttl(query, headers)? {
        message = message.ttl(ttl);
    }
    let split = split(query)?;
    if let Some(headers) = headers {
        message = message.headers(message_headers::read(app, topic, split, headers)?);
    }
    Ok((message, split))
}

/// The TTL of the message, from the parameter or else from the header (RFC 8030, section 5.2).
fn ttl(query: &Query, headers: Option<&HeaderMap>) -> Result<Option<Duration>, ApiError> {
    if let Some(text) = query.get("ttl")? {
        return Ok(Some(parameters::ttl(text)?));
    }
    let Some(value) = headers.and_then(|headers| find(headers, &TTL)) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let seconds = digits.and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    let why = "use a whole number of seconds, 1 or more";
    seconds.map(|s| Some(Duration::from_secs(s))).ok_or(ApiError::Header { name: "TTL", why })
}
