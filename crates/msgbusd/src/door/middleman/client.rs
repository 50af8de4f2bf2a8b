//! The client of one connection, and what it may do.
//!
//! Who may serve a topic is trusted for it: may do everything with it, and decides what all clients of this door may do.
//! Other clients may do what their own grants allow, and what services have enabled.

use std::sync::Arc;

use msgbus_core::TopicName;

use super::{
    hub::{Enabled, Hub, Identity},
    output::SENDER,
};
use crate::{
    auth::{Action, Permission, Principal},
    net::peer::Peer,
    service::{Authority, Call},
    worker::Worker,
};

/// The client of one connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) hub: Arc<Hub>,
    pub(super) worker: Arc<Worker>,
    pub(super) peer: Peer,
    /// `None` if the server has no keys and every client may do everything.
    principal: Option<Arc<Principal>>,
    pub(super) identity: Arc<Identity>,
    /// The generation of the keys in which `principal` was last looked up.
    generation: Option<u64>,
}

impl Client {
    pub(super) fn new(
        hub: Arc<Hub>,
        worker: Arc<Worker>,
        peer: Peer,
        principal: Option<Arc<Principal>>,
    ) -> Self {
        let identity = hub.connect();
        Self { hub, worker, peer, principal, identity, generation: None }
    }

    pub(super) fn call(&self, authority: Authority) -> Call<'_> {
        let principal = self.principal.clone();
        Call { worker: &self.worker, peer: self.peer, principal, authority }
    }

    pub(super) fn principal(&self) -> Option<&Arc<Principal>> {
        self.principal.as_ref()
    }

    /// Whether a setting that is a list of the names of keys applies.
    pub(super) fn is_one_of(&self, keys: &[String]) -> bool {
        let name = self.principal.as_ref().and_then(|principal| principal.key_name());
        keys.iter().any(|key| key == "*" || Some(key.as_str()) == name)
    }

    /// The topic that only this client is subscribed to.
    pub(super) fn private_target(&self) -> String {
        format!("{PRIVATE}{}", self.identity.guid.as_str())
    }

    /// Applies what a reload of the keys has changed.
    pub(super) fn refresh(&mut self) {
        let (Some(keyring), Some(principal)) = (&self.worker.keyring, &self.principal) else {
            return;
        };
        let generation = Some(keyring.generation());
        if self.generation != generation {
            self.generation = generation;
            // A key that is gone ends the private subscription, and with it the connection.
            if let Some(current) = keyring.refresh(principal) {
                self.principal = Some(current);
            }
        }
    }

    /// Whether the client's own key allows something.
    fn can(&self, permission: Permission<'_>) -> bool {
        let (Some(keyring), Some(principal)) = (&self.worker.keyring, &self.principal) else {
            return true;
        };
        keyring.refresh(principal).is_some_and(|current| current.can(permission))
    }

    /// Whether the client is trusted for a topic.
    pub(super) fn may_serve(&self, topic: &TopicName) -> bool {
        self.can(Permission::Topic(Action::Serve, topic))
    }

    /// Whether the client is a service: it may serve something.
    pub(super) fn is_service(&self) -> bool {
        self.can(Permission::SomeTopic(Action::Serve))
    }

    /// By whose authority the client may do something. `None` if it may not.
    pub(super) fn authority(
        &self,
        action: Action,
        topic: &TopicName,
        enabled: &Enabled,
    ) -> Option<Authority> {
        let Some(keyring) = &self.worker.keyring else { return Some(Authority::Own) };
        if self.can(Permission::Topic(action, topic)) {
            return Some(Authority::Own);
        }
        let own = self.principal.clone().filter(|_| self.may_serve(topic));
        own.or_else(|| enabled.by(topic, keyring)).map(Authority::Service)
    }

    /// The headers that name the client.
    pub(super) fn sender<'a>(&'a self, user: &'a str) -> [(&'static str, &'a str); 2] {
        let [connection, of_user] = SENDER;
        [(connection, self.identity.guid.as_str()), (of_user, user)]
    }
}

/// Ends the membership; what others know of the connection is forgotten.
impl Drop for Client {
    fn drop(&mut self) {
        self.hub.disconnect(self.identity.guid);
    }
}

/// What the names of private topics begin with. The id of a connection follows.
pub(super) const PRIVATE: &str = "MSG:";
