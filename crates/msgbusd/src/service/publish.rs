//! Publishing: the rules that hold whatever the protocol.

use msgbus_core::{NewMessage, Op, PublishError, Published, PublishedBatch, TopicName};
use tracing::debug;

use super::{Call, error::ServiceError};
use crate::{auth::Action, limits::rate_limit::Account, net::wake_queue};

/// A publish that was admitted: the client is charged for one message.
#[derive(Debug)]
pub(crate) struct Publish<'a> {
    call: &'a Call<'a>,
    topic: &'a TopicName,
    account: Option<Account>,
}

impl Call<'_> {
    /// Admits a publish, before its payload is read: charges the client's rate for one message.
    pub(crate) fn publish<'a>(&'a self, topic: &'a TopicName) -> Result<Publish<'a>, ServiceError> {
        let rates = &self.worker.rates;
        let account = rates.account(self.principal.as_deref(), self.peer.ip());
        if let Some(account) = account {
            rates.take(account).map_err(|over| ServiceError::over_rate(over, 1))?;
        }
        Ok(Publish { call: self, topic, account })
    }
}

impl Publish<'_> {
    /// Publishes one message, if the client may by now: reading a payload takes as long as its sender likes.
    pub(crate) fn put(self, message: NewMessage) -> Op<Result<Published, ServiceError>> {
        let Self { call, topic, .. } = self;
        if let Err(error) = call.authorize(Action::Publish, topic) {
            return Op::ready(Err(error));
        }
        let (peer, bytes) = (call.peer, message.payload_len());
        call.worker.bus.publish(topic, message).map(|published| {
            let published = published?;
            wake_queue::published();
            debug!(%peer, %topic, id = published.id, bytes, "publish");
            Ok(published)
        })
    }

    /// Admits a batch of this many messages instead: one that the topic may not hold would become many messages
    /// before the bus could refuse it.
    pub(crate) fn admit_batch(&self, count: usize) -> Result<(), ServiceError> {
        let app = self.call.worker;
        let limit = app.bus.options().settings_for(self.topic).max_messages;
        if count > limit {
            return Err(PublishError::TooMany { count, limit }.into());
        }
        let Some(account) = self.account else { return Ok(()) };
        let taken = app.rates.take_batch(account, count);
        taken.map_err(|over| ServiceError::over_rate(over, count))
    }

    /// Publishes all of a batch that was admitted, or nothing.
    pub(crate) fn put_batch(
        self,
        messages: Vec<NewMessage>,
    ) -> Op<Result<PublishedBatch, ServiceError>> {
        let Self { call, topic, .. } = self;
        if let Err(error) = call.authorize(Action::Publish, topic) {
            return Op::ready(Err(error));
        }
        let peer = call.peer;
        call.worker.bus.publish_batch(topic, messages).map(|published| {
            let published = published?;
            wake_queue::published();
            let (first, last) = (published.ids.start, published.ids.end - 1);
            debug!(%peer, %topic, first, last, "publish");
            Ok(published)
        })
    }
}
