//! What somebody publishes, until it is answered.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    vec,
};

use async_nats::{
    HeaderMap, Message, StatusCode, Subject,
    jetstream::{publish::PublishAck, response::Response},
};
use bytes::Bytes;
use msgbus_core::{
    NewMessage, TopicName,
    engine::{EngineError, Receipt},
};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use crate::{
    connection::{Connection, Known},
    error::refusal,
    message::{self, Repeats, encode},
};

type Answer = Result<Receipt, EngineError>;

/// A message as it is sent.
pub(super) type Encoded = (Option<HeaderMap>, Bytes);

#[derive(Debug)]
pub(crate) struct Pending {
    pub(super) subject: Subject,
    /// Those that were not sent.
    pub(super) messages: vec::IntoIter<Encoded>,
    /// Since when it, or what is left of it, waits.
    pub(super) since: Instant,
    /// Where it is sent to, and the highest sequence that was known there before. `None` before something is sent.
    stream: Option<(Arc<Known>, u64)>,
    acknowledged: Option<Acknowledged>,
    /// Why some are not acknowledged.
    failure: Option<EngineError>,
    /// `None` when it is answered.
    answer: Option<oneshot::Sender<Answer>>,
    /// See [`Queue::hand_over`](super::queue::Queue::hand_over).
    pub(super) handed_over: Option<Arc<()>>,
    _permit: OwnedSemaphorePermit,
}

/// The sequences of messages that the stream has.
#[derive(Debug, Clone, Copy)]
struct Acknowledged {
    first: u64,
    last: u64,
    /// The first of those that were not there before.
    first_new: Option<u64>,
}

impl Pending {
    /// Refuses messages that an older server would keep for longer than it should.
    pub(crate) fn new(
        connection: &Connection,
        topic: &TopicName,
        messages: Vec<NewMessage>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(Self, oneshot::Receiver<Answer>), EngineError> {
        let (subject, mut repeats) = (connection.subject(topic), Repeats::new());
        let encoded = messages.into_iter().map(|message| encode(message, &subject, &mut repeats));
        let encoded: Vec<Encoded> = encoded.collect();
        let mut headers = encoded.iter().filter_map(|(headers, _)| headers.as_ref());
        let has_ttl = headers.any(|headers| headers.get(message::TTL).is_some());
        if has_ttl && !connection.is_at_least(2, 11) {
            let operation = "let single messages expire: it needs nats-server 2.11";
            return Err(EngineError::NotSupported { engine: "nats", operation });
        }
        Ok(Self::of(subject.into(), encoded, permit))
    }

    fn of(
        subject: Subject,
        messages: Vec<Encoded>,
        permit: OwnedSemaphorePermit,
    ) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        let publish = Self {
            subject,
            messages: messages.into_iter(),
            since: Instant::now(),
            stream: None,
            acknowledged: None,
            failure: None,
            answer: Some(answer),
            handed_over: None,
            _permit: permit,
        };
        (publish, receiver)
    }

    /// Some of it is about to be sent to this stream.
    pub(super) fn begin(&mut self, known: &Arc<Known>) {
        match &self.stream {
            None => self.stream = Some((Arc::clone(known), known.highest.load(Relaxed))),
            // What was sent before is in another stream.
            Some((before, _)) if before.epoch != known.epoch => self.fail(EngineError::Unknown),
            Some(_) => {}
        }
    }

    /// The next message to be sent.
    pub(super) fn next_message(&mut self) -> Option<Encoded> {
        if self.failure.is_some() { None } else { self.messages.next() }
    }

    /// What nobody knows of one message, nobody knows of all.
    pub(super) fn fail(&mut self, error: EngineError) {
        if error == EngineError::Unknown || self.failure.is_none() {
            self.failure = Some(error);
        }
    }

    /// Hears what has become of one of its messages.
    pub(super) fn hear(&mut self, message: &Message) {
        match acknowledgement(message) {
            Ok(ack) => self.acknowledge(&ack),
            Err(error) => self.fail(error),
        }
    }

    fn acknowledge(&mut self, ack: &PublishAck) {
        let sequence = ack.sequence;
        let new = (!ack.duplicate).then_some(sequence);
        self.acknowledged = Some(match self.acknowledged {
            None => Acknowledged { first: sequence, last: sequence, first_new: new },
            Some(Acknowledged { first, last, first_new }) => Acknowledged {
                first: first.min(sequence),
                last: last.max(sequence),
                first_new: first_new.into_iter().chain(new).min(),
            },
        });
    }

    /// Whether nothing of it is sent any more.
    pub(super) fn is_over(&self) -> bool {
        self.failure.is_some() || self.messages.len() == 0
    }

    /// The stream that did not answer there, if there was none.
    pub(super) fn lost_stream(&self) -> Option<&Arc<Known>> {
        let is_lost = self.failure == Some(EngineError::Unavailable) && self.acknowledged.is_none();
        self.stream.as_ref().filter(|_| is_lost).map(|(known, _)| known)
    }

    pub(super) fn finish(mut self, connection: &Connection) {
        let receipt = self.receipt(connection);
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(receipt);
        }
    }

    fn receipt(&self, connection: &Connection) -> Answer {
        let (Some(Acknowledged { first, last, first_new }), None) =
            (self.acknowledged, self.failure)
        else {
            return Err(self.error(connection));
        };
        let Some((known, highest)) = &self.stream else { return Err(EngineError::Unknown) };
        if first_new.is_some_and(|first| first <= *highest) {
            // The numbers have begun again: it is another stream.
            connection.forget(known);
            return Err(EngineError::Unknown);
        }
        known.highest.fetch_max(last, Relaxed);
        Ok(Receipt { epoch: known.epoch, first, last })
    }

    fn error(&self, connection: &Connection) -> EngineError {
        match self.failure {
            Some(error) if self.acknowledged.is_none() => {
                connection.refusals.explain(error, &self.subject, self.since)
            }
            // Some of them are there.
            _ => EngineError::Unknown,
        }
    }
}

impl Drop for Pending {
    /// Answers when the runtime ends.
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            let error =
                if self.stream.is_some() { EngineError::Unknown } else { EngineError::Closed };
            let _ = answer.send(Err(error));
        }
    }
}

/// What the stream has said of a message.
fn acknowledgement(message: &Message) -> Result<PublishAck, EngineError> {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(EngineError::Unavailable);
    }
    // A refusal has 0 instead of a sequence.
    let ack = serde_json::from_slice::<PublishAck>(&message.payload).ok();
    if let Some(ack) = ack.filter(|ack| ack.sequence > 0) {
        return Ok(ack);
    }
    match serde_json::from_slice::<Response<PublishAck>>(&message.payload) {
        Ok(Response::Err { error }) => Err(refusal(&error)),
        _ => Err(EngineError::Unknown),
    }
}

#[cfg(test)]
impl Pending {
    /// Messages of this size, for which nobody waits.
    pub(super) fn example(messages: usize, bytes: usize) -> Self {
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let message = (None, Bytes::from(vec![0; bytes]));
        Self::of("example".into(), vec![message; messages], permit).0
    }
}
