//! What somebody publishes, until it is answered.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    vec,
};

use async_nats::{HeaderMap, Subject, jetstream::publish::PublishAck};
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
    message::{self, Repeats, encode},
};

pub(crate) type Answer = Result<Receipt, EngineError>;

/// A message as it is sent.
pub(crate) type Encoded = (Option<HeaderMap>, Bytes);

#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) subject: Subject,
    /// Those that were not sent.
    pub(crate) messages: vec::IntoIter<Encoded>,
    /// Since when it, or what is left of it, waits.
    pub(crate) since: Instant,
    /// Where it is sent to, and the highest sequence that was known there before. `None` before something is sent.
    stream: Option<(Arc<Known>, u64)>,
    acknowledged: Option<Acknowledged>,
    /// Why some are not acknowledged.
    failure: Option<EngineError>,
    /// `None` when it is answered.
    answer: Option<oneshot::Sender<Answer>>,
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

impl Publish {
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
        let (answer, receiver) = oneshot::channel();
        let publish = Self {
            subject: subject.into(),
            messages: encoded.into_iter(),
            since: Instant::now(),
            stream: None,
            acknowledged: None,
            failure: None,
            answer: Some(answer),
            _permit: permit,
        };
        Ok((publish, receiver))
    }

    /// Some of it is sent to this stream.
    pub(crate) fn send_to(&mut self, known: &Arc<Known>) {
        match &self.stream {
            None => self.stream = Some((Arc::clone(known), known.highest.load(Relaxed))),
            // What was sent before is in another stream.
            Some((before, _)) if before.epoch != known.epoch => self.fail(EngineError::Unknown),
            Some(_) => {}
        }
    }

    /// What nobody knows of one message, nobody knows of all.
    pub(crate) fn fail(&mut self, error: EngineError) {
        if error == EngineError::Unknown || self.failure.is_none() {
            self.failure = Some(error);
        }
    }

    pub(crate) fn acknowledge(&mut self, ack: &PublishAck) {
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
    pub(crate) fn is_over(&self) -> bool {
        self.failure.is_some() || self.messages.len() == 0
    }

    pub(crate) fn finish(mut self, connection: &Connection) {
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
            connection.forget();
            return Err(EngineError::Unknown);
        }
        if known.connects != connection.connects() {
            // Nobody knows in which stream the messages are.
            return Err(EngineError::Unknown);
        }
        known.highest.fetch_max(last, Relaxed);
        Ok(Receipt { epoch: known.epoch, first, last })
    }

    fn error(&self, connection: &Connection) -> EngineError {
        match self.failure {
            Some(error) if self.acknowledged.is_none() => {
                if error == EngineError::Unavailable && self.stream.is_some() {
                    connection.forget();
                }
                connection.refusals.explain(error, &self.subject, self.since)
            }
            // Some of them are there.
            _ => EngineError::Unknown,
        }
    }
}

impl Drop for Publish {
    /// Answers when the runtime ends.
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            let error =
                if self.stream.is_some() { EngineError::Unknown } else { EngineError::Closed };
            let _ = answer.send(Err(error));
        }
    }
}
