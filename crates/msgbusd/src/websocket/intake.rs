//! The bounds of what a client sends on a websocket with an inbox: memory, and time for the rest of a message.

use std::{ops::ControlFlow, pin::Pin, task::Context, time::Duration};

use tokio::time::{Instant, Sleep};

use super::{end::End, inbox::Inbox};
use crate::limits::{inflight::Inflight, quota::QuotaPermit};

/// What has arrived on one websocket and is not handled.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    /// Counts what has arrived of a message as in flight.
    permit: Option<QuotaPermit>,
    /// A message that has not arrived as a whole.
    unfinished: Option<Unfinished>,
}

/// A message that has not arrived as a whole.
#[derive(Debug)]
struct Unfinished {
    /// How much of it has, in bytes.
    arrived: usize,
    /// When more of it must have arrived.
    deadline: Instant,
}

impl Intake {
    /// Frees memory that is not needed while the session waits, and counts what a message takes that has not arrived as a
    /// whole, or has to wait. Of one that has arrived, some may have been handled, so it is not refused.
    pub(crate) fn rest(&mut self, inbox: &mut Inbox, inflight: &Inflight) -> ControlFlow<End> {
        inbox.rest();
        let (memory, has_begun) = (inbox.memory(), inbox.has_text());
        if memory <= Inflight::SMALL {
            self.permit = None;
        } else if has_begun {
            inflight.overdraw(&mut self.permit, memory);
        } else if !inflight.reserve(&mut self.permit, memory, Inflight::SMALL) {
            return ControlFlow::Break(End::NoMemory);
        }
        ControlFlow::Continue(())
    }

    /// Ends the session if a part of a message has arrived, and no more of it within the time limit of request bodies.
    pub(crate) fn poll_unfinished(
        &mut self,
        cx: &mut Context<'_>,
        inbox: &Inbox,
        limit: Duration,
        mut alarm: Pin<&mut Sleep>,
    ) -> ControlFlow<End> {
        let arrived = inbox.unfinished();
        if arrived == 0 {
            self.unfinished = None;
            return ControlFlow::Continue(());
        }
        let now = Instant::now();
        let unfinished = match self.unfinished.take() {
            Some(known) if known.arrived == arrived => known,
            _ => Unfinished { arrived, deadline: now + limit },
        };
        let Unfinished { deadline, .. } = *self.unfinished.insert(unfinished);
        if deadline <= now {
            return ControlFlow::Break(End::Unfinished);
        }
        if deadline < alarm.deadline() {
            alarm.as_mut().reset(deadline);
            if alarm.poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        ControlFlow::Continue(())
    }
}
