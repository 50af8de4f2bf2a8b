//! What the client of one connection may do.
//!
//! Who may serve a topic is trusted for it: may do everything with it, and decides what all clients of this door may do.
//! Other clients may do what their own grants allow, and what services have enabled.

use msgbus_core::TopicName;

use super::{Conversation, hub::Enabled, output::SENDER};
use crate::{
    auth::{Action, Permission},
    service::Authority,
};

impl Conversation {
    /// Whether a setting that is a list of the names of keys applies.
    pub(super) fn is_one_of(&self, keys: &[String]) -> bool {
        keys.iter().any(|key| key == "*" || Some(key.as_str()) == self.client.key_name())
    }

    /// Whether the client is trusted for a topic.
    pub(super) fn may_serve(&self, topic: &TopicName) -> bool {
        self.client.can(Permission::Topic(Action::Serve, topic))
    }

    /// Whether the client is a service: it may serve something.
    pub(super) fn is_service(&self) -> bool {
        self.client.can(Permission::SomeTopic(Action::Serve))
    }

    /// By whose authority the client may do something. `None` if it may not.
    pub(super) fn authority(
        &self,
        action: Action,
        topic: &TopicName,
        enabled: &Enabled,
    ) -> Option<Authority> {
        let Some(keyring) = &self.client.worker.keyring else { return Some(Authority::Own) };
        if self.client.can(Permission::Topic(action, topic)) {
            return Some(Authority::Own);
        }
        let own = self.client.principal.clone().filter(|_| self.may_serve(topic));
        own.or_else(|| enabled.by(topic, keyring)).map(Authority::Service)
    }

    /// The headers that name the client.
    pub(super) fn sender<'a>(&'a self, user: &'a str) -> [(&'static str, &'a str); 2] {
        let [connection, of_user] = SENDER;
        [(connection, &self.door.identity.id), (of_user, user)]
    }
}
