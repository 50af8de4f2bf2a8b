//! The model of access control: what the keys allow while they change, compared with the server's
//! responses.

use super::{
    invariants::{Invariant, Invariants},
    keys::{Decision, Keys, Lifecycle, Principal, Verdict},
    payload::Origin,
    topics::Topic,
};

/// What an access depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Always,
    Never,
    Holder(Principal),
}

/// An access by a principal, and the verdict of the keys when it started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub(super) principal: Principal,
    scope: Scope,
    verdict: Verdict,
}

impl Keys {
    /// An access to a topic.
    pub(super) fn access(&self, principal: Principal, topic: &Topic) -> Access {
        let scope = match self.lifecycle(principal) {
            Lifecycle::Permanent => Scope::Always,
            Lifecycle::ChangingGrants if topic.is_quick() || topic.is_kept() => Scope::Always,
            Lifecycle::Anonymous if !topic.is_quick() => Scope::Never,
            Lifecycle::Intermittent | Lifecycle::ChangingGrants | Lifecycle::Anonymous => {
                Scope::Holder(principal)
            }
        };
        self.access_in(principal, scope)
    }

    /// An access that requires only a known key.
    pub(super) fn authentication(&self, principal: Principal) -> Access {
        let scope = match self.lifecycle(principal) {
            Lifecycle::Permanent | Lifecycle::ChangingGrants => Scope::Always,
            Lifecycle::Anonymous => Scope::Never,
            Lifecycle::Intermittent => Scope::Holder(principal),
        };
        self.access_in(principal, scope)
    }

    /// The same access, starting now.
    pub(super) fn renew(&self, access: &Access) -> Access {
        self.access_in(access.principal, access.scope)
    }

    fn access_in(&self, principal: Principal, scope: Scope) -> Access {
        Access { principal, scope, verdict: self.decide(scope) }
    }

    fn decide(&self, scope: Scope) -> Verdict {
        match scope {
            Scope::Always => Verdict { decision: Decision::Allowed, since: 0 },
            Scope::Never => Verdict { decision: Decision::Denied, since: 0 },
            Scope::Holder(principal) => self.verdict(principal),
        }
    }

    /// The decision of the keys, if it has not changed since the access started.
    fn constant_decision(&self, access: &Access) -> Decision {
        if self.decide(access.scope) == access.verdict {
            access.verdict.decision
        } else {
            Decision::Unsettled
        }
    }

    /// Whether the server must have ended this access by now.
    pub(super) fn is_revoked(&self, access: &Access) -> bool {
        self.decide(access.scope).decision == Decision::Denied
    }

    /// Compares a response with the keys. Returns whether it denies access.
    pub(super) fn check_response(
        &self,
        invariants: &mut Invariants,
        access: &Access,
        status: u16,
        what: &str,
    ) -> bool {
        let refused = matches!(status, 401 | 403);
        let says = || format!("{what} by {:?} {:?}: {status}", access.principal, access.verdict);
        match self.constant_decision(access) {
            Decision::Allowed => invariants.check(Invariant::StillAllowed, !refused, says),
            // At a limit the server answers 503 before it authenticates.
            Decision::Denied if status != 503 => {
                invariants.check(Invariant::NotAllowed, refused, says);
            }
            Decision::Denied | Decision::Unsettled => {}
        }
        if refused {
            let missing_grant = self.lifecycle(access.principal) == Lifecycle::ChangingGrants;
            let expected = if missing_grant { 403 } else { 401 };
            invariants.check(Invariant::Responses, status == expected, says);
            invariants.count("requests refused by the keys", 1);
        }
        refused
    }

    /// Checks a subscription that the server ended because of the keys.
    pub(super) fn check_revoked(&self, invariants: &mut Invariants, access: &Access, topic: &str) {
        let may_be_denied = self.constant_decision(access) != Decision::Allowed;
        invariants.check(Invariant::StillAllowed, may_be_denied, || {
            format!("following {topic} by {:?} {:?} was ended", access.principal, access.verdict)
        });
        invariants.count("subscriptions ended by the keys", 1);
    }

    /// Checks that a received message was not published after the reload that revoked the access.
    pub(super) fn check_message(
        &self,
        invariants: &mut Invariants,
        access: &Access,
        origin: Origin,
        topic: &str,
    ) {
        let now = self.decide(access.scope);
        if now.decision == Decision::Denied {
            invariants.check(Invariant::NotAllowed, origin.reloads < now.since, || {
                format!(
                    "{:?} received message {} of publisher {} in {topic}, published after reload {}, but \
                     is denied since reload {}",
                    access.principal, origin.sequence, origin.publisher, origin.reloads, now.since
                )
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::{super::payload::Described, *};

    /// The violations of both access invariants after a response.
    fn violations(keys: &Keys, access: &Access, status: u16) -> [u64; 2] {
        let mut invariants = Invariants::default();
        keys.check_response(&mut invariants, access, status, "");
        [Invariant::StillAllowed, Invariant::NotAllowed]
            .map(|invariant| invariants.state(invariant).map_or(0, |state| state.violations))
    }

    #[test]
    fn either_answer_is_right_only_while_the_keys_change() {
        let mut rng = Rng::with_seed(1);
        let mut keys = Keys::make().unwrap();
        let principal = loop {
            let principal = keys.random_principal(&mut rng);
            if keys.lifecycle(principal) == Lifecycle::Intermittent {
                break principal;
            }
        };
        let before = keys.authentication(principal);
        assert_eq!(
            (violations(&keys, &before, 202), violations(&keys, &before, 401)),
            ([0, 0], [1, 0])
        );
        while keys.verdict(principal).decision != Decision::Unsettled {
            keys.change(&mut rng).unwrap();
        }
        let meanwhile = keys.authentication(principal);
        for access in [&before, &meanwhile] {
            assert_eq!(
                (violations(&keys, access, 202), violations(&keys, access, 401)),
                ([0, 0], [0, 0])
            );
        }
        keys.record_reload();
        assert!(keys.is_revoked(&before));
        let after = keys.authentication(principal);
        assert_eq!(
            (violations(&keys, &after, 202), violations(&keys, &after, 401)),
            ([0, 1], [0, 0])
        );
        assert_eq!(
            (violations(&keys, &before, 202), violations(&keys, &before, 401)),
            ([0, 0], [0, 0])
        );
    }

    #[test]
    fn who_may_no_longer_gets_only_what_was_published_before() {
        let mut rng = Rng::with_seed(1);
        let mut keys = Keys::make().unwrap();
        let topic = Topic::any_to_pull(&mut rng);
        let principal = loop {
            let principal = keys.random_principal(&mut rng);
            keys.change(&mut rng).unwrap();
            keys.record_reload();
            if keys.is_revoked(&keys.access(principal, &topic))
                && keys.lifecycle(principal) != Lifecycle::Anonymous
            {
                break principal;
            }
        };
        let access = keys.access(principal, &topic);
        let mut invariants = Invariants::default();
        let origin = |reloads| Origin {
            publisher: 1,
            sequence: 1,
            reloads,
            described: Described::default(),
        };
        keys.check_message(
            &mut invariants,
            &access,
            origin(access.verdict.since - 1),
            topic.name(),
        );
        assert!(invariants.none_violated());
        keys.check_message(&mut invariants, &access, origin(access.verdict.since), topic.name());
        assert!(!invariants.none_violated());
    }
}
