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
    /// The latest decisions, by the epoch of the topic.
    decisions: HashMap<u64, bool>,
}

impl GrantFilter {
    /// With more decisions than this, they are forgotten.
    const MAX_DECISIONS: usize = 4096;

    pub(crate) fn new(keyring: &Arc<Keyring>, principal: Arc<Principal>) -> Self {
        let generation = keyring.generation();
        let current = keyring.refresh(&principal);
        let keyring = Arc::clone(keyring);
        Self { keyring, current, principal, generation, decisions: HashMap::new() }
    }

    fn refresh(&mut self, generation: u64) {
        self.generation = generation;
        self.current = self.keyring.refresh(&self.principal);
        self.decisions.clear();
    }
}

impl TopicFilter for GrantFilter {
    /// Between two reloads this is an atomic load and a look-up.
    fn allows(&mut self, topic: &TopicInfo) -> bool {
        let generation = self.keyring.generation();
        if generation != self.generation {
            self.refresh(generation);
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
