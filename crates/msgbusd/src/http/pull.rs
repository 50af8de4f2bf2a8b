//! `GET /<topic>`: pulling, waiting for it, several at a time, and only looking. docs/protocol.md,
//! section 5.

use std::{future::poll_fn, mem, sync::Arc, task::Poll, time::Duration};

use hyper::{
    Request, StatusCode,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use msgbus_core::{BatchLimit, Event, Message, TopicName, format_duration, json, parse_duration};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::{select, task::yield_now, time::sleep};
use tracing::debug;

use super::{
    Answer, App, accepts, answers, content, empty,
    error::Refusal,
    names, no_store, position, query,
    query::Query,
    room::{self, Patience},
    shed_head,
};
use crate::{inflight::Inflight, keys::Permit, peer::Peer, socket::Conversation, worker::Worker};

/// What a header value cannot have, and the escape itself.
const HEADER_ESCAPES: &AsciiSet = &CONTROLS.add(b'%').add(b' ');
const OCTETS: &str = "application/octet-stream";
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The most messages, and bytes of payload, in one answer.
const MOST: BatchLimit = BatchLimit { events: 10_000, bytes: 8 << 20 };

/// How much of an answer is made before another request gets its turn, in bytes.
const BYTES_AT_ONCE: usize = 256 << 10;

/// Whether a parameter says that this is a pull, whatever the client accepts.
pub(super) fn is_wanted(query: &Query<'_>) -> bool {
    ["max", "wait", "peek"].into_iter().any(|name| query.has(name))
}

pub(super) async fn pull<B>(
    app: &Arc<Worker>,
    peer: Peer,
    conversation: &Conversation,
    topic: &TopicName,
    request: &mut Request<B>,
    permit: Permit,
) -> Result<Answer, Refusal> {
    let Wanted { limit, wait, raw, is_batch } = Wanted::of(request)?;
    let small = Inflight::small(request.version());
    let messages = match wait {
        // Even for what is there it queues: others may have waited longer.
        Some(patience) => {
            shed_head(request);
            // Boxed, so that no other request is larger for it.
            Box::pin(wait_for(app, conversation, topic, limit, small, patience, permit)).await?
        }
        None => {
            let room =
                room::find(app, topic, None, limit, small).ok_or(Refusal::TooMuchInFlight)?;
            app.bus.get_batch(topic, room)
        }
    };
    if messages.is_empty() && wait.is_none() {
        return Err(Refusal::Empty(topic.clone()));
    }
    for message in &messages {
        debug!(%peer, %topic, id = message.id(), "GET");
    }
    let mut answer = match &messages[..] {
        [] => empty(StatusCode::NO_CONTENT),
        _ if is_batch => {
            let events: Vec<_> = messages.into_iter().map(Event::Message).collect();
            Box::pin(lines(app, &events, false)).await
        }
        [message, ..] if raw => payload(app, message),
        [message, ..] => object(app, message),
    };
    no_store(&mut answer);
    Ok(answer)
}

/// What a pull asks for.
struct Wanted {
    limit: BatchLimit,
    wait: Option<Duration>,
    raw: bool,
    /// Whether the answer is lines of JSON, however many.
    is_batch: bool,
}

impl Wanted {
    fn of<B>(request: &Request<B>) -> Result<Self, Refusal> {
        let query = query(request);
        if query.has("since") {
            let why =
                "only valid with ?peek, ?stream= or a websocket; a pull always takes the oldest";
            return Err(Refusal::parameter("since", why));
        }
        let query = query.only(&["raw", "max", "wait", "peek"])?;
        let wait = wait(&query)?;
        let max = query.count("max")?;
        let raw = is_raw(&query, request, max)?;
        let limit = BatchLimit { events: max.unwrap_or(1).min(MOST.events), ..MOST };
        Ok(Self { limit, wait, raw, is_batch: max.is_some() })
    }
}

/// Whether the payload itself is wanted.
fn is_raw<B>(query: &Query<'_>, request: &Request<B>, max: Option<usize>) -> Result<bool, Refusal> {
    let raw = query.flag("raw")?;
    if raw && max.is_some() {
        return Err(Refusal::parameter("raw", "one payload is given at a time; leave max out"));
    }
    Ok(raw || (max.is_none() && accepts(request.headers(), OCTETS)))
}

fn wait(query: &Query<'_>) -> Result<Option<Duration>, Refusal> {
    let Some(text) = query.get("wait")? else { return Ok(None) };
    match parse_duration(text) {
        Ok(wait) if !wait.is_zero() && wait <= LONGEST_WAIT => Ok(Some(wait)),
        Ok(_) => {
            let why = format!("use more than 0, and at most {}", format_duration(LONGEST_WAIT));
            Err(Refusal::parameter("wait", why))
        }
        Err(error) => Err(Refusal::parameter("wait", error.to_string())),
    }
}

/// Waits for messages; none, when the time is over, the topic is deleted, the server stops, the keys no
/// longer allow it or the client closes its side. What it waited for is for the next one then.
async fn wait_for(
    app: &Worker,
    conversation: &Conversation,
    topic: &TopicName,
    limit: BatchLimit,
    small: usize,
    patience: Duration,
    mut permit: Permit,
) -> Result<Vec<Message>, Refusal> {
    let mut pull = app.bus.pull_wait(topic, limit)?;
    let mut room = Patience::default();
    let mut waits = false;
    let pull = poll_fn(|cx| {
        if permit.poll_revoked(cx).is_ready() {
            return Poll::Ready(Ok(Vec::new()));
        }
        // What is there it gets, as without waiting; what comes is for somebody who is there.
        if waits && conversation.poll_peer_left(cx).is_ready() {
            return Poll::Ready(Ok(Vec::new()));
        }
        if room.poll_pull(cx, app, &pull, limit, small).is_ready()
            // The keys may be read again at any time, and a message come right after it.
            && let Poll::Ready(pulled) = pull.poll_allowed(cx, || permit.holds())
        {
            return Poll::Ready(pulled);
        }
        if !mem::replace(&mut waits, true) {
            return conversation.poll_peer_left(cx).map(|()| Ok(Vec::new()));
        }
        Poll::Pending
    });
    Ok(select! {
        biased;
        () = app.tasks.drain.cancelled() => Vec::new(),
        pulled = pull => pulled.unwrap_or_default(),
        () = sleep(patience) => Vec::new(),
    })
}

/// Shows what would be pulled, or what there is from a position on.
pub(super) async fn peek<B>(
    app: &App,
    topic: &TopicName,
    request: &Request<B>,
) -> Result<Answer, Refusal> {
    let query = query(request).only(&["peek", "raw", "since", "max", "gaps"])?;
    let from = position::requested(&query, request.headers())?;
    let max = query.count("max")?;
    let raw = is_raw(&query, request, max)?;
    let limit = BatchLimit { events: max.unwrap_or(1).min(MOST.events), ..MOST };
    let small = Inflight::small(request.version());
    let limit = room::find(app, topic, from, limit, small).ok_or(Refusal::TooMuchInFlight)?;
    let reports_gaps = query.flag("gaps")?;
    let peek = app.bus.peek(topic, from, limit).ok_or_else(|| Refusal::Empty(topic.clone()))?;
    let (epoch, start) = (peek.epoch, peek.start);
    let Some(first) = peek.messages().next() else {
        return Err(Refusal::NothingFrom { topic: topic.clone(), epoch, start });
    };
    let mut answer = match max {
        Some(_) => Box::pin(lines(app, &peek.events, reports_gaps)).await,
        None if raw => payload(app, first),
        None => object(app, first),
    };
    answers::tell_start(answer.headers_mut(), epoch, start);
    no_store(&mut answer);
    Ok(answer)
}

fn object(app: &App, message: &Message) -> Answer {
    let mut body = Vec::with_capacity(json::size_hint(message));
    json::write_message(&mut body, message);
    content(app, "application/json", body)
}

/// Other requests of the same thread get their turn between parts of it.
async fn lines(app: &App, events: &[Event], reports_gaps: bool) -> Answer {
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
                    body.extend_from_slice(answers::gap(*count, *next_id).as_bytes());
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

fn payload(app: &App, message: &Message) -> Answer {
    let mut answer = content(app, OCTETS, message.payload().clone());
    let headers = answer.headers_mut();
    if let Some(codings) = message.content_encoding() {
        set(headers, header::CONTENT_ENCODING, codings);
    }
    if let Some(media_type) = message.content_type() {
        set(headers, header::CONTENT_TYPE, media_type);
        // Whoever may publish is not to run scripts as this server.
        set(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(headers, header::CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'");
    }
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
    answer
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // What came in a header, or was escaped for one, fits in one.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
