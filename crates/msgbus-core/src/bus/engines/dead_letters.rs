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
    model::{GroupName, LeaseKey as Key, Message, Settlement},
    topic::DeadLetter,
};

/// Whether a message is a dead letter. It does not become one again.
pub(super) fn is_one(message: &Message) -> bool {
    message.headers().get(DeadLetter::TOPIC).is_some()
}

/// Publishes a leased message as a dead letter, and acknowledges it. If that fails, the lease ends by time, and whoever gets
/// the message next tries again.
pub(super) async fn bury(
    engine: &SharedEngine,
    map: &TopicMap,
    group: &GroupName,
    message: &Message,
    deliveries: u32,
    key: LeaseKey,
) -> Result<(), DeadLetterError> {
    let dead = DeadLetter {
        group: 0,
        name: group.clone(),
        key: Key { id: message.id(), nonce: 0 },
        // The last time is not one: nobody works on it.
        deliveries: deliveries - 1,
        reason: None,
        topic: None,
    };
    let (target, letter) = timer::letter(message, &dead)?;
    let published = TopicRef::new(map, &target, &mut None).publish(letter);
    published.await?;
    let topic = message.topic().name.clone();
    engine
        .settle(&topic, Some(group), vec![key], &Settlement::Ack)
        .await
        .map(drop)
        .map_err(DeadLetterError::from)
}
