//! `pub`: publishes a message.

use msgbus_core::{NewMessage, TopicName};

use super::{
    answer::Answer,
    content::Content,
    operation::Publish,
    operations::{Begun, Operations},
    refusal::Refusal,
};
use crate::service::{Authority, parameters, publisher::Publishing};

impl Operations {
    pub(super) fn publish_one(&mut self, fields: &Publish<'_>) -> Result<Begun, Refusal> {
        let message = message(fields, self.contact.client.worker.config.max_payload)?;
        let topic = fields.topic.needed_text("topic")?;
        let name = || Ok::<_, Refusal>(TopicName::new(topic)?);
        let publishing = self.publish((topic, name), Authority::Own, message)?;
        Ok(match publishing {
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
