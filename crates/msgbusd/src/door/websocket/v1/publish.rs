//! `pub`: publishes a message.

use msgbus_core::{NewMessage, TopicName};

use super::{
    answer::Answer,
    content::Content,
    operation::Publish,
    operations::{Begun, Operations},
    refusal::Refusal,
};
use crate::service::{parameters, publisher::Publishing};

impl Operations {
    pub(super) fn publish(&mut self, fields: &Publish<'_>) -> Result<Begun, Refusal> {
        let message = message(fields, self.client.worker.config.max_payload)?;
        let call = self.client.call();
        let topic = fields.topic.needed_text("topic")?;
        let publisher = self
            .publishers
            .find(topic, || Ok::<_, Refusal>(call.publisher(&TopicName::new(topic)?)))?;
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
    let content = Content::of(&fields.text, &fields.json, &fields.base64, &fields.headers);
    let mut message = NewMessage::new(content.payload(limit)?);
    if let Some(ttl) = fields.ttl.text() {
        message = message.ttl(parameters::ttl(ttl)?);
    }
    if let Some(headers) = content.headers()? {
        message = message.headers(headers);
    }
    Ok(message)
}
