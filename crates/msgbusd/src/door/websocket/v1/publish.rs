//! `pub`: publishes a message.

use msgbus_core::{NewMessage, TopicName};

use super::{
    answer::Answer,
    content::Content,
    operation::Publish,
    operations::{Begun, Operations},
    refusal::Refusal,
};
use crate::service::{
    parameters,
    publisher::{Publisher, Publishing},
};

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
