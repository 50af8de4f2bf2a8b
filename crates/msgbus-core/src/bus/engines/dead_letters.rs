//! Dead letters of groups in engines. An engine only counts deliveries. Who gets a message that was delivered too often
//! publishes it as a dead letter instead of working on it.

use super::SharedEngine;
use crate::{
    bus::{
        map::TopicMap,
        timer::{self, DeadLetterError},
        topic_ref::TopicRef,
    },
    engine::LeaseKey,
    model::{GroupName, Headers, LeaseKey as Key, Message, NewMessage, Settlement, TopicName},
    topic::DeadLetter,
};

/// Whether a message is a dead letter. It does not become one again.
pub(super) fn is_one(message: &Message) -> bool {
    message.headers().get(DeadLetter::TOPIC).is_some()
}

/// Publishes a leased message as a dead letter, and acknowledges it.
pub(super) async fn bury(
    engine: &SharedEngine,
    map: &TopicMap,
    group: &GroupName,
    message: &Message,
    (deliveries, target): (u32, Option<TopicName>),
    key: LeaseKey,
) -> Result<(), DeadLetterError> {
    let dead = DeadLetter {
        group: 0,
        name: group.clone(),
        key: Key { id: message.id(), nonce: 0 },
        // The last time is not one: nobody works on it.
        deliveries: deliveries - 1,
        reason: None,
        topic: target,
    };
    let (target, letter) = timer::letter(message, &dead)?;
    let letter = with_own_key(letter, message, group);
    let published = TopicRef::new(map, &target, &mut None).publish(letter);
    published.await?;
    let topic = message.topic().name.clone();
    engine
        .settle(&topic, Some(group), vec![key], &Settlement::Ack)
        .await
        .map(drop)
        .map_err(DeadLetterError::from)
}

/// Gives a letter an idempotency key of its own. With that of its message, it would be taken for the letter of another
/// message of the same batch, or of another group. With its own, it is published once although several buses try.
fn with_own_key(letter: NewMessage, message: &Message, group: &GroupName) -> NewMessage {
    let (name, epoch) = (&message.topic().name, message.topic().epoch);
    let key = format!("dead-letter {epoch} {} {group} {name}", message.id());
    let (payload, _, headers) = letter.into_parts();
    let others = || headers.iter().filter(|(name, _)| !is_key(name));
    let headers = Headers::new(others().chain([(Headers::IDEMPOTENCY_KEY, key.trim())]));
    // If there is no room for the key, there is none.
    let headers = headers.or_else(|_| Headers::new(others())).unwrap_or_default();
    NewMessage::new(payload).headers(headers)
}

fn is_key(name: &str) -> bool {
    name.eq_ignore_ascii_case(Headers::IDEMPOTENCY_KEY)
}
