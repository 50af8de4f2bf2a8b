//! The operations that every door calls: publish, pull, peek, follow, lease, settle, request, serve, reply, delete.
//! Authorization, rate limits, quotas and tracing are applied here, once for all doors. No module here knows a protocol or
//! imports a door.

pub(crate) mod backpressure;
pub(crate) mod error;
pub(crate) mod follower;
pub(crate) mod groups;
pub(crate) mod in_hand;
mod label;
pub(crate) mod lease;
pub(crate) mod origin;
pub(crate) mod parameters;
pub(crate) mod publish;
pub(crate) mod publisher;
pub(crate) mod pull;
pub(crate) mod requests;
pub(crate) mod topics;

use std::sync::Arc;

use msgbus_core::TopicName;

use self::error::ServiceError;
use crate::{
    auth::{Action, LiveAuthorization, Permission, Principal, Target},
    net::peer::Peer,
    worker::Worker,
};

/// One request of a client: its identity and its address.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    pub(crate) peer: Peer,
    /// `None` if the server has no keys and every client may do everything.
    pub(crate) principal: Option<Arc<Principal>>,
    pub(crate) authority: Authority,
}

/// Whose permissions count in a [`Call`]. Rates and logs are always those of its client.
#[derive(Debug, Clone, Default)]
pub(crate) enum Authority {
    /// The client's.
    #[default]
    Own,
    /// Those of a service that lets clients use a topic: it has to be allowed to serve it, whatever they do.
    Service(Arc<Principal>),
    /// Every holder of a key may do it: the door has decided by rules of its own.
    Key,
}

impl Call<'_> {
    /// Checks the permission for an action on a topic against the keys that are in force now.
    fn authorize(&self, action: Action, topic: &TopicName) -> Result<(), ServiceError> {
        self.require(Permission::Topic(action, topic))
    }

    /// Checks a permission against the keys that are in force now.
    fn require(&self, permission: Permission<'_>) -> Result<(), ServiceError> {
        let (Some(keyring), Some(principal)) = (&self.worker.keyring, self.authority()) else {
            return Ok(());
        };
        let principal = keyring.refresh(principal).ok_or(ServiceError::WrongKey)?;
        let permission = match (&self.authority, permission) {
            (Authority::Key, _) => Permission::Anything,
            (Authority::Service(_), Permission::Topic(_, topic)) => {
                Permission::Topic(Action::Serve, topic)
            }
            (_, permission) => permission,
        };
        require(&principal, permission)
    }

    /// Who has to have the permissions.
    fn authority(&self) -> Option<&Arc<Principal>> {
        match &self.authority {
            Authority::Own | Authority::Key => self.principal.as_ref(),
            Authority::Service(principal) => Some(principal),
        }
    }

    /// The authorization for an operation that takes time. It ends when the keys no longer allow it.
    fn live_authorization(&self, action: Action, target: Target) -> LiveAuthorization {
        match (&self.worker.keyring, self.authority()) {
            (Some(keyring), Some(principal)) => {
                let action = match self.authority {
                    Authority::Own => Some(action),
                    Authority::Service(_) => Some(Action::Serve),
                    Authority::Key => None,
                };
                LiveAuthorization::new(keyring, Arc::clone(principal), action, target)
            }
            _ => LiveAuthorization::default(),
        }
    }
}

/// Returns an error if the principal does not have the permission.
pub(crate) fn require(
    principal: &Principal,
    permission: Permission<'_>,
) -> Result<(), ServiceError> {
    if principal.can(permission) {
        return Ok(());
    }
    let permission = permission.to_string();
    Err(match principal.key_name() {
        Some(key) => ServiceError::NotGranted { key: key.to_owned(), permission },
        None => ServiceError::KeyNeeded { permission },
    })
}
