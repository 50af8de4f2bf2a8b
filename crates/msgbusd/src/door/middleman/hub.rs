//! What all connections of this door share: who is connected, and what services let clients do.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE32HEX_NOPAD;
use msgbus_core::TopicName;
use parking_lot::{Mutex, RwLock};
use tracing::debug;

use crate::{
    auth::{Action, Keyring, Permission, Principal},
    config::{Config, MiddlemanOptions},
    dialogue::Client,
    service::{Authority, Call, error::ServiceError},
};

/// What the names of private topics begin with. The id of a connection follows.
pub(super) const PRIVATE: &str = "MSG:";

/// What all connections of this door share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(super) options: MiddlemanOptions,
    /// The middle and the end of ids: the server, by chance, and a counter.
    server: [u8; 4],
    count: AtomicU32,
    connections: Mutex<HashMap<Arc<str>, Weak<Identity>>>,
    pub(super) publishable: Enabled,
    pub(super) subscribable: Enabled,
}

impl Hub {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let mut server = [0; 4];
        // Without random bytes, ids are unique within this server still.
        let _ = getrandom::fill(&mut server);
        Arc::new(Self {
            options: config.middleman.clone(),
            server,
            count: AtomicU32::new(0),
            connections: Mutex::default(),
            publishable: Enabled::default(),
            subscribable: Enabled::default(),
        })
    }

    /// An id as those of the old servers: 20 letters and digits that sort by time.
    fn new_id(&self) -> Arc<str> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, count) = (now.as_secs().to_be_bytes(), self.count.fetch_add(1, Relaxed));
        let bytes = [&seconds[4..], &self.server, &count.to_be_bytes()].concat();
        BASE32HEX_NOPAD.encode(&bytes).to_ascii_lowercase().into()
    }

    /// The identity of a new connection.
    pub(super) fn connect(self: &Arc<Self>, client: &Client) -> Arc<Identity> {
        let id = self.new_id();
        let private = format!("{PRIVATE}{id}").parse().unwrap_or_else(|_| unreachable!());
        let (hub, client, user) = (Arc::clone(self), client.clone(), Mutex::default());
        let has_enabled = AtomicBool::new(false);
        let identity = Arc::new(Identity { id, user, private, hub, has_enabled, client });
        self.connections.lock().insert(Arc::clone(&identity.id), Arc::downgrade(&identity));
        identity
    }

    /// The connection with this id, if it is open. Its private topic stays while the caller holds it.
    pub(super) fn connection(&self, id: &str) -> Option<Arc<Identity>> {
        self.connections.lock().get(id)?.upgrade()
    }
}

/// A connection as others see it.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) id: Arc<str>,
    /// The user that a service has attached to it; empty if none has.
    pub(super) user: Mutex<Arc<str>>,
    /// The topic that only this connection is subscribed to.
    pub(super) private: TopicName,
    pub(super) hub: Arc<Hub>,
    /// Whether it has enabled something.
    has_enabled: AtomicBool,
    client: Client,
}

/// Forgets a connection that has ended. Nobody can publish to its private topic any more, which is deleted.
impl Drop for Identity {
    fn drop(&mut self) {
        let Self { id, private, hub, client, .. } = self;
        hub.connections.lock().remove(id);
        if self.has_enabled.load(Relaxed) && hub.options.ends_with_service {
            hub.publishable.leave(id);
            hub.subscribable.leave(id);
        }
        let (client, private) = (client.clone(), private.clone());
        client.worker.clone().tasks.spawn(async move {
            // Its key may be gone.
            let call = Call { principal: None, ..client.call_by(Authority::Key) };
            match call.delete(&private).await {
                Ok(_) | Err(ServiceError::NoSuchTopic(_)) => {}
                Err(error) => debug!(peer = %client.peer, %error, "a private topic is left"),
            }
        });
    }
}

/// The topics that services let all clients of this door use, and the services: their connections and their keys.
#[derive(Debug, Default)]
pub(super) struct Enabled(RwLock<HashMap<TopicName, Vec<Service>>>);

/// The connection of a service, and its key unless the server has none.
type Service = (Arc<str>, Option<Arc<Principal>>);

impl Enabled {
    /// The maximum number of topics.
    const MAX: usize = 65_536;

    /// Lets clients use a topic. Returns `false` if there are too many.
    pub(super) fn add(&self, topic: &TopicName, service: &Identity) -> bool {
        let mut topics = self.0.write();
        if topics.len() >= Self::MAX && !topics.contains_key(topic) {
            return false;
        }
        service.has_enabled.store(true, Relaxed);
        let services = topics.entry(topic.clone()).or_default();
        let key = |one: &Option<Arc<Principal>>| one.as_ref().and_then(|one| one.hash());
        let principal = &service.client.principal;
        let is_known = |(id, known): &Service| {
            let is_same = !service.hub.options.ends_with_service && key(known) == key(principal);
            *id == service.id || is_same
        };
        if !services.iter().any(is_known) {
            services.push((Arc::clone(&service.id), principal.clone()));
        }
        true
    }

    fn leave(&self, id: &str) {
        self.0.write().retain(|_, services| {
            services.retain(|(service, _)| **service != *id);
            !services.is_empty()
        });
    }

    /// A service that lets clients use a topic, and still may serve it.
    pub(super) fn by(&self, topic: &TopicName, keyring: &Keyring) -> Option<Arc<Principal>> {
        let may_serve = |(_, principal): &Service| {
            let permission = Permission::Topic(Action::Serve, topic);
            keyring.refresh(principal.as_ref()?).filter(|current| current.can(permission))
        };
        self.0.read().get(topic)?.iter().find_map(may_serve)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_differ() {
        let hub = Hub::new(&Config::default());
        let (one, other) = (hub.new_id(), hub.new_id());
        assert_ne!(one, other);
        assert_eq!((one.len(), &one[..6]), (20, &other[..6]));
        assert!(one.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'v')));
    }
}
