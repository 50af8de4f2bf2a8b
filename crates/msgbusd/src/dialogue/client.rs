//! The client of one connection.

use std::sync::Arc;

use tracing::debug;

use crate::{
    auth::{Permission, Principal},
    code::Code,
    net::peer::Peer,
    service::{Authority, Call},
    worker::Worker,
};

/// The client of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) worker: Arc<Worker>,
    pub(crate) peer: Peer,
    /// `None` if the server has no keys and every client may do everything.
    pub(crate) principal: Option<Arc<Principal>>,
    /// The generation of the keys in which `principal` was last looked up.
    generation: Option<u64>,
}

impl Client {
    pub(crate) fn new(worker: &Arc<Worker>, peer: Peer, principal: Option<Arc<Principal>>) -> Self {
        Self { worker: Arc::clone(worker), peer, principal, generation: None }
    }

    /// A client without a key.
    pub(crate) fn anonymous(worker: &Arc<Worker>, peer: Peer) -> Self {
        Self::new(worker, peer, worker.keyring.as_ref().map(|keyring| keyring.anonymous()))
    }

    /// The client as the holder of a key, or of a ticket. A server without keys accepts any.
    pub(crate) fn log_in(&self, secret: &str) -> Option<Self> {
        let Some(keyring) = &self.worker.keyring else { return Some(self.clone()) };
        let known = keyring.authenticate(secret).or_else(|| keyring.redeem(secret))?;
        Some(Self::new(&self.worker, self.peer, Some(known)))
    }

    pub(crate) fn call(&self) -> Call<'_> {
        self.call_by(Authority::Own)
    }

    pub(crate) fn call_by(&self, authority: Authority) -> Call<'_> {
        Call { worker: &self.worker, peer: self.peer, principal: self.principal.clone(), authority }
    }

    /// Applies what a reload of the keys has changed, such as the rate of the client.
    pub(crate) fn refresh(&mut self) {
        let Some(keyring) = &self.worker.keyring else { return };
        let generation = Some(keyring.generation());
        if self.generation == generation {
            return;
        }
        self.generation = generation;
        if let Some(principal) = &self.principal
            && let Some(current) = keyring.refresh(principal)
        {
            self.principal = Some(current);
        }
    }

    /// Whether the client's own key allows something.
    pub(crate) fn can(&self, permission: Permission<'_>) -> bool {
        let (Some(keyring), Some(principal)) = (&self.worker.keyring, &self.principal) else {
            return true;
        };
        keyring.refresh(principal).is_some_and(|current| current.can(permission))
    }

    /// The name of the client's key.
    pub(crate) fn key_name(&self) -> Option<&str> {
        self.principal.as_ref().and_then(|principal| principal.key_name())
    }

    /// Counts a refusal.
    pub(crate) fn refused(&self, of: Option<&str>, code: Code) {
        self.worker.metrics.refusal(code);
        // The text is not logged: it may repeat what the client sent.
        debug!(peer = %self.peer, op = of, code = code.word(), "refused");
    }
}

impl From<&Call<'_>> for Client {
    fn from(call: &Call<'_>) -> Self {
        Self::new(call.worker, call.peer, call.principal.clone())
    }
}
