//! What somebody wants, what the keys say of it while they change, and what came of it.

use super::{
    books::{Book, Books},
    keys::{Fate, Keys, Right, Verdict, Who},
    payload::Origin,
    topics::Topic,
};

/// What decides over a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Always,
    Never,
    Holder(Who),
}

/// A wish, and what the keys said of it at its beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) who: Who,
    scope: Scope,
    verdict: Verdict,
}

impl Keys {
    /// The wish to do something to a topic.
    pub(super) fn claim(&self, who: Who, topic: &Topic) -> Claim {
        let scope = match self.fate(who) {
            Fate::Stays => Scope::Always,
            Fate::Grants if topic.is_quick() || topic.is_kept() => Scope::Always,
            Fate::Anybody if !topic.is_quick() => Scope::Never,
            Fate::ComesAndGoes | Fate::Grants | Fate::Anybody => Scope::Holder(who),
        };
        self.claim_of(who, scope)
    }

    /// The wish to be known at all.
    pub(super) fn claim_to_be_known(&self, who: Who) -> Claim {
        let scope = match self.fate(who) {
            Fate::Stays | Fate::Grants => Scope::Always,
            Fate::Anybody => Scope::Never,
            Fate::ComesAndGoes => Scope::Holder(who),
        };
        self.claim_of(who, scope)
    }

    /// The same wish, from now on.
    pub(super) fn again(&self, claim: &Claim) -> Claim {
        self.claim_of(claim.who, claim.scope)
    }

    fn claim_of(&self, who: Who, scope: Scope) -> Claim {
        Claim { who, scope, verdict: self.decide(scope) }
    }

    fn decide(&self, scope: Scope) -> Verdict {
        match scope {
            Scope::Always => Verdict { right: Right::Allowed, since: 0 },
            Scope::Never => Verdict { right: Right::Refused, since: 0 },
            Scope::Holder(who) => self.verdict(who),
        }
    }

    /// What the keys have said from the beginning of a claim until now, if always the same.
    fn all_the_while(&self, claim: &Claim) -> Right {
        if self.decide(claim.scope) == claim.verdict {
            claim.verdict.right
        } else {
            Right::Unsettled
        }
    }

    /// Whether the server has to have ended what somebody had by this claim.
    pub(super) fn is_over(&self, claim: &Claim) -> bool {
        self.decide(claim.scope).right == Right::Refused
    }

    /// Holds an answer against the keys, and says whether it is a refusal for lack of a right.
    pub(super) fn check_answer(
        &self,
        books: &mut Books,
        claim: &Claim,
        status: u16,
        what: &str,
    ) -> bool {
        let refused = matches!(status, 401 | 403);
        let says = || format!("{what} by {:?} {:?}: {status}", claim.who, claim.verdict);
        match self.all_the_while(claim) {
            Right::Allowed => books.check(Book::StillAllowed, !refused, says),
            // At a bound nobody is asked who it is.
            Right::Refused if status != 503 => books.check(Book::NotAllowed, refused, says),
            Right::Refused | Right::Unsettled => {}
        }
        if refused {
            let missing_grant = self.fate(claim.who) == Fate::Grants;
            let expected = if missing_grant { 403 } else { 401 };
            books.check(Book::Answers, status == expected, says);
            books.count("requests refused by the keys", 1);
        }
        refused
    }

    /// Somebody who followed a topic was told that it is no longer allowed.
    pub(super) fn check_revoked(&self, books: &mut Books, claim: &Claim, topic: &str) {
        let is_lawful = self.all_the_while(claim) != Right::Allowed;
        books.check(Book::StillAllowed, is_lawful, || {
            format!("following {topic} by {:?} {:?} was ended", claim.who, claim.verdict)
        });
        books.count("subscriptions ended by the keys", 1);
    }

    /// Somebody has got a message: it must not be one that was published after the reload that took
    /// the right away.
    pub(super) fn check_message(
        &self,
        books: &mut Books,
        claim: &Claim,
        origin: Origin,
        topic: &str,
    ) {
        let now = self.decide(claim.scope);
        if now.right == Right::Refused {
            books.check(Book::NotAllowed, origin.reloads < now.since, || {
                format!(
                    "{:?} got message {} of publisher {} in {topic}, published after reload {}, and may \
                     not since reload {}",
                    claim.who, origin.sequence, origin.publisher, origin.reloads, now.since
                )
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::{super::payload::Described, *};

    /// The faults of the two books after an answer to each claim.
    fn faults(keys: &Keys, claim: &Claim, status: u16) -> [u64; 2] {
        let mut books = Books::default();
        keys.check_answer(&mut books, claim, status, "");
        [Book::StillAllowed, Book::NotAllowed]
            .map(|book| books.standing(book).map_or(0, |standing| standing.faults))
    }

    #[test]
    fn either_answer_is_right_only_while_the_keys_change() {
        let mut rng = Rng::with_seed(1);
        let mut keys = Keys::make().unwrap();
        let who = loop {
            let who = keys.some(&mut rng);
            if keys.fate(who) == Fate::ComesAndGoes {
                break who;
            }
        };
        let before = keys.claim_to_be_known(who);
        assert_eq!((faults(&keys, &before, 202), faults(&keys, &before, 401)), ([0, 0], [1, 0]));
        while keys.verdict(who).right != Right::Unsettled {
            keys.change(&mut rng).unwrap();
        }
        let meanwhile = keys.claim_to_be_known(who);
        for claim in [&before, &meanwhile] {
            assert_eq!((faults(&keys, claim, 202), faults(&keys, claim, 401)), ([0, 0], [0, 0]));
        }
        keys.settle();
        assert!(keys.is_over(&before));
        let after = keys.claim_to_be_known(who);
        assert_eq!((faults(&keys, &after, 202), faults(&keys, &after, 401)), ([0, 1], [0, 0]));
        assert_eq!((faults(&keys, &before, 202), faults(&keys, &before, 401)), ([0, 0], [0, 0]));
    }

    #[test]
    fn who_may_no_longer_gets_only_what_was_published_before() {
        let mut rng = Rng::with_seed(1);
        let mut keys = Keys::make().unwrap();
        let topic = Topic::any_to_pull(&mut rng);
        let who = loop {
            let who = keys.some(&mut rng);
            keys.change(&mut rng).unwrap();
            keys.settle();
            if keys.is_over(&keys.claim(who, &topic)) && keys.fate(who) != Fate::Anybody {
                break who;
            }
        };
        let claim = keys.claim(who, &topic);
        let mut books = Books::default();
        let origin = |reloads| Origin {
            publisher: 1,
            sequence: 1,
            reloads,
            described: Described::default(),
        };
        keys.check_message(&mut books, &claim, origin(claim.verdict.since - 1), topic.name());
        assert!(books.are_sound());
        keys.check_message(&mut books, &claim, origin(claim.verdict.since), topic.name());
        assert!(!books.are_sound());
    }
}
