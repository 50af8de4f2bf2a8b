//! `GET /<topic>`: pulls one message or several, with or without waiting, and peeks. docs/protocol.md, section 5.

use std::{future::poll_fn, mem, pin::pin, task::Poll, time::Duration};

use hyper::{
    Request, StatusCode,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use msgbus_core::{BatchLimit, Event, Message, TopicName, format_duration, json, parse_duration};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::{task::yield_now, time::sleep};

use super::{
    activity::ConnectionActivity, error::ApiError, head::shed_head, message_headers, names,
    negotiate::accepts, position, query::Query, response, response::HttpResponse,
    response::content, response::empty, response::no_store,
};
use crate::{
    encode::events,
    limits::inflight::Inflight,
    service::{Call, error::ServiceError, pull::WaitingPull},
    state::App,
    worker::Worker,
};

/// The characters of a topic name that are escaped in a header value.
const HEADER_ESCAPES: &AsciiSet = &CONTROLS.add(b'%').add(b' ');
const OCTETS: &str = "application/octet-stream";
const MAX_WAIT: Duration = Duration::from_secs(60);
/// The maximum number of messages, and of bytes of payload, in one response.
const MAX_BATCH: BatchLimit = BatchLimit { events: 10_000, bytes: 8 << 20 };

/// The number of bytes that are encoded before the task yields to other requests.
const BYTES_AT_ONCE: usize = 256 << 10;

/// Whether a parameter makes this a pull, whatever media types the client accepts.
pub(super) fn is_wanted(query: &Query) -> bool {
    ["max", "wait", "peek"].into_iter().any(|name| query.has(name))
}

pub(super) async fn pull<B>(
    call: &Call<'_>,
    activity: &ConnectionActivity,
    topic: &TopicName,
    request: &mut Request<B>,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let Wanted { limit, wait, raw, is_batch } = Wanted::of(request, query)?;
    let small = Inflight::small(request.version());
    let messages = match wait {
        Some(timeout) => {
            shed_head(request);
            let pull = call.pull_wait(topic, limit, small)?;
            // Boxed, so that other requests need less memory.
            Box::pin(wait_for(call.worker, activity, pull, timeout)).await?
        }
        None => call.pull(topic, limit, small).await?,
    };
    if messages.is_empty() && wait.is_none() {
        return Err(ApiError::Empty(topic.clone()));
    }
    let mut response = match &messages[..] {
        [] => empty(StatusCode::NO_CONTENT),
        _ if is_batch => {
            let events: Vec<_> = messages.into_iter().map(Event::Message).collect();
            Box::pin(lines(call.worker, &events, false)).await
        }
        [message, ..] if raw => payload(call.worker, message),
        [message, ..] => object(call.worker, message),
    };
    no_store(&mut response);
    Ok(response)
}

/// The options of a pull.
struct Wanted {
    limit: BatchLimit,
    wait: Option<Duration>,
    raw: bool,
    /// Whether the response is JSON lines, even for a single message.
    is_batch: bool,
}

impl Wanted {
    fn of<B>(request: &Request<B>, query: Query) -> Result<Self, ApiError> {
        if query.has("since") {
            let why =
                "only valid with ?peek, ?stream= or a websocket; a pull always takes the oldest";
            return Err(ApiError::parameter("since", why));
        }
        let query = query.only(&["raw", "max", "wait", "peek"])?;
        let wait = wait(&query)?;
        let max = query.count("max")?;
        let raw = is_raw(&query, request, max)?;
        let limit = BatchLimit { events: max.unwrap_or(1).min(MAX_BATCH.events), ..MAX_BATCH };
        Ok(Self { limit, wait, raw, is_batch: max.is_some() })
    }
}

/// Whether the client wants the raw payload.
fn is_raw<B>(query: &Query, request: &Request<B>, max: Option<usize>) -> Result<bool, ApiError> {
    let raw = query.flag("raw")?;
    if raw && max.is_some() {
        return Err(ApiError::parameter("raw", "a raw response has one payload; leave max out"));
    }
    Ok(raw || (max.is_none() && accepts(request.headers(), OCTETS)))
}

fn wait(query: &Query) -> Result<Option<Duration>, ApiError> {
    let Some(text) = query.get("wait")? else { return Ok(None) };
    match parse_duration(text) {
        Ok(wait) if !wait.is_zero() && wait <= MAX_WAIT => Ok(Some(wait)),
        Ok(_) => {
            let why = format!("use more than 0, and at most {}", format_duration(MAX_WAIT));
            Err(ApiError::parameter("wait", why))
        }
        Err(error) => Err(ApiError::parameter("wait", error.to_string())),
    }
}

/// Waits for messages. Returns none when the time is over, the topic is deleted, the server stops, the keys no longer
/// allow the pull, or the client closes its side. Then it has taken nothing. Once messages are taken, nothing but the
/// commit of the store ends it.
async fn wait_for(
    worker: &Worker,
    activity: &ConnectionActivity,
    mut pull: WaitingPull<'_>,
    timeout: Duration,
) -> Result<Vec<Message>, ServiceError> {
    let mut waits = false;
    let mut timed_out = pin!(sleep(timeout));
    poll_fn(|cx| {
        let nothing = |()| Ok(Vec::new());
        if !pull.is_committing() {
            // The first poll may take messages even if the client has closed its side, like a pull that does not wait.
            // Later ones only take messages for a client that is still connected.
            let has_left = waits && activity.poll_peer_left(cx).is_ready();
            if has_left || worker.tasks.stop.is_draining() {
                return Poll::Ready(nothing(()));
            }
        }
        let pulled = pull.poll(cx);
        if pulled.is_ready() || pull.is_committing() {
            return pulled;
        }
        if !mem::replace(&mut waits, true) && activity.poll_peer_left(cx).is_ready() {
            return Poll::Ready(nothing(()));
        }
        timed_out.as_mut().poll(cx).map(nothing)
    })
    .await
}

/// Returns the messages that would be pulled next, or those after a position, without taking them.
pub(super) async fn peek<B>(
    call: &Call<'_>,
    topic: &TopicName,
    request: &Request<B>,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let query = query.only(&["peek", "raw", "since", "max", "gaps"])?;
    let from = position::requested(&query, request.headers())?;
    let max = query.count("max")?;
    let raw = is_raw(&query, request, max)?;
    let limit = BatchLimit { events: max.unwrap_or(1).min(MAX_BATCH.events), ..MAX_BATCH };
    let small = Inflight::small(request.version());
    let reports_gaps = query.flag("gaps")?;
    let peek = call.peek(topic, from, limit, small).await?;
    let peek = peek.ok_or_else(|| ApiError::Empty(topic.clone()))?;
    let (epoch, start) = (peek.epoch, peek.start);
    let Some(first) = peek.messages().next() else {
        return Err(ApiError::NothingFrom { topic: topic.clone(), epoch, start });
    };
    let mut response = match max {
        Some(_) => Box::pin(lines(call.worker, &peek.events, reports_gaps)).await,
        None if raw => payload(call.worker, first),
        None => object(call.worker, first),
    };
    response::set_position_headers(response.headers_mut(), epoch, start);
    no_store(&mut response);
    Ok(response)
}

fn object(app: &App, message: &Message) -> HttpResponse {
    let mut body = Vec::with_capacity(json::size_hint(message));
    json::write_message(&mut body, message);
    content(app, "application/json", body)
}

/// Encodes JSON lines. It yields in between, so that other requests of the same thread make progress.
async fn lines(app: &App, events: &[Event], reports_gaps: bool) -> HttpResponse {
    let size = |event: &Event| match event {
        Event::Message(message) => json::size_hint(message),
        Event::Missed { .. } => 0,
    };
    let mut body = Vec::with_capacity(events.iter().map(size).sum());
    let mut part = 0;
    for event in events {
        let message = match event {
            Event::Message(message) => message,
            Event::Missed { count, next_id } => {
                if reports_gaps {
                    body.extend_from_slice(events::gap(*count, *next_id).as_bytes());
                }
                continue;
            }
        };
        if body.len() - part >= BYTES_AT_ONCE {
            part = body.len();
            yield_now().await;
        }
        json::write_message(&mut body, message);
        body.push(b'\n');
    }
    content(app, "application/x-ndjson", body)
}

fn payload(app: &App, message: &Message) -> HttpResponse {
    let mut response = content(app, OCTETS, message.payload().clone());
    let headers = response.headers_mut();
    if let Some(codings) = message.content_encoding() {
        set(headers, header::CONTENT_ENCODING, codings);
    }
    if let Some(media_type) = message.content_type() {
        set(headers, header::CONTENT_TYPE, media_type);
        // A publisher must not be able to run scripts in the origin of this server.
        set(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(headers, header::CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'");
    }
    message_headers::write(message.headers(), headers);
    let name = utf8_percent_encode(message.topic().name.as_str(), HEADER_ESCAPES).to_string();
    for (header, value) in [
        (names::MSGBUS_TOPIC, name),
        (names::MSGBUS_ID, message.id().to_string()),
        (names::MSGBUS_EPOCH, message.topic().epoch.to_string()),
        (names::MSGBUS_CREATED, json::format_time(message.created())),
    ] {
        set(headers, header, &value);
    }
    if let Some(expires) = message.expires() {
        set(headers, names::MSGBUS_EXPIRES, &json::format_time(expires));
    }
    response
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // It cannot fail: the value came in a header, or was escaped for one.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
