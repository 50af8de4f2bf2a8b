//! The keys in force: found by what a client says, replaced while the server runs.

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

/// The keys in force, and the tickets that their holders have asked for.
#[derive(Debug)]
pub struct Keyring {
    path: Box<Path>,
    reading: RwLock<Arc<Reading>>,
    /// Counts the readings, so that whoever has looked at one sees without a lock whether there is another.
    generation: AtomicU64,
    tickets: Mutex<Tickets>,
}

/// What the file said when it was read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) keys: Keys,
    /// Cancelled when the next reading has taken its place.
    pub(super) superseded: CancellationToken,
}

impl Reading {
    fn new(keys: Keys) -> Arc<Self> {
        Arc::new(Self { keys, superseded: CancellationToken::new() })
    }
}

impl Keyring {
    pub(crate) fn new(file: KeyFile) -> Self {
        Self {
            path: file.path.into(),
            reading: RwLock::new(Reading::new(file.keys)),
            generation: AtomicU64::new(0),
            tickets: Mutex::default(),
        }
    }

    /// The file that the keys are from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.reading.read().keys.by_hash.len()
    }

    /// Reads the file again. Who follows a topic and no longer may is told so. Blocks for ten seconds at
    /// the most: it is not for a thread that serves.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong: then the keys stay as they were.
    pub fn reload(&self) -> Result<(), KeyFileError> {
        let new = Reading::new(KeyFile::read(&*self.path)?.keys);
        let old = std::mem::replace(&mut *self.reading.write(), new);
        self.generation.fetch_add(1, Release);
        old.superseded.cancel();
        Ok(())
    }

    /// Changes after each new reading and before [`Reading::superseded`] says so.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    pub(super) fn reading(&self) -> Arc<Reading> {
        Arc::clone(&self.reading.read())
    }

    /// Who has no key.
    pub(crate) fn anybody(&self) -> Arc<Principal> {
        Arc::clone(&self.reading.read().keys.anonymous)
    }

    /// Who has this secret.
    pub(crate) fn holder(&self, secret: &str) -> Option<Arc<Principal>> {
        let hash = Hash::of(secret);
        self.reading.read().keys.by_hash.get(&hash).cloned()
    }

    /// Makes a ticket that says the same as the key of this caller.
    pub(crate) fn open_ticket(&self, principal: Arc<Principal>) -> Result<String, TooManyTickets> {
        self.tickets.lock().open(principal, Instant::now())
    }

    /// Who has asked for this ticket, with what the key allows by now. The ticket is used up.
    pub(crate) fn redeem(&self, ticket: &str) -> Option<Arc<Principal>> {
        let principal = self.tickets.lock().redeem(ticket, Instant::now())?;
        self.by_now(&principal)
    }

    /// The same caller, with what the key allows by now; `None` where the key is gone.
    pub(crate) fn by_now(&self, principal: &Principal) -> Option<Arc<Principal>> {
        self.reading.read().keys.same(principal).cloned()
    }
}
