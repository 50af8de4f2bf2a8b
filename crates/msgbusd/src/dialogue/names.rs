//! Finds subscriptions and services by their names.

use std::hash::{BuildHasher as _, Hash, RandomState};

use hashbrown::HashTable;

/// The keys of subscriptions, by a name that only the subscription itself has in memory.
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

    /// The key of a subscription. `name_of` returns the name of each.
    pub(super) fn find<'a, N: Hash + Eq + 'a>(
        &self,
        name: &N,
        name_of: impl Fn(usize) -> Option<&'a N>,
    ) -> Option<usize> {
        let hash = self.hasher.hash_one(name);
        self.keys.find(hash, |key| name_of(*key as usize) == Some(name)).map(|key| *key as usize)
    }

    /// Adds a subscription with a name that is not in use.
    pub(super) fn insert<'a, N: Hash + 'a>(
        &mut self,
        key: usize,
        name_of: impl Fn(usize) -> Option<&'a N>,
    ) {
        let Self { keys, hasher } = self;
        let hash = |key: &u32| name_of(*key as usize).map_or(0, |name| hasher.hash_one(name));
        // There are far fewer.
        let key = u32::try_from(key).unwrap_or(u32::MAX);
        keys.insert_unique(hash(&key), key, hash);
    }

    /// Removes a subscription.
    pub(super) fn remove<N: Hash>(&mut self, name: &N, key: usize) {
        let hash = self.hasher.hash_one(name);
        if let Ok(entry) = self.keys.find_entry(hash, |other| *other as usize == key) {
            entry.remove();
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = usize> {
        self.keys.iter().map(|key| *key as usize)
    }
}
