//! `pub`: publishes a message.

use std::cell::RefCell;

use bytes::Bytes;
use msgbus_core::{Headers, NewMessage, TopicName, json};

use super::{
    answer::Answer,
    operation::Publish,
    operations::{Begun, Operations},
    refusal::Refusal,
};
use crate::service::{
    parameters::{self, BadParameter},
    publisher::{Publisher, Publishing},
};

thread_local! {
    /// The headers of a payload that was sent as JSON.
    static JSON: RefCell<Headers> =
        RefCell::new(Headers::new([(Headers::CONTENT_TYPE, MEDIA_TYPE)]).unwrap_or_default());
}

const MEDIA_TYPE: &str = "application/json";

/// The topics that a client has published to, the latest first.
#[derive(Debug, Default)]
pub(super) struct Publishers(Vec<Publisher>);

impl Publishers {
    /// How many are remembered. Each keeps its topic in memory, even if it was deleted.
    const MAX: usize = 8;

    fn find(
        &mut self,
        topic: &str,
        make: impl FnOnce(&TopicName) -> Publisher,
    ) -> Result<&mut Publisher, Refusal> {
        let known = self.0.iter().position(|known| known.topic().as_str() == topic);
        match known {
            Some(0) => {}
            Some(index) => self.0.swap(0, index),
            None => {
                let publisher = make(&TopicName::new(topic)?);
                self.0.truncate(Self::MAX - 1);
                self.0.push(publisher);
                let last = self.0.len() - 1;
                self.0.swap(0, last);
            }
        }
        Ok(&mut self.0[0])
    }
}

impl Operations {
    pub(super) fn publish(&mut self, fields: &Publish<'_>) -> Result<Begun, Refusal> {
        let message = message(fields, self.client.worker.config.max_payload)?;
        let call = self.client.call();
        let topic = fields.topic.needed_text("topic")?;
        let publisher = self.publishers.find(topic, |topic| call.publisher(topic))?;
        self.has_published = true;
        Ok(match call.publish_to(publisher, message)? {
            Publishing::Done(published) => Begun::Done(Answer::Published(published)),
            Publishing::Committing(commit) => {
                Begun::Waits(Box::pin(async move { Ok(Answer::Published(commit.await?)) }))
            }
        })
    }
}

/// The message that the fields describe.
fn message(fields: &Publish<'_>, limit: usize) -> Result<NewMessage, Refusal> {
    let mut message = NewMessage::new(payload(fields, limit)?);
    if let Some(ttl) = fields.ttl.text() {
        message = message.ttl(parameters::ttl(ttl)?);
    }
    if let Some(headers) = headers(fields)? {
        message = message.headers(headers);
    }
    Ok(message)
}

fn payload(fields: &Publish<'_>, limit: usize) -> Result<Bytes, Refusal> {
    let given =
        [fields.text.get().is_some(), fields.json.get().is_some(), fields.base64.get().is_some()];
    if given.into_iter().filter(|is_given| *is_given).count() > 1 {
        return Err(Refusal::Exclusive("text, json and base64"));
    }
    let bytes = if let Some(text) = fields.base64.text() {
        let decoded = json::read_base64(text);
        decoded
            .map_err(|_| {
                BadParameter::new("base64", "not base64: use the standard alphabet, with padding")
            })?
            .into()
    } else {
        let text = fields.text.text().or(fields.json.get().map(|json| json.get()));
        let text = text.unwrap_or_default();
        if text.len() > limit {
            return Err(Refusal::PayloadTooLarge { limit });
        }
        Bytes::copy_from_slice(text.as_bytes())
    };
    if bytes.len() > limit {
        return Err(Refusal::PayloadTooLarge { limit });
    }
    Ok(bytes)
}

/// The headers of the message; `None` if it has none.
fn headers(fields: &Publish<'_>) -> Result<Option<Headers>, Refusal> {
    let is_json = fields.json.get().is_some();
    let Some(given) = fields.headers.get() else {
        return Ok(is_json.then(|| JSON.with_borrow(Clone::clone)));
    };
    let headers = json::read_headers(given.get()).map_err(|error| match error {
        json::JsonError::Header(error) => Refusal::Headers(error),
        _ => {
            BadParameter::new("headers", "use an object from names to strings or arrays of strings")
                .into()
        }
    })?;
    if is_json && headers.content_type().is_none() {
        return Ok(Some(headers.with(Headers::CONTENT_TYPE, MEDIA_TYPE)?));
    }
    Ok(Some(headers))
}
