//! Authorization of a long-lived request, checked again whenever the key file is reloaded.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use msgbus_core::TopicName;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    Keys, Principal,
    grant::{Action, Permission},
    keyring::Keyring,
};

/// The authorization to follow a topic, or to wait for its messages. If the server has no keys, it takes the memory of
/// one pointer.
#[derive(Debug, Default)]
pub(crate) struct LiveAuthorization(Option<Box<Inner>>);

#[derive(Debug)]
struct Inner {
    keyring: Arc<Keyring>,
    principal: Arc<Principal>,
    action: Action,
    topic: TopicName,
    last_check: Option<Check>,
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
        let permission = Permission::Topic(self.action, &self.topic);
        keys.current(&self.principal).is_some_and(|principal| principal.can(permission))
    }
}

impl LiveAuthorization {
    pub(crate) fn new(
        keyring: &Arc<Keyring>,
        principal: Arc<Principal>,
        action: Action,
        topic: &TopicName,
    ) -> Self {
        Self(Some(Box::new(Inner {
            keyring: Arc::clone(keyring),
            principal,
            action,
            topic: topic.clone(),
            last_check: None,
        })))
    }

    /// Ready when the keys no longer allow the action. Between two reloads a poll is one atomic load and takes no lock,
    /// so it is cheap enough for each delivery.
    pub(crate) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(inner) = &mut self.0 else { return Poll::Pending };
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

    /// Checks the current keys, whatever was polled before.
    pub(crate) fn is_valid(&self) -> bool {
        self.0.as_ref().is_none_or(|inner| inner.allows(&inner.keyring.snapshot().keys))
    }
}
