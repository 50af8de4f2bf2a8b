//! A subscription whose position is not known yet.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use msgbus_core::Op;

use super::{
    answer::{Answer, write_refusal},
    follow::Follow,
    identifier::Label,
    output::Output,
    refusal::Refusal,
};
use crate::service::{error::ServiceError, follower::Follower};

/// A `sub` that is not answered yet.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) sid: Label,
    rid: Option<Label>,
    following: Op<Result<Follower, ServiceError>>,
    /// The `unsub` that came meanwhile. It is answered after the `sub`.
    unsubscribed: Option<Unsubscribed>,
}

/// An `unsub`, with its `rid`.
#[derive(Debug)]
struct Unsubscribed(Option<Label>);

/// What became of a `sub`.
pub(super) enum Opened {
    Follow(Box<Follow>),
    /// Nothing: it was refused, or is ended again.
    Closed,
}

impl Opening {
    pub(super) fn new(
        sid: Label,
        rid: Option<Label>,
        following: Op<Result<Follower, ServiceError>>,
    ) -> Self {
        Self { sid, rid, following, unsubscribed: None }
    }

    /// Ends the subscription once it has begun. `rid` is that of the `unsub`.
    pub(super) fn unsubscribe(&mut self, rid: Option<Label>) -> Result<(), Refusal> {
        if self.unsubscribed.is_some() {
            return Err(Refusal::UnknownSid);
        }
        self.unsubscribed = Some(Unsubscribed(rid));
        Ok(())
    }

    /// Answers the `sub`, and the `unsub` that came meanwhile, with errors.
    pub(super) fn refuse(&self, error: ServiceError, output: &mut Output<'_>) {
        let rid = self.rid.as_ref().map(|rid| rid.as_bytes());
        write_refusal(&error.into(), rid, Some("sub"), output);
        if let Some(Unsubscribed(rid)) = &self.unsubscribed {
            let rid = rid.as_ref().map(|rid| rid.as_bytes());
            write_refusal(&Refusal::UnknownSid, rid, Some("unsub"), output);
        }
    }

    /// Waits until the position is known, and answers.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, output: &mut Output<'_>) -> Poll<Opened> {
        let followed = ready!(Pin::new(&mut self.following).poll(cx));
        let follower = match followed {
            Ok(follower) => follower,
            Err(error) => {
                self.refuse(error, output);
                return Poll::Ready(Opened::Closed);
            }
        };
        let unsubscribed = self.unsubscribed.take();
        let rid = self.rid.as_ref().map(|rid| rid.as_bytes());
        let follow = Follow::new(self.sid.clone(), follower);
        if rid.is_some() {
            follow.answer().write(rid, output);
        }
        match unsubscribed {
            None => Poll::Ready(Opened::Follow(Box::new(follow))),
            Some(Unsubscribed(rid)) => {
                follow.log_end("unsub");
                if let Some(rid) = rid {
                    Answer::Sid(follow.sid).write(Some(rid.as_bytes()), output);
                }
                Poll::Ready(Opened::Closed)
            }
        }
    }
}
