//! Finds subscriptions by their `sid`.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

/// The keys of subscriptions, by a `sid` that only the subscription itself has in memory.
#[derive(Debug, Default)]
pub(super) struct Names {
    keys: HashTable<u32>,
    /// Clients choose the names, and must not be able to choose their hashes.
    hasher: RandomState,
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key of a subscription. `name_of` returns the `sid` of each.
    pub(super) fn find<'a>(&self, sid: &str, name_of: impl Fn(usize) -> &'a str) -> Option<usize> {
        let hash = self.hasher.hash_one(sid);
        self.keys.find(hash, |key| name_of(*key as usize) == sid).map(|key| *key as usize)
    }

    /// Adds a subscription with a `sid` that is not in use.
    pub(super) fn insert<'a>(&mut self, sid: &str, key: usize, name_of: impl Fn(usize) -> &'a str) {
        let Self { keys, hasher } = self;
        // There are far fewer.
        let key = u32::try_from(key).unwrap_or(u32::MAX);
        let hash = |key: &u32| hasher.hash_one(name_of(*key as usize));
        keys.insert_unique(hasher.hash_one(sid), key, hash);
    }

    /// Removes a subscription.
    pub(super) fn remove(&mut self, sid: &str, key: usize) {
        let hash = self.hasher.hash_one(sid);
        if let Ok(entry) = self.keys.find_entry(hash, |other| *other as usize == key) {
            entry.remove();
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = usize> {
        self.keys.iter().map(|key| *key as usize)
    }
}
