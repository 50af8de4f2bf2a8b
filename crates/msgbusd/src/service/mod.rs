//! What every door calls: publish, pull, peek, follow, delete. It authorises, charges, counts and traces, once for all
//! doors. Nothing here knows a protocol, and no module here imports a door.

pub(crate) mod backpressure;
pub(crate) mod code;
pub(crate) mod error;
pub(crate) mod follower;
pub(crate) mod publish;
pub(crate) mod pull;
pub(crate) mod topics;

use std::sync::Arc;

use msgbus_core::TopicName;

use self::error::ServiceError;
use crate::{
    auth::{Action, LiveAuthorization, Permission, Principal},
    net::peer::Peer,
    worker::Worker,
};

/// One client as it asks for something: who it is, and where it comes from.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    pub(crate) peer: Peer,
    /// `None` where the server has no keys and everybody may do everything.
    pub(crate) principal: Option<Arc<Principal>>,
}

impl Call<'_> {
    /// Checks a permission by the keys that are in force now.
    fn authorize(&self, action: Action, topic: &TopicName) -> Result<(), ServiceError> {
        let (Some(keyring), Some(principal)) = (&self.worker.keyring, &self.principal) else {
            return Ok(());
        };
        let principal = keyring.by_now(principal).ok_or(ServiceError::WrongKey)?;
        require(&principal, Permission::Topic(action, topic))
    }

    /// What lets the client stay, for as long as the keys say so.
    fn live_authorization(&self, action: Action, topic: &TopicName) -> LiveAuthorization {
        match (&self.worker.keyring, &self.principal) {
            (Some(keyring), Some(principal)) => {
                LiveAuthorization::new(keyring, Arc::clone(principal), action, topic)
            }
            _ => LiveAuthorization::default(),
        }
    }

    /// How a subscription is shown: the name of the key, if the client has shown one, and the address.
    fn label(&self) -> Box<str> {
        match self.principal.as_ref().and_then(|principal| principal.key_name()) {
            Some(key) => format!("{key}@{}", self.peer).into(),
            None => self.peer.to_string().into(),
        }
    }
}

/// Refuses what the principal may not do.
pub(crate) fn require(
    principal: &Principal,
    permission: Permission<'_>,
) -> Result<(), ServiceError> {
    if principal.may(permission) {
        return Ok(());
    }
    let permission = permission.to_string();
    Err(match principal.key_name() {
        Some(key) => ServiceError::NotGranted { key: key.to_owned(), permission },
        None => ServiceError::KeyNeeded { permission },
    })
}
