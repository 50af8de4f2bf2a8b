//! The right of somebody who stays to go on, across readings of the file.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use msgbus_core::TopicName;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    Caller,
    grant::{Action, Need},
    ring::Keyring,
};

/// What lets somebody follow a topic, or wait for its messages. Without keys it takes the room of a
/// pointer.
#[derive(Debug, Default)]
pub(crate) struct Permit(Option<Box<Watch>>);

#[derive(Debug)]
struct Watch {
    keyring: Arc<Keyring>,
    caller: Arc<Caller>,
    action: Action,
    topic: TopicName,
    /// The end of the reading that was looked at last; `None` before the first look.
    superseded: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Permit {
    pub(crate) fn new(
        keyring: &Arc<Keyring>,
        caller: Arc<Caller>,
        action: Action,
        topic: &TopicName,
    ) -> Self {
        Self(Some(Box::new(Watch {
            keyring: Arc::clone(keyring),
            caller,
            action,
            topic: topic.clone(),
            superseded: None,
        })))
    }

    /// Ready when it no longer holds.
    pub(crate) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(watch) = &mut self.0 else { return Poll::Pending };
        loop {
            if let Some(superseded) = &mut watch.superseded {
                ready!(superseded.as_mut().poll(cx));
            }
            let reading = watch.keyring.reading();
            let need = Need::Topic(watch.action, &watch.topic);
            if !reading.keys.same(&watch.caller).is_some_and(|caller| caller.may(need)) {
                return Poll::Ready(());
            }
            watch.superseded = Some(Box::pin(reading.superseded.clone().cancelled_owned()));
        }
    }

    /// Waits until it no longer holds.
    pub(crate) async fn revoked(&mut self) {
        poll_fn(|cx| self.poll_revoked(cx)).await;
    }
}
