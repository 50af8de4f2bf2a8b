//! The keys in force. They are looked up by secret, and replaced when the key file is reloaded.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
};

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    KeyFile, KeyFileError, Keys, Principal,
    secret::Hash,
    tickets::{Tickets, TooManyTickets},
};

/// The keys in force, and the open tickets of their holders.
#[derive(Debug)]
pub struct Keyring {
    path: Box<Path>,
    snapshot: RwLock<Arc<KeySnapshot>>,
    /// Counts the reloads, so that holders of a snapshot see without a lock whether there is a newer one.
    generation: AtomicU64,
    tickets: Mutex<Tickets>,
}

/// The keys as read from the file at one time.
#[derive(Debug)]
pub(super) struct KeySnapshot {
    pub(super) keys: Keys,
    /// Cancelled when a newer snapshot is in force.
    pub(super) superseded: CancellationToken,
}

impl KeySnapshot {
    fn new(keys: Keys) -> Arc<Self> {
        Arc::new(Self { keys, superseded: CancellationToken::new() })
    }
}

impl Keyring {
    pub(crate) fn new(file: KeyFile) -> Self {
        Self {
            path: file.path.into(),
            snapshot: RwLock::new(KeySnapshot::new(file.keys)),
            generation: AtomicU64::new(0),
            tickets: Mutex::default(),
        }
    }

    /// The path of the key file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of keys.
    pub fn count(&self) -> usize {
        self.snapshot.read().keys.by_hash.len()
    }

    /// Reloads the file. Subscriptions that the new keys no longer allow are closed. Blocks for up to ten seconds, so
    /// do not call it on a serving thread.
    ///
    /// # Errors
    /// When the file cannot be read or has an error. The old keys stay in force then.
    pub fn reload(&self) -> Result<(), KeyFileError> {
        let new = KeySnapshot::new(KeyFile::read(&*self.path)?.keys);
        let old = std::mem::replace(&mut *self.snapshot.write(), new);
        self.generation.fetch_add(1, Release);
        old.superseded.cancel();
        Ok(())
    }

    /// Changes with each reload, before [`KeySnapshot::superseded`] is cancelled.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    pub(super) fn snapshot(&self) -> Arc<KeySnapshot> {
        Arc::clone(&self.snapshot.read())
    }

    /// The principal of clients without a key.
    pub(crate) fn anonymous(&self) -> Arc<Principal> {
        Arc::clone(&self.snapshot.read().keys.anonymous)
    }

    /// The holder of the key with this secret.
    pub(crate) fn authenticate(&self, secret: &str) -> Option<Arc<Principal>> {
        let hash = Hash::of(secret);
        self.snapshot.read().keys.by_hash.get(&hash).cloned()
    }

    /// Creates a ticket that stands for the key of this principal.
    pub(crate) fn open_ticket(&self, principal: Arc<Principal>) -> Result<String, TooManyTickets> {
        self.tickets.lock().open(principal, Instant::now())
    }

    /// Redeems a ticket. Returns the principal that it was created for, with its current grants.
    pub(crate) fn redeem(&self, ticket: &str) -> Option<Arc<Principal>> {
        let principal = self.tickets.lock().redeem(ticket, Instant::now())?;
        self.refresh(&principal)
    }

    /// The same principal with its current grants; `None` if its key has been removed.
    pub(crate) fn refresh(&self, principal: &Principal) -> Option<Arc<Principal>> {
        self.snapshot.read().keys.current(principal).cloned()
    }
}
