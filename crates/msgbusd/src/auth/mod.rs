//! Keys, and what each of them allows. It knows no socket and no HTTP: a secret or a ticket comes as
//! text, and who may do what is decided here. docs/protocol.md, section 13.

mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod grant;
mod permit;
mod ring;
mod secret;
mod tickets;

use std::{collections::HashMap, sync::Arc};

pub use self::{
    file::{KeyFile, KeyFileError},
    grant::Grant,
    ring::Keyring,
    secret::{NewKey, NewKeyError},
};
pub(crate) use self::{
    grant::{Action, Permission},
    permit::LiveAuthorization,
    secret::Hash,
    tickets::{TICKET_LIVES, TooManyTickets},
};

use crate::limits::rate::Rate;

/// Who asks: the holder of a key, or anybody.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    /// The name and the hash of the key; `None` for anybody.
    key: Option<(String, Hash)>,
    /// Those of anybody included: to leave the key away would give no more.
    grants: Vec<Grant>,
    /// How fast it may publish, if the file says so.
    publish_rate: Option<Rate>,
}

impl Principal {
    /// The name of the key; `None` for anybody.
    pub(crate) fn key_name(&self) -> Option<&str> {
        self.key.as_ref().map(|(name, _)| name.as_str())
    }

    pub(crate) fn hash(&self) -> Option<Hash> {
        self.key.as_ref().map(|(_, hash)| *hash)
    }

    pub(crate) fn publish_rate(&self) -> Option<Rate> {
        self.publish_rate
    }

    pub(crate) fn may(&self, need: Permission<'_>) -> bool {
        match need {
            Permission::Key => self.key.is_some(),
            need => self.grants.iter().any(|grant| grant.gives(need)),
        }
    }
}

/// What a file of keys says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Keys {
    anonymous: Arc<Principal>,
    /// Looked up by the hash of what a client says. How long that takes may tell something about the
    /// hashes here, and nobody can make a secret of a hash.
    by_hash: HashMap<Hash, Arc<Principal>>,
}

impl Keys {
    /// Who this caller is by now; `None` where the key is gone.
    fn same(&self, principal: &Principal) -> Option<&Arc<Principal>> {
        match &principal.key {
            Some((_, hash)) => self.by_hash.get(hash),
            None => Some(&self.anonymous),
        }
    }
}
