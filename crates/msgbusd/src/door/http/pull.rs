//! `GET /<topic>`: pulls one message or several, with or without waiting, and peeks. docs/protocol.md, section 5.

use std::{future::poll_fn, mem, pin::pin, task::Poll, time::Duration};

use hyper::{Request, StatusCode};
use msgbus_core::{BatchLimit, Event, Peek, TopicName};
use tokio::time::sleep;

use super::{
    activity::ConnectionActivity,
    error::ApiError,
    head::shed_head,
    messages::{self, OCTETS},
    negotiate::accepts,
    position,
    query::Query,
    response,
    response::HttpResponse,
    response::empty,
    response::no_store,
};
use crate::{
    limits::inflight::Inflight,
    service::{
        Call,
        error::ServiceError,
        parameters::{MAX_BATCH, WAITS},
        pull::{QueuedPull, WaitingPull},
    },
    worker::Worker,
};

/// Parameters of other requests, and what they are for.
const NOT_OF_PULLS: [(&str, &str); 3] = [
    (
        "since",
        "only valid with ?group=, ?peek, ?stream= or a websocket; a pull always takes the oldest",
    ),
    ("lease", "only valid with ?group=; a pull without a group needs no ack"),
    ("stream", "not valid with ?max, ?wait or ?peek; a stream sends every message"),
];

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
    for (name, why) in NOT_OF_PULLS {
        if query.has(name) {
            return Err(ApiError::parameter(name, why));
        }
    }
    let query = query.only(&["raw", "max", "wait", "peek", "group", "stream"])?;
    let Wanted { limit, wait, raw, is_batch } = Wanted::of(request, &query)?;
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
            let events: Vec<_> = messages.into_iter().map(Event::from).collect();
            Box::pin(messages::events(call.worker, &events, false)).await
        }
        [message, ..] => messages::one(call.worker, message, raw),
    };
    no_store(&mut response);
    Ok(response)
}

/// The options that all pulls have.
pub(super) struct Wanted {
    pub(super) limit: BatchLimit,
    pub(super) wait: Option<Duration>,
    pub(super) raw: bool,
    /// Whether the response is JSON lines, even for a single message.
    pub(super) is_batch: bool,
}

impl Wanted {
    pub(super) fn of<B>(request: &Request<B>, query: &Query) -> Result<Self, ApiError> {
        let wait = query.duration("wait", WAITS)?;
        let max = query.count("max")?;
        let raw = is_raw(query, request, max)?;
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

/// Waits for messages. Returns none when the time is over, the topic is deleted, the server stops, the keys no longer
/// allow the pull, or the client closes its side. Then it has taken nothing. Once messages are taken, nothing but the
/// commit of the store ends it.
pub(super) async fn wait_for<P: QueuedPull>(
    worker: &Worker,
    activity: &ConnectionActivity,
    mut pull: WaitingPull<P>,
    timeout: Duration,
) -> Result<Vec<P::Item>, ServiceError> {
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
    let wanted = Wanted::of(request, &query)?;
    let small = Inflight::small(request.version());
    let reports_gaps = query.flag("gaps")?;
    let peek = call.peek(topic, from, wanted.limit, small).await?;
    peeked(call, topic, peek, &wanted, reports_gaps).await
}

/// The response with messages that were peeked at.
pub(super) async fn peeked(
    call: &Call<'_>,
    topic: &TopicName,
    peek: Option<Peek>,
    wanted: &Wanted,
    reports_gaps: bool,
) -> Result<HttpResponse, ApiError> {
    let peek = peek.ok_or_else(|| ApiError::Empty(topic.clone()))?;
    let (epoch, start) = (peek.epoch, peek.start);
    let Some(first) = peek.messages().next() else {
        return Err(ApiError::NothingFrom { topic: topic.clone(), epoch, start });
    };
    let mut response = if wanted.is_batch {
        Box::pin(messages::events(call.worker, &peek.events, reports_gaps)).await
    } else {
        messages::one(call.worker, first, wanted.raw)
    };
    response::set_position_headers(response.headers_mut(), epoch, start);
    no_store(&mut response);
    Ok(response)
}
