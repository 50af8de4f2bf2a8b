//! Reading the past of a topic, and whether something of it is gone.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, pull},
    message::StreamMessage,
    stream::{Info, RawMessageError, RawMessageErrorKind},
};
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use msgbus_core::{
    BatchLimit, TopicName,
    engine::{Begin, EngineError, EngineMessage, Page, Skipped},
    store::RecoveredMessage,
};
use tokio::time::timeout;

use crate::{
    connection::{Connection, Known},
    error::request_error,
    message::decode,
};

/// The maximum size of the messages that are asked for at once, in bytes. The server does not accept any number.
pub(crate) const MAX_BYTES: usize = 64 << 20;

/// How long the server may keep a request for messages that it has counted. It does not always say at once that they have been
/// removed meanwhile.
const EXPIRES: Duration = Duration::from_secs(1);

/// The consumer of a reader, which the server removes when it is not used.
pub(crate) fn reader(subject: String, from: Begin) -> pull::Config {
    pull::Config {
        filter_subject: subject,
        deliver_policy: policy(from),
        ack_policy: AckPolicy::None,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: Duration::from_secs(30),
        ..pull::Config::default()
    }
}

pub(crate) fn policy(from: Begin) -> DeliverPolicy {
    match from {
        Begin::First | Begin::Sequence(0) => DeliverPolicy::All,
        Begin::Next => DeliverPolicy::New,
        Begin::Sequence(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
        Begin::Time(start_time) => DeliverPolicy::ByStartTime { start_time },
    }
}

/// A message that was delivered, and how many there are after it.
pub(crate) fn delivered(
    message: &jetstream::Message,
    max_age: Option<Duration>,
) -> Result<(RecoveredMessage, u64), EngineError> {
    let info = message.info().map_err(|_| EngineError::Unavailable)?;
    let (headers, payload) = (message.headers.as_ref(), message.payload.clone());
    let kept = decode(info.stream_sequence, info.published, headers, payload, max_age);
    Ok((kept, info.pending))
}

/// Whether a message is the next one that the server has sent to a new consumer, after this number of messages. If the
/// connection breaks, what was on its way is lost, and the server goes on after that.
pub(crate) fn is_next(message: &jetstream::Message, before: u64) -> bool {
    message.info().is_ok_and(|info| info.consumer_sequence == before + 1)
}

/// Reads messages. Also returns how many there were at first. With each comes how many were after it.
pub(crate) async fn read(
    connection: &Connection,
    known: &Arc<Known>,
    subject: String,
    from: Begin,
    limit: BatchLimit,
) -> Result<(u64, Vec<(RecoveredMessage, u64)>), EngineError> {
    let failed = |error: &(dyn std::error::Error + 'static)| request_error(error);
    let consumer = known.stream.create_consumer(reader(subject, from)).await;
    let consumer = consumer.map_err(|error| failed(&error))?;
    let mut pending = consumer.cached_info().num_pending;
    let mut messages = Vec::new();
    if pending > 0 {
        let most = limit.events.clamp(1, 1000);
        // At least one message has room.
        let max_bytes = limit.bytes.min(MAX_BYTES).max(connection.max_message());
        let batch = consumer.fetch().max_messages(most).max_bytes(max_bytes).expires(EXPIRES);
        let mut batch = batch.messages().await.map_err(|error| failed(&error))?;
        let mut bytes = 0;
        // The request, or what was sent, is lost if the connection breaks.
        let time = connection.options.timeout.min(5 * EXPIRES);
        // An error is the end of what has room, or a failure: then the page is short.
        let has_ended = loop {
            let next = timeout(time, batch.next()).await;
            let Ok(Some(Ok(message))) = next else { break matches!(next, Ok(None)) };
            if !is_next(&message, messages.len() as u64) {
                break false;
            }
            bytes += message.payload.len();
            messages.push(delivered(&message, known.max_age)?);
            if bytes >= limit.bytes.max(1) {
                break false;
            }
        };
        if messages.is_empty() && has_ended {
            // Those that were counted have expired, or the server has counted wrong.
            pending = 0;
        } else if messages.is_empty() {
            // There were some, and none has come.
            return Err(EngineError::Unavailable);
        }
    }
    let (known, name) = (Arc::clone(known), consumer.cached_info().name.clone());
    // Nothing depends on it: the server removes it by itself later.
    tokio::spawn(async move { drop(known.stream.delete_consumer(&name).await) });
    Ok((pending, messages))
}

pub(crate) async fn page(
    connection: Arc<Connection>,
    topic: TopicName,
    from: Begin,
    limit: BatchLimit,
) -> Result<Page, EngineError> {
    // Before the messages are read: what comes later is not behind it.
    let (known, info) = connection.state().await?;
    let (epoch, end) = (known.epoch, info.state.last_sequence + 1);
    if from == Begin::Next || matches!(from, Begin::Sequence(id) if id > end) {
        return Ok(Page { epoch, messages: Vec::new(), next: end, skipped: Some(0) });
    }
    let subject = connection.subject(&topic);
    let (pending, mut read) = read(&connection, &known, subject.clone(), from, limit).await?;
    let has_more = (read.len() as u64) < pending;
    let overlooked = match next_id(&read, from) {
        Some(after) if !has_more && after < end => first_from(&known, &subject, after).await?,
        _ => None,
    };
    let overlooked = overlooked.filter(|first| first.sequence < end);
    let is_short = has_more || overlooked.is_some();
    if read.is_empty()
        && let Some(StreamMessage { sequence, time, headers, payload, .. }) = overlooked
    {
        read.push((decode(sequence, time, Some(&headers), payload, known.max_age), 0));
    }
    if !connection.is_same(&known).await {
        return Err(EngineError::Unavailable);
    }
    let ids: Vec<u64> = read.iter().map(|(message, _)| message.id).collect();
    let wanted = match from {
        Begin::Sequence(wanted) => Some(wanted),
        _ => None,
    };
    let gaps = gaps(&connection, epoch, &subject, wanted, &ids, end).await?;
    let next = ids.last().map_or(end, |last| if is_short { last + 1 } else { end.max(last + 1) });
    let messages = read.into_iter().enumerate().map(|(index, (message, _))| {
        let skipped = if index == 0 { gaps.before } else { gaps.between };
        let is_next = index > 0 && ids[index - 1] + 1 == message.id;
        EngineMessage { message, skipped: if is_next { Some(0) } else { skipped } }
    });
    let messages: Vec<_> = messages.collect();
    let skipped = if messages.is_empty() { gaps.before } else { Some(0) };
    Ok(Page { epoch, messages, next, skipped })
}

/// The lowest id that a message after these may have. `None` if that is not known.
fn next_id(read: &[(RecoveredMessage, u64)], from: Begin) -> Option<u64> {
    match (read.last(), from) {
        (Some((last, _)), _) => Some(last.id + 1),
        (None, Begin::Sequence(wanted)) => Some(wanted),
        (None, Begin::First) => Some(1),
        (None, Begin::Next | Begin::Time(_)) => None,
    }
}

/// What is gone before the first message of a page, and between its messages where their ids are not consecutive.
struct Gaps {
    before: Skipped,
    between: Skipped,
}

/// Finds out, after messages were read, whether others were removed before they could be read. Messages of a topic are
/// removed oldest first: none is gone after one that is still there.
async fn gaps(
    connection: &Connection,
    epoch: u64,
    subject: &str,
    wanted: Option<u64>,
    ids: &[u64],
    end: u64,
) -> Result<Gaps, EngineError> {
    let none = Gaps { before: Some(0), between: Some(0) };
    let is_first = match (wanted, ids.first()) {
        (None, _) => true,
        (Some(wanted), Some(first)) => wanted == *first,
        (Some(wanted), None) => wanted >= end,
    };
    let is_dense = ids.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    if is_first && is_dense {
        return Ok(none);
    }
    let (known, info) = connection.state().await?;
    if known.epoch != epoch {
        return Err(EngineError::Unavailable);
    }
    if let Some(wanted) = wanted
        && is_complete(&known, &info, subject, wanted).await?
    {
        return Ok(none);
    }
    let before = is_first.then_some(0);
    let between = match ids.first() {
        Some(first) if !is_dense => is_there(&known, subject, *first).await?.then_some(0),
        _ => Some(0),
    };
    Ok(Gaps { before, between })
}

/// Whether no message of a topic is gone from this sequence on. Messages are removed oldest first, so that is certain
/// if the one before is still there, or if the stream has no holes.
pub(crate) async fn is_complete(
    known: &Known,
    info: &Info,
    subject: &str,
    from: u64,
) -> Result<bool, EngineError> {
    let state = &info.state;
    if from > state.last_sequence
        || (state.first_sequence <= from.max(1) && state.deleted_count.unwrap_or(0) == 0)
    {
        return Ok(true);
    }
    if from <= 1 {
        return Ok(false);
    }
    is_there(known, subject, from - 1).await
}

/// Whether a message of a topic is still there.
pub(crate) async fn is_there(known: &Known, subject: &str, id: u64) -> Result<bool, EngineError> {
    Ok(raw(known, id).await?.is_some_and(|message| message.subject.as_str() == subject))
}

/// What has the number of a message that there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// The message.
    Same,
    /// Another message: the server has lost its last messages, and gives their numbers again.
    Another,
    /// None.
    Gone,
}

/// Looks for a message that was published at a time.
pub(crate) async fn find_again(
    known: &Known,
    subject: &str,
    (id, published): (u64, DateTime<Utc>),
) -> Result<Found, EngineError> {
    Ok(match raw(known, id).await? {
        None => Found::Gone,
        Some(found) if found.subject.as_str() == subject && found.time == published => Found::Same,
        Some(_) => Found::Another,
    })
}

async fn raw(known: &Known, id: u64) -> Result<Option<StreamMessage>, EngineError> {
    found(known.stream.get_raw_message(id).await)
}

/// The first message of a topic from a sequence on, as the leader of the stream knows it. The server of a consumer may be
/// behind it: that a consumer has no more does not mean that there are none.
async fn first_from(
    known: &Known,
    subject: &str,
    from: u64,
) -> Result<Option<StreamMessage>, EngineError> {
    found(known.stream.get_first_raw_message_by_subject(subject, from).await)
}

fn found(
    answer: Result<StreamMessage, RawMessageError>,
) -> Result<Option<StreamMessage>, EngineError> {
    match answer {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(request_error(&error)),
    }
}

/// Whether a topic has messages.
pub(crate) async fn has_messages(known: &Known, subject: &str) -> Result<bool, EngineError> {
    Ok(last_message(known, subject).await?.is_some())
}

/// The last message of a topic: its sequence, and when it was published.
pub(crate) async fn last_message(
    known: &Known,
    subject: &str,
) -> Result<Option<(u64, DateTime<Utc>)>, EngineError> {
    match known.stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some((message.sequence, message.time))),
        Err(error) => match error.kind() {
            jetstream::stream::LastRawMessageErrorKind::NoMessageFound => Ok(None),
            _ => Err(request_error(&error)),
        },
    }
}
