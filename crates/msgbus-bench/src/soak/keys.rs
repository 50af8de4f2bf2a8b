//! The file of keys, and what becomes of those who are in it.

use std::io;

use fastrand::Rng;
use msgbusd::auth::NewKey;

/// What happens in the file to somebody who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing: the key is in every file, and allows everything.
    Stays,
    /// The key is removed, and comes back.
    ComesAndGoes,
    /// Grants are taken away, and given again; some are always left.
    Grants,
    /// There is no key. What needs none changes.
    Anybody,
}

const CAST: [(Fate, usize); 4] =
    [(Fate::Stays, 8), (Fate::ComesAndGoes, 4), (Fate::Grants, 4), (Fate::Anybody, 1)];
/// What is left of a key whose grants were taken.
const LEFT: &str = "\"*:quick/*\", \"*:keep/*\"";
/// What needs no key while anybody has something.
const OPEN: &str = "\"*:quick/*\"";

/// Somebody who asks, as a place in [`Keys::holders`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Who(usize);

#[derive(Debug)]
struct Key {
    secret: String,
    hash: String,
}

impl Key {
    fn make() -> io::Result<Self> {
        let key = NewKey::make("any", &[]).map_err(io::Error::other)?;
        let hash = key.lines.lines().find(|line| line.starts_with("hash"));
        Ok(Self { hash: hash.unwrap_or_default().to_owned(), secret: key.secret })
    }
}

#[derive(Debug)]
struct Holder {
    fate: Fate,
    key: Key,
    /// Whether the file has the key, or the grants, that come and go.
    has: bool,
    verdict: Verdict,
}

/// The keys that there are, and what the server can know of them.
#[derive(Debug)]
pub(super) struct Keys {
    holders: Vec<Holder>,
    /// A key that no file had before: who is known by it knows that the file has been read.
    newest: Key,
    /// How many times the server has read a file.
    reloads: u64,
}

/// What the keys say of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    Allowed,
    Refused,
    /// The file says something else by now, and the server may have read it or not.
    Unsettled,
}

/// A right, and the number of the reload that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) right: Right,
    pub(super) since: u64,
}

impl Keys {
    pub(super) fn make() -> io::Result<Self> {
        let mut holders = Vec::new();
        for (fate, count) in CAST {
            for _ in 0..count {
                let verdict = Verdict { right: Right::Allowed, since: 0 };
                holders.push(Holder { fate, key: Key::make()?, has: true, verdict });
            }
        }
        Ok(Self { holders, newest: Key::make()?, reloads: 0 })
    }

    /// Somebody; more often than not one whose key stays.
    pub(super) fn some(&self, rng: &mut Rng) -> Who {
        let fate = match rng.u8(..100) {
            0..60 => Fate::Stays,
            60..78 => Fate::ComesAndGoes,
            78..92 => Fate::Grants,
            _ => Fate::Anybody,
        };
        let those: Vec<usize> =
            (0..self.holders.len()).filter(|at| self.holders[*at].fate == fate).collect();
        Who(those[rng.usize(..those.len())])
    }

    /// A key that stays.
    pub(super) fn steady_secret(&self) -> &str {
        &self.holders[0].key.secret
    }

    /// The key that somebody shows.
    pub(super) fn secret(&self, who: Who) -> Option<&str> {
        let holder = &self.holders[who.0];
        (holder.fate != Fate::Anybody).then_some(&*holder.key.secret)
    }

    pub(super) fn newest_secret(&self) -> &str {
        &self.newest.secret
    }

    /// How many times the server has read a file, for what is published from now on.
    pub(super) fn reloads(&self) -> u64 {
        self.reloads
    }

    /// The next file: some have what they had not, or no longer what they had. From now on nobody
    /// knows what the server says to them.
    pub(super) fn change(&mut self, rng: &mut Rng) -> io::Result<()> {
        self.newest = Key::make()?;
        let (_, changing) = self.holders.split_at_mut(CAST[0].1);
        for _ in 0..rng.usize(1..4) {
            let holder = &mut changing[rng.usize(..changing.len())];
            holder.has ^= true;
            holder.verdict.right = Right::Unsettled;
        }
        Ok(())
    }

    /// The server has read the file.
    pub(super) fn settle(&mut self) {
        self.reloads += 1;
        for holder in &mut self.holders {
            if holder.verdict.right == Right::Unsettled {
                let right = if holder.has { Right::Allowed } else { Right::Refused };
                holder.verdict = Verdict { right, since: self.reloads };
            }
        }
    }

    /// The file, in any order.
    pub(super) fn text(&self, rng: &mut Rng) -> String {
        let entry = |name: &str, key: &Key, allow| {
            format!("[keys.{name}]\n{}\nallow = [{allow}]\n", key.hash)
        };
        let mut entries: Vec<String> = self
            .holders
            .iter()
            .enumerate()
            .map(|(at, holder)| match (holder.fate, holder.has) {
                (Fate::Anybody, has) => {
                    format!("[anonymous]\nallow = [{}]\n", if has { OPEN } else { "" })
                }
                (Fate::ComesAndGoes, false) => String::new(),
                (Fate::Grants, false) => entry(&format!("key-{at}"), &holder.key, LEFT),
                _ => entry(&format!("key-{at}"), &holder.key, "\"*:**\""),
            })
            .collect();
        entries.push(entry("newest", &self.newest, ""));
        rng.shuffle(&mut entries);
        entries.concat()
    }

    pub(super) fn fate(&self, who: Who) -> Fate {
        self.holders[who.0].fate
    }

    /// What the keys say of what comes and goes of somebody.
    pub(super) fn verdict(&self, who: Who) -> Verdict {
        self.holders[who.0].verdict
    }
}
