//! Operations on whole topics.

use std::sync::Arc;

use msgbus_core::{
    DeleteError, TopicName, TopicPattern, TopicStats, TopicSums,
    engine::{EngineError, EngineStats, EngineTopics, WindowStats},
    store::StoreError,
};
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

/// What is known of a topic.
#[derive(Debug)]
pub(crate) enum TopicView {
    /// A topic of this server.
    Own(TopicStats),
    /// A topic that lives in an engine.
    Engine(EngineTopic),
}

/// A topic that lives in an engine.
#[derive(Debug)]
pub(crate) struct EngineTopic {
    pub(crate) name: TopicName,
    /// The name of the engine.
    pub(crate) engine: String,
    pub(crate) stats: EngineStats,
    /// Of this server, if somebody follows the topic here.
    pub(crate) window: Option<WindowStats>,
}

impl EngineTopic {
    /// The subscriptions at this server.
    pub(crate) fn subscribers(&self) -> usize {
        self.window.as_ref().map_or(0, |window| window.followers)
    }
}

impl Call<'_> {
    /// The counters of a topic.
    pub(crate) async fn topic(&self, topic: &TopicName) -> Result<TopicView, ServiceError> {
        self.authorize(Action::Inspect, topic)?;
        let bus = &self.worker.bus;
        let no_such_topic = || ServiceError::NoSuchTopic(topic.clone());
        if let Some(engine) = bus.engine_of(topic) {
            let stats = bus.engine_stats(topic).await?.ok_or_else(no_such_topic)?;
            let engine = self.worker.engine_name(&engine).to_owned();
            let window = bus.engine_window(topic);
            return Ok(TopicView::Engine(EngineTopic {
                name: topic.clone(),
                engine,
                stats,
                window,
            }));
        }
        bus.topic(topic).map(TopicView::Own).ok_or_else(no_such_topic)
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
///
/// # Errors
/// When a topic that matches may live in an engine.
pub(crate) async fn sums(call: Call<'_>, pattern: TopicPattern) -> Result<TopicSums, ServiceError> {
    if let Some(engine) = call.worker.bus.engine_of_pattern(&pattern) {
        let (engine, operation) = (engine.kind(), "add up what topics have");
        return Err(EngineError::NotSupported { engine, operation }.into());
    }
    let (app, principal) = (Arc::clone(call.worker), call.principal);
    let sum = move || {
        let mut page = app.bus.topic_page("", "", usize::MAX);
        while page.step(|name| pattern.matches(name) && may_inspect(principal.as_deref(), name)) {}
        let stats = page.into_names().0.into_iter().filter_map(|name| app.bus.topic(&name));
        stats.map(|stats| TopicSums::of(&stats)).sum()
    };
    Ok(call.worker.background.run(sum).await)
}

/// Whether somebody may see that there is a topic or a service with this name.
pub(super) fn may_inspect(principal: Option<&Principal>, name: &TopicName) -> bool {
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

/// As [`names`], of topics that live in engines, with their numbers of messages.
pub(crate) async fn engine_names(
    app: &App,
    principal: Option<&Principal>,
    prefix: &str,
    after: &str,
    max: usize,
) -> Result<EngineTopics, ServiceError> {
    let is_visible = |name: &TopicName| may_inspect(principal, name);
    Ok(app.bus.engine_topics(prefix, after, max, is_visible).await?)
}
