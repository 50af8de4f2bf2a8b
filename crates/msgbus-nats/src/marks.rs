//! Marks: small messages in the stream by which nodes tell each other what NATS does not keep. The last message of a
//! subject counts. No topic has such a subject, because its "$" would be escaped.

use std::time::Duration;

use async_nats::jetstream::{
    ErrorCode,
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
    stream::LastRawMessageErrorKind,
};
use chrono::{DateTime, Utc};
use msgbus_core::engine::EngineError;
use tokio::time::Instant;

use crate::{
    connection::{Connection, Known},
    error::{code, publish_error, request_error},
};

/// A mark as it was read.
#[derive(Debug)]
pub(crate) struct Mark {
    /// Its sequence.
    pub(crate) sequence: u64,
    /// When it was made.
    pub(crate) at: DateTime<Utc>,
    pub(crate) text: String,
}

/// The subject of a mark.
pub(crate) fn subject(connection: &Connection, kind: &str, name: &str) -> String {
    format!("{}.${kind}.{name}", connection.options.prefix)
}

/// Reads a mark, as the leader of the stream has it.
pub(crate) async fn read(known: &Known, subject: &str) -> Result<Option<Mark>, EngineError> {
    match known.stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some(Mark {
            sequence: message.sequence,
            at: message.time,
            text: String::from_utf8_lossy(&message.payload).into_owned(),
        })),
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            _ => Err(request_error(&error)),
        },
    }
}

/// Makes a mark in place of the one that was read. Returns `false` if somebody else has made one meanwhile. The server may
/// forget it after `keep`; one that cannot, keeps it as long as messages.
pub(crate) async fn replace(
    connection: &Connection,
    known: &Known,
    subject: &str,
    before: Option<&Mark>,
    text: String,
    keep: Duration,
) -> Result<bool, EngineError> {
    let before = before.map_or(0, |mark| mark.sequence);
    let mark = PublishMessage::build().payload(text.into());
    let mut mark = mark.expected_last_subject_sequence(before);
    if known.stream.cached_info().config.allow_message_ttl {
        mark = mark.ttl(keep.max(Duration::from_secs(1)));
    }
    let began = Instant::now();
    let made = match connection.context.send_publish(subject.to_owned(), mark).await {
        Ok(sent) => sent.await,
        Err(error) => Err(error),
    };
    match made {
        Ok(_) => Ok(true),
        Err(error) if is_other(&error) => Ok(false),
        Err(error) => {
            let error = publish_error(&error, connection.client.max_payload());
            Err(connection.refusals.explain(error, subject, began))
        }
    }
}

/// Whether somebody else has made a mark.
fn is_other(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::WrongLastSequence
        || code(error) == Some(ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT.0)
}
