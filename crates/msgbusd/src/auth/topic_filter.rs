//! Which topics of a pattern a client may follow, checked again whenever the key file is reloaded.

use std::{collections::HashMap, sync::Arc};

use msgbus_core::{TopicFilter, TopicInfo};

use super::{
    Principal,
    grant::{Action, Permission},
    keyring::Keyring,
};

/// Leaves out the messages of topics that a client may not follow now.
#[derive(Debug)]
pub(crate) struct GrantFilter {
    keyring: Arc<Keyring>,
    /// The client, with its grants of `generation`; `None` if its key has been removed.
    current: Option<Arc<Principal>>,
    principal: Arc<Principal>,
    generation: u64,
    /// Whether it may follow every topic.
    sees_all: bool,
    /// The latest decisions, by the epoch of the topic.
    decisions: HashMap<u64, bool>,
}

impl GrantFilter {
    /// With more decisions than this, they are forgotten.
    const MAX_DECISIONS: usize = 512;

    pub(crate) fn new(keyring: &Arc<Keyring>, principal: Arc<Principal>) -> Self {
        let mut filter = Self {
            keyring: Arc::clone(keyring),
            current: None,
            principal,
            generation: 0,
            sees_all: false,
            decisions: HashMap::new(),
        };
        filter.refresh(keyring.generation());
        filter
    }

    fn refresh(&mut self, generation: u64) {
        self.generation = generation;
        self.current = self.keyring.refresh(&self.principal);
        let every_topic = Permission::EveryTopic(Action::Subscribe);
        self.sees_all = self.current.as_ref().is_some_and(|current| current.can(every_topic));
        self.decisions.clear();
    }
}

impl TopicFilter for GrantFilter {
    /// Between two reloads this is an atomic load and, unless every topic is allowed, a look-up.
    fn allows(&mut self, topic: &TopicInfo) -> bool {
        let generation = self.keyring.generation();
        if generation != self.generation {
            self.refresh(generation);
        }
        if self.sees_all {
            return true;
        }
        if self.decisions.len() >= Self::MAX_DECISIONS {
            self.decisions.clear();
        }
        let Self { current, decisions, .. } = self;
        let may_follow = |principal: &Arc<Principal>| {
            principal.can(Permission::Topic(Action::Subscribe, &topic.name))
        };
        *decisions.entry(topic.epoch).or_insert_with(|| current.as_ref().is_some_and(may_follow))
    }
}
