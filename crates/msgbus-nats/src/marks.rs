//! Marks: small messages in the stream by which nodes tell each other what NATS does not keep. The last message of a
//! subject counts. No topic has such a subject, because its "$" would be escaped.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    ErrorCode,
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
    stream::LastRawMessageErrorKind,
};
use msgbus_core::engine::EngineError;
use parking_lot::Mutex;
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
            text: String::from_utf8_lossy(&message.payload).into_owned(),
        })),
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            _ => Err(request_error(&error)),
        },
    }
}

/// Makes a mark in place of the one that was read. `None` if somebody else has made one meanwhile. The server may forget it
/// after `keep`; one that cannot, keeps it as long as messages.
pub(crate) async fn replace(
    connection: &Connection,
    known: &Known,
    subject: &str,
    before: Option<&Mark>,
    text: String,
    keep: Duration,
) -> Result<Option<Mark>, EngineError> {
    let before = before.map_or(0, |mark| mark.sequence);
    let mark = PublishMessage::build().payload(text.clone().into());
    let mut mark = mark.expected_last_subject_sequence(before);
    if known.forgets_marks() {
        mark = mark.ttl(keep.max(Duration::from_secs(1)));
    }
    let began = Instant::now();
    let made = match connection.context.send_publish(subject.to_owned(), mark).await {
        Ok(sent) => sent.await,
        Err(error) => Err(error),
    };
    match made {
        Ok(made) => Ok(Some(Mark { sequence: made.sequence, text })),
        Err(error) if is_other(&error) => Ok(None),
        Err(error) => {
            let error = publish_error(&error, connection.client.max_payload());
            Err(connection.refusals.explain(error, subject, began))
        }
    }
}

/// Removes the marks of a subject, which may have wildcards: those up to a sequence, or all.
pub(crate) async fn remove(
    known: &Known,
    subject: &str,
    last: Option<u64>,
) -> Result<(), EngineError> {
    let purge = known.stream.purge().filter(subject);
    let removed = match last {
        Some(last) => purge.sequence(last + 1).await,
        None => purge.await,
    };
    removed.map(drop).map_err(|error| request_error(&error))
}

/// Marks of leases that the server keeps although they are of no use any more, because it cannot forget them. They are
/// removed for each consumer, those of other nodes as well.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(Mutex<HashMap<String, Leftover>>);

#[derive(Debug, Clone, Copy)]
struct Leftover {
    /// When all marks up to `first` are of no use.
    due: Instant,
    first: u64,
    /// The last one.
    last: u64,
    /// How long one is of use.
    keep: Duration,
}

impl Leftovers {
    /// The maximum number of consumers whose marks are removed.
    const MAX: usize = 10_000;
    /// For how many they are removed at a time.
    const TOGETHER: usize = 100;

    /// Notes a mark of a consumer, which is of use for some time.
    pub(crate) fn note(&self, marks: String, sequence: u64, keep: Duration) {
        let mut leftovers = self.0.lock();
        if leftovers.len() >= Self::MAX && !leftovers.contains_key(&marks) {
            return;
        }
        let due = Instant::now() + keep;
        let new = Leftover { due, first: sequence, last: sequence, keep };
        let leftover = leftovers.entry(marks).or_insert(new);
        leftover.last = leftover.last.max(sequence);
    }

    /// Removes what is of no use, for some of the consumers. What cannot be removed now is removed with those that come later.
    pub(crate) async fn remove(&self, known: &Known) {
        let now = Instant::now();
        let mut due = Vec::new();
        self.0.lock().retain(|marks, leftover| {
            if leftover.due > now || due.len() >= Self::TOGETHER {
                return true;
            }
            due.push((marks.clone(), leftover.first));
            let is_last = leftover.first == leftover.last;
            (leftover.first, leftover.due) = (leftover.last, now + leftover.keep);
            !is_last
        });
        for (marks, last) in due {
            if remove(known, &marks, Some(last)).await.is_err() {
                return;
            }
        }
    }
}

/// Whether somebody else has made a mark.
fn is_other(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::WrongLastSequence
        || code(error) == Some(ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT.0)
}
