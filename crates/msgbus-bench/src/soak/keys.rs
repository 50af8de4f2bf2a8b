//! The key file, and how its keys change.

use std::io;

use fastrand::Rng;
use msgbusd::auth::NewKey;

/// How the key of a principal changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifecycle {
    /// It is in every file, and allows everything.
    Permanent,
    /// It is removed and added again.
    Intermittent,
    /// Grants are removed and added again; some always remain.
    ChangingGrants,
    /// There is no key. The grants of `[anonymous]` change.
    Anonymous,
}

const PRINCIPALS: [(Lifecycle, usize); 4] = [
    (Lifecycle::Permanent, 8),
    (Lifecycle::Intermittent, 4),
    (Lifecycle::ChangingGrants, 4),
    (Lifecycle::Anonymous, 1),
];
/// The remaining grants of a key with reduced grants.
const REDUCED_GRANTS: &str = "\"*:quick/*\", \"*:keep/*\"";
/// The grants of `[anonymous]`, while it has any.
const ANONYMOUS_GRANTS: &str = "\"*:quick/*\"";

/// A principal, as an index into [`Keys::holders`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Principal(usize);

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
    lifecycle: Lifecycle,
    key: Key,
    /// Whether the current file contains the changing key or grants.
    is_present: bool,
    verdict: Verdict,
}

/// All keys, and what the server may know of them.
#[derive(Debug)]
pub(super) struct Keys {
    holders: Vec<Holder>,
    /// A key that is new in the current file. If the server accepts it, it has read the file.
    newest: Key,
    /// How many files the server has read.
    reloads: u64,
}

/// The decision of the keys on an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Allowed,
    Denied,
    /// The file has changed, and the server may or may not have read it.
    Unsettled,
}

/// A decision, and the number of the reload that it dates from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) decision: Decision,
    pub(super) since: u64,
}

impl Keys {
    pub(super) fn make() -> io::Result<Self> {
        let mut holders = Vec::new();
        for (lifecycle, count) in PRINCIPALS {
            for _ in 0..count {
                let verdict = Verdict { decision: Decision::Allowed, since: 0 };
                holders.push(Holder { lifecycle, key: Key::make()?, is_present: true, verdict });
            }
        }
        Ok(Self { holders, newest: Key::make()?, reloads: 0 })
    }

    /// A random principal, usually one with a permanent key.
    pub(super) fn random_principal(&self, rng: &mut Rng) -> Principal {
        let lifecycle = match rng.u8(..100) {
            0..60 => Lifecycle::Permanent,
            60..78 => Lifecycle::Intermittent,
            78..92 => Lifecycle::ChangingGrants,
            _ => Lifecycle::Anonymous,
        };
        let those: Vec<usize> =
            (0..self.holders.len()).filter(|at| self.holders[*at].lifecycle == lifecycle).collect();
        Principal(those[rng.usize(..those.len())])
    }

    /// The secret of a permanent key.
    pub(super) fn permanent_secret(&self) -> &str {
        &self.holders[0].key.secret
    }

    /// The secret of a principal; `None` for the anonymous one.
    pub(super) fn secret(&self, principal: Principal) -> Option<&str> {
        let holder = &self.holders[principal.0];
        (holder.lifecycle != Lifecycle::Anonymous).then_some(&*holder.key.secret)
    }

    pub(super) fn newest_secret(&self) -> &str {
        &self.newest.secret
    }

    /// How many files the server has read, to be recorded in messages published from now on.
    pub(super) fn reloads(&self) -> u64 {
        self.reloads
    }

    /// Changes some keys for the next file. From now on, both decisions are possible for them.
    pub(super) fn change(&mut self, rng: &mut Rng) -> io::Result<()> {
        self.newest = Key::make()?;
        let (_, changing) = self.holders.split_at_mut(PRINCIPALS[0].1);
        for _ in 0..rng.usize(1..4) {
            let holder = &mut changing[rng.usize(..changing.len())];
            holder.is_present ^= true;
            holder.verdict.decision = Decision::Unsettled;
        }
        Ok(())
    }

    /// Records that the server has read the file.
    pub(super) fn record_reload(&mut self) {
        self.reloads += 1;
        for holder in &mut self.holders {
            if holder.verdict.decision == Decision::Unsettled {
                let decision = if holder.is_present { Decision::Allowed } else { Decision::Denied };
                holder.verdict = Verdict { decision, since: self.reloads };
            }
        }
    }

    /// The content of the file, in random order.
    pub(super) fn text(&self, rng: &mut Rng) -> String {
        let entry = |name: &str, key: &Key, allow| {
            format!("[keys.{name}]\n{}\nallow = [{allow}]\n", key.hash)
        };
        let mut entries: Vec<String> = self
            .holders
            .iter()
            .enumerate()
            .map(|(at, holder)| match (holder.lifecycle, holder.is_present) {
                (Lifecycle::Anonymous, is_present) => {
                    format!(
                        "[anonymous]\nallow = [{}]\n",
                        if is_present { ANONYMOUS_GRANTS } else { "" }
                    )
                }
                (Lifecycle::Intermittent, false) => String::new(),
                (Lifecycle::ChangingGrants, false) => {
                    entry(&format!("key-{at}"), &holder.key, REDUCED_GRANTS)
                }
                _ => entry(&format!("key-{at}"), &holder.key, "\"*:**\""),
            })
            .collect();
        entries.push(entry("newest", &self.newest, ""));
        rng.shuffle(&mut entries);
        entries.concat()
    }

    pub(super) fn lifecycle(&self, principal: Principal) -> Lifecycle {
        self.holders[principal.0].lifecycle
    }

    /// The verdict on the changing key or grants of a principal.
    pub(super) fn verdict(&self, principal: Principal) -> Verdict {
        self.holders[principal.0].verdict
    }
}
