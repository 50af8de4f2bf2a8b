//! Keys and their grants (docs/protocol.md, section 13). This module decides which client may do what. It knows no
//! sockets and no HTTP: a door passes a secret or a ticket as text.

mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod grant;
mod keyring;
mod live_authorization;
mod secret;
mod target;
mod tickets;
mod topic_filter;

use std::{collections::HashMap, sync::Arc};

pub use self::{
    file::{KeyFile, KeyFileError},
    grant::Grant,
    keyring::Keyring,
    secret::{NewKey, NewKeyError},
};
pub(crate) use self::{
    grant::{Action, Permission},
    live_authorization::LiveAuthorization,
    secret::{Hash, check_name as check_key_name},
    target::Target,
    tickets::{TICKET_LIFETIME, TooManyTickets},
    topic_filter::GrantFilter,
};

use crate::limits::rate::Rate;

/// The identity of a client: the holder of a key, or anonymous.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    /// The name and the hash of the key; `None` for anonymous.
    key: Option<(String, Hash)>,
    /// The grants of the key and those of anonymous, so that a key never allows less than no key.
    grants: Vec<Grant>,
    /// The publish rate that the key file sets, if any.
    publish_rate: Option<Rate>,
}

impl Principal {
    /// The name of the key; `None` for anonymous.
    pub(crate) fn key_name(&self) -> Option<&str> {
        self.key.as_ref().map(|(name, _)| name.as_str())
    }

    pub(crate) fn hash(&self) -> Option<Hash> {
        self.key.as_ref().map(|(_, hash)| *hash)
    }

    pub(crate) fn publish_rate(&self) -> Option<Rate> {
        self.publish_rate
    }

    pub(crate) fn can(&self, permission: Permission<'_>) -> bool {
        match permission {
            Permission::Key => self.key.is_some(),
            Permission::Anything => true,
            permission => self.grants.iter().any(|grant| grant.allows(permission)),
        }
    }
}

/// The content of a key file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Keys {
    anonymous: Arc<Principal>,
    /// Keyed by the hash of the secret. The time of a look-up may leak something about these hashes; that is
    /// harmless, because a hash cannot be turned into its secret.
    by_hash: HashMap<Hash, Arc<Principal>>,
}

impl Keys {
    /// The current grants of a principal; `None` if its key has been removed.
    fn current(&self, principal: &Principal) -> Option<&Arc<Principal>> {
        match &principal.key {
            Some((_, hash)) => self.by_hash.get(hash),
            None => Some(&self.anonymous),
        }
    }
}
