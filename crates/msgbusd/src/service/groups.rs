//! Groups themselves: looking at them, creating, moving and removing them.

use msgbus_core::{GroupConfig, GroupName, GroupStats, LeaseStats, TopicName, engine::EngineGroup};
use tracing::debug;

use super::{Call, error::ServiceError};
use crate::auth::Action;

/// The maximum number of leases that are shown of a group.
const MAX_LEASES_SHOWN: usize = 100;

impl Call<'_> {
    /// A group, and its oldest leases.
    pub(crate) async fn group(
        &self,
        topic: &TopicName,
        group: &GroupName,
    ) -> Result<GroupView, ServiceError> {
        self.authorize(Action::Inspect, topic)?;
        self.find_group(topic, group).await
    }

    /// Creates a group, moves it or changes its settings, and waits until a crash cannot undo that. Returns whether it is
    /// new, and what it is now.
    pub(crate) async fn set_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        config: GroupConfig,
    ) -> Result<(bool, GroupView), ServiceError> {
        self.authorize(Action::Admin, topic)?;
        if let Some(dead_letters) = &config.dead_letters
            && topic.dead_letters().as_ref() != Ok(dead_letters)
        {
            // The server publishes there for the group.
            self.authorize(Action::Publish, dead_letters)?;
        }
        let is_new = self.worker.bus.set_group(topic, group, &config).await?;
        debug!(peer = %self.peer, %topic, %group, is_new, "set group");
        Ok((is_new, self.find_group(topic, group).await?))
    }

    /// Removes a group with its leases, and waits until a crash cannot bring it back.
    pub(crate) async fn remove_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
    ) -> Result<(), ServiceError> {
        self.authorize(Action::Admin, topic)?;
        if !self.worker.bus.remove_group(topic, group).await? {
            return Err(no_such_group(topic, group));
        }
        debug!(peer = %self.peer, %topic, %group, "remove group");
        Ok(())
    }

    async fn find_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
    ) -> Result<GroupView, ServiceError> {
        let bus = &self.worker.bus;
        if let Some(engine) = bus.engine_of(topic) {
            let stats = bus.engine_group(topic, group).await?;
            let stats = stats.ok_or_else(|| no_such_group(topic, group))?;
            return Ok(GroupView::Engine(self.worker.engine_name(&engine).to_owned(), stats));
        }
        let found = bus.group_stats(topic, group, MAX_LEASES_SHOWN);
        let (stats, leases) = found.ok_or_else(|| no_such_group(topic, group))?;
        Ok(GroupView::Own(Box::new(stats), leases))
    }
}

/// What is known of a group.
#[derive(Debug)]
pub(crate) enum GroupView {
    /// A group of this server, and its oldest leases.
    Own(Box<GroupStats>, Vec<LeaseStats>),
    /// A group of an engine, after the name of the engine.
    Engine(String, EngineGroup),
}

fn no_such_group(topic: &TopicName, group: &GroupName) -> ServiceError {
    ServiceError::NoSuchGroup { topic: topic.clone(), group: group.clone() }
}
