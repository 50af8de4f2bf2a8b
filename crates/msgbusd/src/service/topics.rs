//! Operations on whole topics.

use msgbus_core::{TopicName, TopicStats};
use tracing::debug;

use super::{Call, error::ServiceError};
use crate::{
    auth::{Action, Permission, Principal},
    state::App,
};

impl Call<'_> {
    /// The counters of a topic.
    pub(crate) fn topic(&self, topic: &TopicName) -> Result<TopicStats, ServiceError> {
        self.authorize(Action::Inspect, topic)?;
        self.worker.bus.topic(topic).ok_or_else(|| ServiceError::NoSuchTopic(topic.clone()))
    }

    /// Deletes a topic with all of its messages, and waits until a crash cannot bring it back.
    pub(crate) async fn delete(&self, topic: &TopicName) -> Result<(), ServiceError> {
        self.authorize(Action::Delete, topic)?;
        if !self.worker.bus.delete(topic).await? {
            return Err(ServiceError::NoSuchTopic(topic.clone()));
        }
        debug!(peer = %self.peer, %topic, "delete");
        Ok(())
    }
}

/// The first `max` topic names that begin with `prefix`, sort after `after` and may be inspected; and whether there are
/// more. It visits all topics, so do not call it on a serving thread.
pub(crate) fn names(
    app: &App,
    principal: Option<&Principal>,
    prefix: &str,
    after: &str,
    max: usize,
) -> (Vec<TopicName>, bool) {
    let may_inspect = |name: &TopicName| {
        principal.is_none_or(|principal| principal.can(Permission::Topic(Action::Inspect, name)))
    };
    let mut page = app.bus.topic_page(prefix, after, max);
    while page.step(may_inspect) {}
    page.into_names()
}
