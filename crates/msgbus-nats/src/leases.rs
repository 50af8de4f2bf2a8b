//! What this node knows of leases beyond their keys.

use std::{
    collections::{HashMap, HashSet},
    mem::take,
};

use parking_lot::Mutex;

use crate::key::Key;

/// The settlements of leases through this node.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    changed: Mutex<Changed>,
    done: Mutex<Done>,
}

/// A lease among those of all groups: the consumer by its creation, the message, and the delivery.
type Lease = (i64, u64, u64);

fn lease(key: &Key) -> Lease {
    (key.created, key.id, key.delivery)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It lasts until then, in milliseconds since 1970.
    Extended(i64),
    /// It was given back. This is known until the time at which it would have ended.
    Over(i64),
}

/// Leases that end at another time than their keys say.
#[derive(Debug, Default)]
struct Changed {
    fates: HashMap<Lease, Fate>,
    /// At this number, those are removed that would have ended by now.
    clean_at: usize,
    /// When that has happened, in milliseconds since 1970.
    cleaned: i64,
}

/// Leases that were acknowledged lately. The older half is forgotten when there are too many.
#[derive(Debug, Default)]
struct Done {
    recent: HashSet<Lease>,
    older: HashSet<Lease>,
}

/// What comes of an attempt to give a lease back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GivingBack {
    /// It is over.
    Lost,
    /// Too much is known already.
    Full,
    /// From now on it is over. What was known before.
    Begun(Option<Fate>),
}

impl Changed {
    const MIN: usize = 1024;
    /// How often it looks for those that have ended when there is no room, in milliseconds.
    const PAUSE: i64 = 1000;

    fn has_room(&mut self, now: i64) -> bool {
        let is_full = self.fates.len() >= Leases::MAX && now >= self.cleaned + Self::PAUSE;
        if is_full || self.fates.len() >= self.clean_at.max(Self::MIN) {
            self.fates.retain(|_, (Fate::Extended(until) | Fate::Over(until))| *until > now);
            self.clean_at = self.fates.len() * 2;
            self.cleaned = now;
        }
        self.fates.len() < Leases::MAX
    }
}

impl Leases {
    /// The maximum number of leases that are known to end at another time than their keys say, and of those that are
    /// known to be acknowledged.
    const MAX: usize = 100_000;

    /// When a lease ends, in milliseconds since 1970. `None` if it is known to be over.
    pub(crate) fn end(&self, key: &Key) -> Option<i64> {
        let lease = lease(key);
        {
            let done = self.done.lock();
            if done.recent.contains(&lease) || done.older.contains(&lease) {
                return None;
            }
        }
        match self.changed.lock().fates.get(&lease) {
            None => Some(key.until),
            Some(Fate::Extended(until)) => Some(*until),
            Some(Fate::Over(_)) => None,
        }
    }

    /// Ends a lease, before the server is asked to: if its answer is lost, somebody else may have the message, and the
    /// same request would end their lease.
    pub(crate) fn give_back(&self, key: &Key, now: i64) -> GivingBack {
        let mut changed = self.changed.lock();
        let before = changed.fates.get(&lease(key)).copied();
        let end = match before {
            None => key.until,
            Some(Fate::Extended(until)) => until,
            Some(Fate::Over(_)) => return GivingBack::Lost,
        };
        if end <= now {
            return GivingBack::Lost;
        }
        if before.is_none() && !changed.has_room(now) {
            return GivingBack::Full;
        }
        changed.fates.insert(lease(key), Fate::Over(end));
        GivingBack::Begun(before)
    }

    /// The server was certainly not asked to give a lease back.
    pub(crate) fn keep(&self, key: &Key, before: Option<Fate>) {
        let mut changed = self.changed.lock();
        match before {
            Some(fate) => changed.fates.insert(lease(key), fate),
            None => changed.fates.remove(&lease(key)),
        };
    }

    /// Whether the extension of another lease can be noted.
    pub(crate) fn has_room(&self, now: i64) -> bool {
        self.changed.lock().has_room(now)
    }

    pub(crate) fn extend(&self, key: &Key, until: i64) {
        let mut changed = self.changed.lock();
        let fate = changed.fates.entry(lease(key)).or_insert(Fate::Extended(until));
        if let Fate::Extended(end) = fate {
            *end = until.max(*end);
        }
    }

    pub(crate) fn finish(&self, key: &Key) {
        let mut done = self.done.lock();
        if done.recent.len() >= Self::MAX / 2 {
            done.older = take(&mut done.recent);
        }
        done.recent.insert(lease(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u64) -> Key {
        Key { created: 1, id, delivery: 1, deliveries: 1, until: 100 }
    }

    #[test]
    fn a_lease_is_given_back_once() {
        let leases = Leases::default();
        leases.extend(&key(1), 200);
        assert_eq!(leases.end(&key(1)), Some(200));
        let extended = Some(Fate::Extended(200));
        assert_eq!(leases.give_back(&key(1), 150), GivingBack::Begun(extended));
        assert_eq!(leases.give_back(&key(1), 150), GivingBack::Lost);
        leases.extend(&key(1), 300);
        assert_eq!(leases.end(&key(1)), None, "it stays over");
        leases.keep(&key(1), extended);
        assert_eq!(leases.end(&key(1)), Some(200));
        assert_eq!(leases.give_back(&key(2), 100), GivingBack::Lost, "it has ended");
        assert_eq!(leases.end(&Key { created: 2, ..key(1) }), Some(100), "of another consumer");
    }

    #[test]
    fn what_is_known_of_leases_is_bounded() {
        let leases = Leases::default();
        for id in 0..3 * Leases::MAX as u64 {
            leases.finish(&key(id));
        }
        let last = 3 * Leases::MAX as u64 - 1;
        assert_eq!((leases.end(&key(last)), leases.end(&key(0))), (None, Some(100)));
        for id in 0..Leases::MAX as u64 {
            assert_eq!(leases.give_back(&key(id), 50), GivingBack::Begun(None));
        }
        assert_eq!(leases.give_back(&key(last), 50), GivingBack::Full);
        assert_eq!(leases.give_back(&key(0), 50), GivingBack::Lost, "it is known");
        let later = Key { until: 3000, ..key(last) };
        assert_eq!(
            leases.give_back(&later, 2000),
            GivingBack::Begun(None),
            "the others have ended"
        );
    }
}
