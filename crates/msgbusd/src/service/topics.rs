//! Operations on whole topics.

use std::sync::Arc;

use msgbus_core::{DeleteError, TopicName, TopicPattern, TopicStats, TopicSums, store::StoreError};
use tracing::debug;

use super::{Call, error::ServiceError};
use crate::{
    auth::{Action, Permission, Principal},
    state::App,
};

/// What became of a topic that is deleted.
#[derive(Debug)]
pub(crate) enum Deletion {
    /// It cannot come back.
    Kept,
    /// The disk has not kept that: after a crash the topic may be there again.
    NotKept(StoreError),
}

impl Call<'_> {
    /// The counters of a topic.
    pub(crate) fn topic(&self, topic: &TopicName) -> Result<TopicStats, ServiceError> {
        self.authorize(Action::Inspect, topic)?;
        self.worker.bus.topic(topic).ok_or_else(|| ServiceError::NoSuchTopic(topic.clone()))
    }

    /// Deletes a topic with all of its messages, and waits until a crash cannot bring it back, or the disk has refused.
    pub(crate) async fn delete(&self, topic: &TopicName) -> Result<Deletion, ServiceError> {
        self.authorize(Action::Delete, topic)?;
        let deletion = match self.worker.bus.delete(topic).await {
            Ok(true) => Deletion::Kept,
            Ok(false) => return Err(ServiceError::NoSuchTopic(topic.clone())),
            Err(DeleteError::NotKept(error)) => Deletion::NotKept(error),
            Err(DeleteError::Refused(error)) => return Err(error.into()),
        };
        debug!(peer = %self.peer, %topic, ?deletion, "delete");
        Ok(deletion)
    }
}

/// The sums of the counters of all topics that match a pattern and that the client may inspect. It visits all topics, on
/// a thread that serves nobody.
pub(crate) async fn sums(call: Call<'_>, pattern: TopicPattern) -> TopicSums {
    let (app, principal) = (Arc::clone(call.worker), call.principal);
    let sum = move || {
        let mut page = app.bus.topic_page("", "", usize::MAX);
        while page.step(|name| pattern.matches(name) && may_inspect(principal.as_deref(), name)) {}
        let stats = page.into_names().0.into_iter().filter_map(|name| app.bus.topic(&name));
        stats.map(|stats| TopicSums::of(&stats)).sum()
    };
    call.worker.background.run(sum).await
}

fn may_inspect(principal: Option<&Principal>, name: &TopicName) -> bool {
    principal.is_none_or(|principal| principal.can(Permission::Topic(Action::Inspect, name)))
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
    let mut page = app.bus.topic_page(prefix, after, max);
    while page.step(|name| may_inspect(principal, name)) {}
    page.into_names()
}
