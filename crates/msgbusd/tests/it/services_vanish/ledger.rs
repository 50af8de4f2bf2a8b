//! What the clients know of all requests, and what must hold of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

/// What has become of a request, for its requester.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Replied with the reply to this hand-over.
    Replied(u64),
    Failed(u64),
    /// The responder has left it.
    Left,
    TimedOut,
    NoResponder,
    /// The requester has vanished, or has closed its sending side.
    Vanished,
}

/// A request.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Whether all of it was sent.
    pub(super) is_whole: bool,
    pub(super) may_repeat: bool,
    /// How often a responder got it.
    hands: usize,
    /// The hand-overs that the server has confirmed an answer to, and those for which it may have taken one.
    confirmed: BTreeSet<u64>,
    unconfirmed: BTreeSet<u64>,
    declined: bool,
    /// The hand-overs whose only answer was not wanted.
    unwanted: BTreeSet<u64>,
    outcome: Option<Outcome>,
}

/// All requests, by number.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: Mutex<BTreeMap<u64, Entry>>,
    pub(super) hands: AtomicU64,
    pub(super) vanished_requesters: AtomicU64,
    pub(super) vanished_responders: AtomicU64,
    /// Replies that were not wanted: those that the clients know of, and further ones at most.
    pub(super) not_wanted: AtomicU64,
    pub(super) maybe_not_wanted: AtomicU64,
}

/// How many requests have ended in which way, as clients know it.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) replied: u64,
    pub(super) failed: u64,
    pub(super) timed_out: u64,
    pub(super) refused: u64,
    /// Requests of which the clients do not know it.
    pub(super) unknown: u64,
}

impl Ledger {
    pub(super) fn ask(&self, may_repeat: bool) -> u64 {
        let mut entries = self.entries.lock().unwrap();
        let number = entries.len() as u64;
        let entry = Entry { is_whole: true, may_repeat, ..Entry::default() };
        entries.insert(number, entry);
        number
    }

    pub(super) fn with<T>(&self, number: u64, act: impl FnOnce(&mut Entry) -> T) -> T {
        act(self.entries.lock().unwrap().get_mut(&number).unwrap())
    }

    pub(super) fn end(&self, number: u64, outcome: Outcome) {
        self.with(number, |entry| entry.outcome = Some(outcome));
    }

    pub(super) fn has_ended(&self, number: u64) -> bool {
        self.with(number, |entry| entry.outcome.is_some())
    }

    /// A responder has got a request. Returns the number of the hand-over.
    pub(super) fn take(&self, number: u64) -> u64 {
        self.with(number, |entry| {
            entry.hands += 1;
            assert!(entry.is_whole, "request {number} was not sent");
            assert!(entry.hands == 1 || entry.may_repeat, "request {number} is served twice");
        });
        self.hands.fetch_add(1, SeqCst)
    }

    /// A responder's first answer to a hand-over was accepted, or not wanted.
    pub(super) fn answered(&self, number: u64, hand: u64, is_wanted: bool) {
        self.with(number, |entry| {
            let hands = if is_wanted { &mut entry.confirmed } else { &mut entry.unwanted };
            hands.insert(hand);
        });
        if !is_wanted {
            self.not_wanted.fetch_add(1, SeqCst);
        }
    }

    /// A responder has vanished while it answered.
    pub(super) fn may_have_answered(&self, number: u64, hand: u64) {
        self.with(number, |entry| entry.unconfirmed.insert(hand));
        self.maybe_not_wanted.fetch_add(1, SeqCst);
    }

    pub(super) fn declined(&self, number: u64) {
        self.with(number, |entry| entry.declined = true);
    }

    /// How many requests have this outcome.
    pub(super) fn count(&self, is_so: impl Fn(Outcome) -> bool) -> usize {
        let entries = self.entries.lock().unwrap();
        entries.values().filter_map(|entry| entry.outcome).filter(|outcome| is_so(*outcome)).count()
    }

    /// Checks each request, when all is over, and adds up.
    pub(super) fn check(&self) -> Totals {
        let mut totals = Totals::default();
        for (number, entry) in &*self.entries.lock().unwrap() {
            entry.check(*number);
            match entry.outcome.unwrap() {
                Outcome::Replied(_) => totals.replied += 1,
                Outcome::Failed(_) | Outcome::Left => totals.failed += 1,
                Outcome::TimedOut => totals.timed_out += 1,
                Outcome::NoResponder => totals.refused += 1,
                Outcome::Vanished => totals.unknown += 1,
            }
        }
        totals
    }
}

impl Entry {
    fn check(&self, number: u64) {
        let outcome = self.outcome.unwrap_or_else(|| panic!("request {number} has no end"));
        let is_right = match outcome {
            Outcome::Replied(hand) | Outcome::Failed(hand) => {
                (self.confirmed.contains(&hand) || self.unconfirmed.contains(&hand))
                    && self.confirmed.iter().all(|confirmed| *confirmed == hand)
            }
            Outcome::Left => self.declined && !self.may_repeat && self.confirmed.is_empty(),
            Outcome::TimedOut => self.confirmed.is_empty(),
            Outcome::NoResponder => self.confirmed.is_empty() && (self.hands == 0 || self.declined),
            // Nobody knows whether the server had noticed that.
            Outcome::Vanished => self.confirmed.len() <= 1,
        };
        let is_over = matches!(outcome, Outcome::TimedOut | Outcome::Vanished);
        let is_wanted = self.unwanted.is_empty() || is_over;
        assert!(is_right && is_wanted, "request {number}: {self:?}");
    }
}
