//! What all connections of this door share: who is connected, and what services let clients do.

use std::{
    collections::HashMap,
    fmt, process,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use msgbus_core::TopicName;
use parking_lot::{Mutex, RwLock};

use crate::{
    auth::{Action, Keyring, Permission, Principal},
    config::{Config, MiddlemanOptions},
};

/// What all connections of this door share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(super) options: MiddlemanOptions,
    ids: Ids,
    peers: Mutex<HashMap<Guid, Weak<Identity>>>,
    pub(super) publishable: Enabled,
    pub(super) subscribable: Enabled,
}

impl Hub {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let options = config.middleman.clone();
        let ends_with_service = options.ends_with_service;
        Arc::new(Self {
            options,
            ids: Ids::new(),
            peers: Mutex::default(),
            publishable: Enabled::new(ends_with_service),
            subscribable: Enabled::new(ends_with_service),
        })
    }

    /// The identity of a new connection.
    pub(super) fn connect(&self) -> Arc<Identity> {
        let identity = Arc::new(Identity { guid: self.ids.next(), user: Mutex::default() });
        self.peers.lock().insert(identity.guid, Arc::downgrade(&identity));
        identity
    }

    pub(super) fn disconnect(&self, guid: Guid) {
        self.peers.lock().remove(&guid);
        self.publishable.leave(guid);
        self.subscribable.leave(guid);
    }

    /// The connection with this id, if it is open.
    pub(super) fn peer(&self, guid: &str) -> Option<Arc<Identity>> {
        let guid = Guid(guid.as_bytes().try_into().ok()?);
        self.peers.lock().get(&guid)?.upgrade()
    }
}

/// The id of a connection: 20 letters and digits that sort by time.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Guid([u8; 20]);

impl Guid {
    pub(super) fn as_str(&self) -> &str {
        // It is ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A connection as others see it.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) guid: Guid,
    /// The user that a service has attached to it; empty if none has.
    user: Mutex<Arc<str>>,
}

impl Identity {
    pub(super) fn user(&self) -> Arc<str> {
        Arc::clone(&self.user.lock())
    }

    pub(super) fn set_user(&self, user: &str) {
        *self.user.lock() = user.into();
    }
}

/// Makes ids: four bytes of seconds, three of the server, two of the process, and a counter of three.
#[derive(Debug)]
struct Ids {
    server: [u8; 3],
    count: AtomicU32,
}

impl Ids {
    fn new() -> Self {
        let mut random = [0; 7];
        // Without random bytes, ids are unique within this server still.
        let _ = getrandom::fill(&mut random);
        let [a, b, c, count @ ..] = random;
        Self { server: [a, b, c], count: AtomicU32::new(u32::from_be_bytes(count)) }
    }

    fn next(&self) -> Guid {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&now.as_secs().to_be_bytes()[4..]);
        bytes[4..7].copy_from_slice(&self.server);
        bytes[7..9].copy_from_slice(&process::id().to_be_bytes()[2..]);
        bytes[9..].copy_from_slice(&self.count.fetch_add(1, Relaxed).to_be_bytes()[1..]);
        Guid(base32hex(bytes))
    }
}

/// RFC 4648, section 7, in lower case and without padding.
fn base32hex(bytes: [u8; 12]) -> [u8; 20] {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    // Four bits short of 20 digits: they are zeros at the end.
    let number = bytes.iter().fold(0, |number: u128, byte| number << 8 | u128::from(*byte)) << 4;
    let mut text = [0; 20];
    for (at, digit) in text.iter_mut().rev().enumerate() {
        *digit = DIGITS[(number >> (5 * at) & 31) as usize];
    }
    text
}

/// The topics that services let all clients of this door use.
#[derive(Debug)]
pub(super) struct Enabled {
    topics: RwLock<HashMap<TopicName, Vec<Service>>>,
    /// Whether what a connection has enabled ends with it.
    ends_with_service: bool,
}

/// Who has enabled a topic.
#[derive(Debug)]
struct Service {
    guid: Guid,
    /// `None` if the server has no keys.
    principal: Option<Arc<Principal>>,
}

impl Enabled {
    /// The maximum number of topics.
    const MAX: usize = 65_536;

    fn new(ends_with_service: bool) -> Self {
        Self { topics: RwLock::default(), ends_with_service }
    }

    /// Lets clients use a topic. Returns `false` if there are too many.
    pub(super) fn add(
        &self,
        topic: &TopicName,
        guid: Guid,
        principal: Option<&Arc<Principal>>,
    ) -> bool {
        let mut topics = self.topics.write();
        if topics.len() >= Self::MAX && !topics.contains_key(topic) {
            return false;
        }
        let services = topics.entry(topic.clone()).or_default();
        let key = |principal: Option<&Arc<Principal>>| principal.and_then(|known| known.hash());
        let is_known = |service: &Service| {
            if self.ends_with_service {
                service.guid == guid
            } else {
                key(service.principal.as_ref()) == key(principal)
            }
        };
        if !services.iter().any(is_known) {
            services.push(Service { guid, principal: principal.cloned() });
        }
        true
    }

    fn leave(&self, guid: Guid) {
        if !self.ends_with_service {
            return;
        }
        self.topics.write().retain(|_, services| {
            services.retain(|service| service.guid != guid);
            !services.is_empty()
        });
    }

    /// A service that lets clients use a topic, and still may serve it.
    pub(super) fn by(&self, topic: &TopicName, keyring: &Keyring) -> Option<Arc<Principal>> {
        let topics = self.topics.read();
        let may_serve = |principal: &Arc<Principal>| {
            let permission = Permission::Topic(Action::Serve, topic);
            keyring.refresh(principal).filter(|current| current.can(permission))
        };
        topics.get(topic)?.iter().find_map(|service| may_serve(service.principal.as_ref()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_differ() {
        assert_eq!(&base32hex([0; 12]), b"00000000000000000000");
        assert_eq!(&base32hex([255; 12]), b"vvvvvvvvvvvvvvvvvvvg");
        // The first bytes of the examples of RFC 4648, section 10.
        assert_eq!(&base32hex(*b"foobar\0\0\0\0\0\0"), b"cpnmuoj1e80000000000");
        let ids = Ids::new();
        let (one, other) = (ids.next(), ids.next());
        assert_ne!(one, other);
        assert!(one.as_str().bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'v')));
    }
}
