//! Publishing messages.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use async_nats::{HeaderMap, jetstream::publish::PublishAck};
use bytes::Bytes;
use futures_util::future::join_all;
use msgbus_core::{
    NewMessage, TopicName,
    engine::{EngineError, Receipt},
};
use tokio::time::{Instant, timeout};

use crate::{
    connection::Connection,
    error::publish_error,
    message::{self, Repeats, encode},
};

/// How many messages of a batch are sent before their acknowledgements are awaited. If the connection breaks, those that
/// were on their way are lost, and others of the same slice may come after them.
const SLICE: usize = 256;

type Encoded = (Option<HeaderMap>, Bytes);

pub(crate) async fn publish(
    connection: Arc<Connection>,
    topic: TopicName,
    messages: Vec<NewMessage>,
) -> Result<Receipt, EngineError> {
    let known = connection.stream().await?;
    let subject = connection.subject(&topic);
    let highest = known.highest.load(Relaxed);
    let messages = encode_all(&connection, &subject, messages)?;
    let mut messages = messages.into_iter();
    let (mut ids, mut is_behind): (Option<(u64, u64)>, bool) = (None, false);
    loop {
        let slice: Vec<Encoded> = messages.by_ref().take(SLICE).collect();
        if slice.is_empty() {
            break;
        }
        let (acks, failure) = publish_slice(&connection, &subject, slice).await;
        for PublishAck { sequence, duplicate, .. } in acks {
            is_behind |= !duplicate && sequence <= highest;
            let (first, last) = ids.unwrap_or((sequence, sequence));
            ids = Some((first.min(sequence), last.max(sequence)));
        }
        match failure {
            None => {}
            // Those before it are there.
            Some(_) if ids.is_some() => return Err(EngineError::Unknown),
            Some(error) => {
                if error == EngineError::Unavailable {
                    connection.forget().await;
                }
                return Err(error);
            }
        }
    }
    let (first, last) = ids.ok_or(EngineError::Unknown)?;
    if is_behind {
        // The numbers have begun again: it is another stream.
        connection.forget().await;
    }
    if is_behind || !connection.is_same(&known).await {
        // Nobody knows in which stream the messages are.
        return Err(EngineError::Unknown);
    }
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

/// Publishes messages. Returns the acknowledgements, and the first failure.
async fn publish_slice(
    connection: &Connection,
    subject: &str,
    slice: Vec<Encoded>,
) -> (Vec<PublishAck>, Option<EngineError>) {
    // At once for all of them, so that no two calls wait for each other.
    let count = u32::try_from(slice.len()).unwrap_or(u32::MAX);
    let permits = connection.unacknowledged.acquire_many(count);
    let Ok(Ok(_permits)) = timeout(connection.options.timeout, permits).await else {
        return (Vec::new(), Some(EngineError::Busy));
    };
    let max_payload = connection.client.max_payload();
    let began = Instant::now();
    let (mut waiting, mut failures) = (Vec::with_capacity(slice.len()), Vec::new());
    for (headers, payload) in slice {
        let headers = headers.unwrap_or_default();
        let sent = connection.context.publish_with_headers(subject.to_owned(), headers, payload);
        match sent.await {
            Ok(ack) => waiting.push(ack.into_future()),
            Err(error) => {
                failures.push(publish_error(&error, max_payload));
                break;
            }
        }
    }
    let mut acks = Vec::with_capacity(waiting.len());
    for ack in join_all(waiting).await {
        match ack {
            Ok(ack) => acks.push(ack),
            Err(error) => failures.push(publish_error(&error, max_payload)),
        }
    }
    // What nobody knows of one message, nobody knows of the batch.
    let unknown = failures.iter().find(|error| **error == EngineError::Unknown);
    let failure = unknown.or(failures.first()).copied();
    (acks, failure.map(|error| connection.refusals.explain(error, subject, began)))
}
