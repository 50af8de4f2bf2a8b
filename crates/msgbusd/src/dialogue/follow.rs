//! A subscription to a topic or a pattern.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use msgbus_core::Op;

use super::{
    Contact, Conversation, Dialect, End,
    turns::{Turn, named_turn},
};
use crate::service::{error::ServiceError, follower::Follower};

/// A subscription to a topic or a pattern.
#[derive(Debug)]
pub(super) struct Follow<D: Dialect> {
    pub(super) name: D::Name,
    pub(super) stage: Stage<D>,
}

#[derive(Debug)]
pub(super) enum Stage<D: Dialect> {
    /// The position is not known yet.
    Opening(Box<(Following, D::Opening)>),
    Open(Follower),
}

/// A subscription that begins.
pub(crate) type Following = Op<Result<Follower, ServiceError>>;

impl<D: Dialect> Conversation<D> {
    /// Begins a subscription, with a name that is not in use.
    pub(crate) fn follow(
        &mut self,
        name: D::Name,
        mut opening: D::Opening,
        mut following: Following,
    ) {
        let Self { contact, activities, .. } = self;
        match Pin::new(&mut following).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => {
                activities.opening += 1;
                activities.follow(name, Stage::Opening(Box::new((following, opening))));
            }
            Poll::Ready(Ok(mut follower)) => {
                follower.wake_directly();
                if D::opened(contact, &name, &mut opening, Ok(&follower)) {
                    activities.follow(name, Stage::Open(follower));
                }
            }
            Poll::Ready(Err(error)) => {
                D::opened(contact, &name, &mut opening, Err(error));
            }
        }
    }
}

impl<D: Dialect> Follow<D> {
    /// Waits until the position is known, or sends a batch of messages.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        contact: &mut Contact<D>,
        opening: &mut usize,
    ) -> Turn<D> {
        let Self { name, stage } = self;
        let waiting = match stage {
            Stage::Open(follower) => {
                let give = |item, next_id| D::item(contact, name, item, next_id);
                return named_turn(follower.poll_batch(cx, give).map_err(End::from));
            }
            Stage::Opening(waiting) => waiting,
        };
        let goes_on = match Pin::new(&mut waiting.0).poll(cx) {
            Poll::Pending => return Turn::Waits,
            Poll::Ready(Err(error)) => {
                D::opened(contact, name, &mut waiting.1, Err(error));
                false
            }
            Poll::Ready(Ok(mut follower)) => {
                follower.wake_directly();
                let goes_on = D::opened(contact, name, &mut waiting.1, Ok(&follower));
                *stage = Stage::Open(follower);
                *opening -= 1;
                goes_on
            }
        };
        if goes_on { Turn::Continues } else { Turn::Closed }
    }

    /// Lets others have what it waits for, while the client accepts nothing. Ready when the keys no longer allow it.
    pub(super) fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Stage::Open(follower) = &mut self.stage else { return Poll::Pending };
        follower.stop_waiting_for_memory();
        follower.poll_revoked(cx)
    }

    pub(super) fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening(_))
    }

    pub(super) fn into_follower(self) -> Option<Follower> {
        match self.stage {
            Stage::Open(follower) => Some(follower),
            Stage::Opening(_) => None,
        }
    }
}
