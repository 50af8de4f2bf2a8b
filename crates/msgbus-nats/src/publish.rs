//! Publishing messages.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use async_nats::Subject;
use msgbus_core::{
    NewMessage, TopicName,
    engine::{EngineError, Receipt},
};
use tokio::time::Instant;

use crate::{
    connection::Connection,
    message::{self, Repeats, encode},
    together::{Acknowledged, Encoded, Outcome},
};

/// How many messages of a batch are sent before their acknowledgements are awaited. If the connection breaks, those that
/// were on their way are lost, and others of the same slice may come after them.
const SLICE: usize = 256;

pub(crate) async fn publish(
    connection: Arc<Connection>,
    topic: TopicName,
    messages: Vec<NewMessage>,
) -> Result<Receipt, EngineError> {
    let known = connection.stream().await?;
    let subject = Subject::from(connection.subject(&topic));
    let highest = known.highest.load(Relaxed);
    let messages = encode_all(&connection, &subject, messages)?;
    let published = publish_all(&connection, &subject, messages).await?;
    let is_behind = published.first_new.is_some_and(|first| first <= highest);
    if is_behind {
        // The numbers have begun again: it is another stream.
        connection.forget();
    }
    if is_behind || !connection.is_same(&known).await {
        // Nobody knows in which stream the messages are.
        return Err(EngineError::Unknown);
    }
    let Acknowledged { first, last, .. } = published;
    known.highest.fetch_max(last, Relaxed);
    Ok(Receipt { epoch: known.epoch, first, last })
}

/// All messages as they are sent. Refuses what an older server would keep for longer than it should.
fn encode_all(
    connection: &Connection,
    subject: &str,
    messages: Vec<NewMessage>,
) -> Result<Vec<Encoded>, EngineError> {
    let mut repeats = Repeats::new();
    let encoded = messages.into_iter().map(|message| encode(message, subject, &mut repeats));
    let encoded: Vec<Encoded> = encoded.collect();
    let mut headers = encoded.iter().filter_map(|(headers, _)| headers.as_ref());
    let has_ttl = headers.any(|headers| headers.get(message::TTL).is_some());
    if has_ttl && !connection.is_at_least(2, 11) {
        let operation = "let single messages expire: it needs nats-server 2.11";
        return Err(EngineError::NotSupported { engine: "nats", operation });
    }
    Ok(encoded)
}

/// Publishes messages, slice by slice.
async fn publish_all(
    connection: &Connection,
    subject: &Subject,
    messages: Vec<Encoded>,
) -> Result<Acknowledged, EngineError> {
    let began = Instant::now();
    let (mut messages, mut outcome) = (messages.into_iter(), Outcome::default());
    while messages.len() > 0 && outcome.failure.is_none() {
        let slice = messages.by_ref().take(SLICE).collect();
        outcome.add(connection.together.publish(subject.clone(), slice).await);
    }
    match outcome {
        Outcome { failure: None, acknowledged } => acknowledged.ok_or(EngineError::Unknown),
        // Some of them are there.
        Outcome { acknowledged: Some(_), .. } => Err(EngineError::Unknown),
        Outcome { failure: Some(error), .. } => {
            if error == EngineError::Unavailable {
                connection.forget();
            }
            Err(connection.refusals.explain(error, subject, began))
        }
    }
}
