//! The right of somebody who stays to go on, across readings of the file.

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
    ring::Keyring,
};

/// What lets somebody follow a topic, or wait for its messages. Without keys it takes the room of a
/// pointer.
#[derive(Debug, Default)]
pub(crate) struct LiveAuthorization(Option<Box<Watch>>);

#[derive(Debug)]
struct Watch {
    keyring: Arc<Keyring>,
    principal: Arc<Principal>,
    action: Action,
    topic: TopicName,
    looked: Option<Looked>,
}

/// A look at the keys that found them to allow it.
#[derive(Debug)]
struct Looked {
    generation: u64,
    superseded: Pin<Box<WaitForCancellationFutureOwned>>,
    /// What is woken when these keys are superseded.
    waker: Waker,
}

impl Watch {
    fn holds_by(&self, keys: &Keys) -> bool {
        let need = Permission::Topic(self.action, &self.topic);
        keys.same(&self.principal).is_some_and(|principal| principal.may(need))
    }
}

impl LiveAuthorization {
    pub(crate) fn new(
        keyring: &Arc<Keyring>,
        principal: Arc<Principal>,
        action: Action,
        topic: &TopicName,
    ) -> Self {
        Self(Some(Box::new(Watch {
            keyring: Arc::clone(keyring),
            principal,
            action,
            topic: topic.clone(),
            looked: None,
        })))
    }

    /// Ready when it no longer holds. Between two readings of the file it is one atomic load: a poll for
    /// each delivery takes no lock.
    pub(crate) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(watch) = &mut self.0 else { return Poll::Pending };
        loop {
            let generation = watch.keyring.generation();
            if let Some(looked) = &mut watch.looked
                && looked.generation == generation
            {
                if looked.waker.will_wake(cx.waker()) {
                    return Poll::Pending;
                }
                looked.waker.clone_from(cx.waker());
                ready!(looked.superseded.as_mut().poll(cx));
            }
            let reading = watch.keyring.reading();
            if !watch.holds_by(&reading.keys) {
                return Poll::Ready(());
            }
            let mut superseded = Box::pin(reading.superseded.clone().cancelled_owned());
            if superseded.as_mut().poll(cx).is_pending() {
                let waker = cx.waker().clone();
                watch.looked = Some(Looked { generation, superseded, waker });
                return Poll::Pending;
            }
        }
    }

    /// Whether it holds now, whatever was polled before.
    pub(crate) fn holds(&self) -> bool {
        self.0.as_ref().is_none_or(|watch| watch.holds_by(&watch.keyring.reading().keys))
    }
}
