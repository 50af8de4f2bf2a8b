//! `PUT|POST /<topic>`: publishing. docs/protocol.md, section 4.

use std::{mem, time::Duration};

use bytes::Bytes;
use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{HeaderMap, HeaderName},
};
use msgbus_core::{NewMessage, PublishedBatch, TopicName, parse_duration};
use tokio::task::yield_now;

use super::{
    body::{self, Begun, BodyLimit},
    error::ApiError,
    head::{OfMessage, Outline},
    message_headers,
    names::{MSGBUS_EPOCH, MSGBUS_FIRST_ID, MSGBUS_ID, MSGBUS_LAST_ID, TTL},
    negotiate::find,
    query::Query,
    response,
    response::Answer,
    response::empty,
};
use crate::{
    limits::inflight::Inflight,
    service::{Call, error::ServiceError, publish::Publish},
    state::App,
};

/// How many lines are made messages before another request gets its turn.
const LINES_AT_ONCE: usize = 2048;

pub(super) async fn publish(
    call: &Call<'_>,
    topic: &TopicName,
    request: &mut Request<Incoming>,
    query: Query,
    outline: Outline,
) -> Result<Answer, ApiError> {
    let app: &App = call.worker;
    let (draft, split) = wanted(app, topic, request, &query, outline)?;
    // The payload may keep this waiting.
    drop(query);
    let limit = BodyLimit {
        size: app.config.max_payload,
        read_timeout: app.config.timeouts.body,
        small: Inflight::small(request.version()),
    };
    let publish = call.publish(topic)?;
    // Held until the bus has it or has refused it.
    let (payload, _in_flight) = match body::begin(request, limit)? {
        Begun::Whole(payload) => (payload, None),
        // Boxed, as all that is seldom: a request is moved about before it begins, and is not to be larger for it.
        Begun::Part(first) => Box::pin(body::read(request, first, limit, &app.inflight)).await?,
    };
    if split {
        let published = Box::pin(publish_lines(publish, payload, draft)).await?;
        let (first, last) = (published.ids.start, published.ids.end - 1);
        let ids = [(MSGBUS_FIRST_ID, first), (MSGBUS_LAST_ID, last)];
        return Ok(accepted(request, ids, published.epoch));
    }
    let published = publish.put(draft.payload(payload)).await?;
    Ok(accepted(request, [(MSGBUS_ID, published.id)], published.epoch))
}

/// Publishes a message for each line.
async fn publish_lines(
    publish: Publish<'_>,
    body: Bytes,
    draft: NewMessage,
) -> Result<PublishedBatch, ServiceError> {
    publish.admit_batch(lines(&body).count())?;
    publish.put_batch(split_lines(body, draft).await).await
}

/// The answer to a request whose headers are no longer needed: their map serves for those of the answer.
fn accepted<B, const N: usize>(
    request: &mut Request<B>,
    ids: [(HeaderName, u64); N],
    epoch: u64,
) -> Answer {
    let mut headers = mem::take(request.headers_mut());
    headers.clear();
    for (name, id) in ids {
        headers.insert(name, response::number(id));
    }
    headers.insert(MSGBUS_EPOCH, response::epoch(epoch));
    let mut answer = empty(StatusCode::ACCEPTED);
    *answer.headers_mut() = headers;
    answer
}

/// A message for each line. Other requests of the same thread get their turn in between.
async fn split_lines(body: Bytes, draft: NewMessage) -> Vec<NewMessage> {
    let mut drafts = Vec::new();
    for (number, line) in lines(&body).enumerate() {
        if number % LINES_AT_ONCE == LINES_AT_ONCE - 1 {
            yield_now().await;
        }
        // A slice of the body would keep all of it for as long as one line lives.
        drafts.push(draft.clone().payload(Bytes::copy_from_slice(line)));
    }
    drafts
}

/// Whether the body is many messages.
fn split(query: &Query) -> Result<bool, ApiError> {
    match query.get("split")? {
        None => Ok(false),
        Some("lines") => Ok(true),
        Some(_) => Err(ApiError::parameter("split", "use lines")),
    }
}

/// The lines of a body: the last line end adds none, and an empty line is one.
fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    body.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// A message as the request describes it, without its payload yet, and whether the body is many of them.
fn wanted<B>(
    app: &App,
    topic: &TopicName,
    request: &Request<B>,
    query: &Query,
    outline: Outline,
) -> Result<(NewMessage, bool), ApiError> {
    let describes_message = match outline.of_message {
        OfMessage::Nowhere => false,
        OfMessage::InSomeTopics => !app.config.keep_headers.is_empty(),
        OfMessage::Everywhere => true,
    };
    if query.is_empty() && !describes_message {
        return Ok((NewMessage::default(), false));
    }
    let headers = describes_message.then(|| request.headers());
    let mut draft = NewMessage::default();
    if let Some(ttl) = ttl(query, headers)? {
        draft = draft.ttl(ttl);
    }
    let split = split(query)?;
    if let Some(headers) = headers {
        draft = draft.headers(message_headers::read(app, topic, split, headers)?);
    }
    Ok((draft, split))
}

/// How long the message is to live, from the parameter or else the header (RFC 8030, section 5.2).
fn ttl(query: &Query, headers: Option<&HeaderMap>) -> Result<Option<Duration>, ApiError> {
    if let Some(text) = query.get("ttl")? {
        let ttl =
            parse_duration(text).map_err(|error| ApiError::parameter("ttl", error.to_string()))?;
        if ttl.is_zero() {
            return Err(ApiError::parameter("ttl", "must be longer than 0"));
        }
        return Ok(Some(ttl));
    }
    let Some(value) = headers.and_then(|headers| find(headers, &TTL)) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let seconds = digits.and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    let why = "use a whole number of seconds, 1 or more";
    seconds.map(|s| Some(Duration::from_secs(s))).ok_or(ApiError::Header { name: "TTL", why })
}
