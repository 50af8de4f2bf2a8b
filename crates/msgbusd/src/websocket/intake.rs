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
    /// How many bytes of this and the messages before it have.
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
        if !inbox.is_unfinished() {
            self.unfinished = None;
            return ControlFlow::Continue(());
        }
        let (arrived, now) = (inbox.arrived(), Instant::now());
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

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Waker};

    use tokio::time::{advance, sleep};

    use super::{super::inbox::Next, *};

    /// Each read from a client that is faster than the server ends with a part of a message, and fills the same buffer.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_without_a_pause_is_in_time() {
        const LIMIT: Duration = Duration::from_secs(30);
        let frame = [&[0x81, 0xfe, 0x03, 0xe8, 0, 0, 0, 0][..], &[b'x'; 1000]].concat();
        let sent = frame.repeat(10_000);
        let mut wire = &sent[..];
        let cx = &mut Context::from_waker(Waker::noop());
        let (mut inbox, mut intake) = (Inbox::new(Vec::new(), 1 << 20, false), Intake::default());
        let mut alarm = pin!(sleep(1000 * LIMIT));
        for _ in 0..100 {
            while inbox.next().unwrap() == Next::Text {}
            assert!(inbox.poll_fill(&mut wire, cx).is_ready());
            inbox.rest();
            assert!(inbox.is_unfinished());
            assert!(intake.poll_unfinished(cx, &inbox, LIMIT, alarm.as_mut()).is_continue());
            advance(LIMIT / 2).await;
        }
        advance(LIMIT).await;
        let late = intake.poll_unfinished(cx, &inbox, LIMIT, alarm.as_mut());
        assert!(matches!(late, ControlFlow::Break(End::Unfinished)));
    }
}
