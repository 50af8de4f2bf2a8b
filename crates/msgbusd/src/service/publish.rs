//! Publishing: the rules that are the same for every protocol.

use msgbus_core::{
    NewMessage, PublishError, Published, PublishedBatch, TopicName, store::Durability,
};
use tracing::debug;

use super::{Call, error::ServiceError};
use crate::{auth::Action, limits::rate_limit::RateKey, net::wake_queue};

/// An admitted publish. The client's rate has been charged for one message.
#[derive(Debug)]
pub(crate) struct Publish<'a> {
    call: &'a Call<'a>,
    topic: &'a TopicName,
    rate_key: Option<RateKey>,
}

impl Call<'_> {
    /// Admits a publish, before its payload is read: charges the client's rate for one message.
    pub(crate) fn publish<'a>(&'a self, topic: &'a TopicName) -> Result<Publish<'a>, ServiceError> {
        Ok(Publish { call: self, topic, rate_key: self.charge()? })
    }

    /// Charges the client's rate for one message. Returns what is charged, if there is a rate.
    pub(super) fn charge(&self) -> Result<Option<RateKey>, ServiceError> {
        let rates = &self.worker.rates;
        let rate_key = rates.key(self.principal.as_deref(), self.peer.ip());
        if let Some(rate_key) = rate_key {
            rates.take(rate_key).map_err(|over| ServiceError::over_rate(over, 1))?;
        }
        Ok(rate_key)
    }
}

impl Publish<'_> {
    /// Publishes one message, and waits until it is kept. It checks the authorization, because receiving the payload may
    /// have taken long.
    pub(crate) async fn put(self, message: NewMessage) -> Result<Published, ServiceError> {
        let Self { call, topic, .. } = self;
        call.authorize(Action::Publish, topic)?;
        let bytes = message.payload_len();
        let published = wake_queue::wait(call.worker.bus.publish(topic, message)).await?;
        deliver(published.durability);
        debug!(peer = %call.peer, %topic, id = published.id, bytes, "publish");
        Ok(published)
    }

    /// Admits a batch of this many messages instead of one. A batch that exceeds the topic's limit is refused here,
    /// before memory is allocated for its messages.
    pub(crate) fn admit_batch(&self, count: usize) -> Result<(), ServiceError> {
        let worker = self.call.worker;
        let limit = worker.bus.options().settings_for(self.topic).max_messages;
        if count > limit {
            return Err(PublishError::TooMany { count, limit }.into());
        }
        let Some(rate_key) = self.rate_key else { return Ok(()) };
        let taken = worker.rates.take_batch(rate_key, count);
        taken.map_err(|over| ServiceError::over_rate(over, count))
    }

    /// Publishes all messages of an admitted batch, or none, and waits until they are kept.
    pub(crate) async fn put_batch(
        self,
        messages: Vec<NewMessage>,
    ) -> Result<PublishedBatch, ServiceError> {
        let Self { call, topic, .. } = self;
        call.authorize(Action::Publish, topic)?;
        let published = wake_queue::wait(call.worker.bus.publish_batch(topic, messages)).await?;
        deliver(published.durability);
        // A door may publish an empty batch, which has no last id.
        let (first, last) = (published.ids.start, published.ids.end.saturating_sub(1));
        debug!(peer = %call.peer, %topic, first, last, "publish");
        Ok(published)
    }
}

/// Makes the first deliveries of what was published. Call this before the publisher gets its response.
pub(super) fn deliver(durability: Durability) {
    if is_delivered_here(durability) {
        wake_queue::published();
    }
}

/// Whether this bus delivers what was published. What is in an engine, the engine delivers.
pub(super) fn is_delivered_here(durability: Durability) -> bool {
    durability != Durability::Engine
}
