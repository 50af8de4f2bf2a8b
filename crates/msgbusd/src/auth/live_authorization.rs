//! Authorization of a long-lived request, checked again whenever the key file is reloaded.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{Keys, Permission, Principal, grant::Action, keyring::Keyring, target::Target};

/// The authorization to follow a topic or some of a pattern, or to wait for messages. If the server has no keys, it takes the memory of
/// one pointer.
#[derive(Debug, Default)]
pub(crate) struct LiveAuthorization(Option<Box<Inner>>);

#[derive(Debug)]
struct Inner {
    keyring: Arc<Keyring>,
    principal: Arc<Principal>,
    /// `None` for what every holder of a key may do.
    action: Option<Action>,
    target: Target,
    last_check: Option<Check>,
    /// Revoked once, it stays so: whoever saw it first may have dropped messages.
    is_revoked: bool,
}

/// The last check of the keys that succeeded.
#[derive(Debug)]
struct Check {
    generation: u64,
    superseded: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The waker that is registered with `superseded`.
    waker: Waker,
}

impl Inner {
    fn allows(&self, keys: &Keys) -> bool {
        let of_target = |action| self.target.permission(action);
        let permission = self.action.map_or(Permission::Anything, of_target);
        keys.current(&self.principal).is_some_and(|principal| principal.can(permission))
    }
}

impl LiveAuthorization {
    pub(crate) fn new(
        keyring: &Arc<Keyring>,
        principal: Arc<Principal>,
        action: Option<Action>,
        target: Target,
    ) -> Self {
        Self(Some(Box::new(Inner {
            keyring: Arc::clone(keyring),
            principal,
            action,
            target,
            last_check: None,
            is_revoked: false,
        })))
    }

    /// Ready when the keys no longer allow the action. Between two reloads a poll is one atomic load and takes no lock,
    /// so it is cheap enough for each delivery.
    pub(crate) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(inner) = &mut self.0 else { return Poll::Pending };
        if inner.is_revoked {
            return Poll::Ready(());
        }
        loop {
            let generation = inner.keyring.generation();
            if let Some(last_check) = &mut inner.last_check
                && last_check.generation == generation
            {
                if last_check.waker.will_wake(cx.waker()) {
                    return Poll::Pending;
                }
                last_check.waker.clone_from(cx.waker());
                ready!(last_check.superseded.as_mut().poll(cx));
            }
            let snapshot = inner.keyring.snapshot();
            if !inner.allows(&snapshot.keys) {
                inner.is_revoked = true;
                return Poll::Ready(());
            }
            let mut superseded = Box::pin(snapshot.superseded.clone().cancelled_owned());
            if superseded.as_mut().poll(cx).is_pending() {
                let waker = cx.waker().clone();
                inner.last_check = Some(Check { generation, superseded, waker });
                return Poll::Pending;
            }
        }
    }

    /// Whether the keys do not allow the action, or did not when it was polled.
    pub(crate) fn is_revoked(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.is_revoked) || !self.is_valid()
    }

    /// Checks the current keys, whatever was polled before.
    pub(crate) fn is_valid(&self) -> bool {
        self.0.as_ref().is_none_or(|inner| inner.allows(&inner.keyring.snapshot().keys))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, task::Waker};

    use super::*;
    use crate::auth::{KeyFile, NewKey};

    #[test]
    fn a_grant_that_comes_back_does_not_take_a_revocation_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let key = NewKey::make("k", &["subscribe:t".parse().unwrap()]).unwrap();
        fs::write(file.path(), &key.lines).unwrap();
        let keyring = Arc::new(Keyring::new(KeyFile::read(file.path()).unwrap()));
        let principal = keyring.authenticate(&key.secret).unwrap();
        let topic = "t".parse().unwrap();
        let mut authorization =
            LiveAuthorization::new(&keyring, principal, Some(Action::Subscribe), topic);
        let mut context = Context::from_waker(Waker::noop());
        assert!(authorization.poll_revoked(&mut context).is_pending());
        for text in ["[anonymous]\nallow = []\n", &key.lines] {
            fs::write(file.path(), text).unwrap();
            keyring.reload().unwrap();
            assert!(authorization.poll_revoked(&mut context).is_ready(), "{text}");
        }
    }
}
