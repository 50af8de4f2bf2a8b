//! Back-pressure: what may be taken out of a topic while memory in flight is at `--max-inflight-bytes`.
//! That is one small message at a time: nobody who reads slowly stops what is small, and nothing large is
//! begun.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use msgbus_core::{BatchLimit, Position, Pull, Subscription, TopicName};
use tokio::{
    sync::futures::OwnedNotified,
    time::{Sleep, sleep},
};

use crate::{limits::inflight::Inflight, state::App};

/// How often a waiter looks whether its topic has changed: the large message may have expired, or the topic
/// be gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How much of `limit` may be taken from here on, or, without a position, pulled; `None` for nothing.
/// `small` is what is not counted as in flight, in bytes.
pub(crate) fn find(
    app: &App,
    topic: &TopicName,
    from: Option<Position>,
    limit: BatchLimit,
    small: usize,
) -> Option<BatchLimit> {
    let one = BatchLimit { events: 1, ..limit };
    let next_size = || {
        let peek = app.bus.peek(topic, from, one)?;
        peek.messages().next().map(|next| next.payload().len())
    };
    admit(&app.inflight, limit, small, next_size)
}

/// The same, where the size of the next payload is known to something else.
fn admit(
    inflight: &Inflight,
    limit: BatchLimit,
    small: usize,
    next_size: impl FnOnce() -> Option<usize>,
) -> Option<BatchLimit> {
    if !inflight.is_full() {
        return Some(limit);
    }
    // Half of it: JSON makes more of a payload.
    let is_small = next_size().is_none_or(|size| size <= small / 2);
    is_small.then_some(BatchLimit { events: 1, ..limit })
}

/// One that may have to wait for memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryWait(Option<Box<Wait>>);

#[derive(Debug)]
struct Wait {
    /// Its turn, in the order of waiting.
    freed: Pin<Box<OwnedNotified>>,
    look_again: Pin<Box<Sleep>>,
}

impl MemoryWait {
    /// Waits until a subscription may receive, and says how much.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        app: &App,
        subscription: &Subscription,
        limit: BatchLimit,
    ) -> Poll<BatchLimit> {
        let next_size = || subscription.next_size();
        self.poll(cx, &app.inflight, || {
            admit(&app.inflight, limit, Inflight::SMALL_FRAME, next_size)
        })
    }

    /// Waits until a pull may take all of its limit, or has nothing to take yet.
    pub(crate) fn poll_pull(
        &mut self,
        cx: &mut Context<'_>,
        app: &App,
        pull: &Pull,
        limit: BatchLimit,
        small: usize,
    ) -> Poll<()> {
        self.poll(cx, &app.inflight, || {
            let next = pull.next_size();
            let may = admit(&app.inflight, limit, small, || next);
            (next.is_none() || may == Some(limit)).then_some(())
        })
    }

    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        inflight: &Inflight,
        admit: impl Fn() -> Option<T>,
    ) -> Poll<T> {
        loop {
            if let Some(admitted) = admit() {
                if self.0.take().is_some() {
                    inflight.bound().wake_next();
                }
                return Poll::Ready(admitted);
            }
            let wait = self.0.get_or_insert_with(|| Box::new(Wait::new(inflight)));
            if wait.freed.as_mut().poll(cx).is_ready() {
                wait.freed.set(inflight.bound().freed());
            } else if wait.look_again.as_mut().poll(cx).is_ready() {
                wait.look_again.set(sleep(LOOK_EVERY));
            } else {
                return Poll::Pending;
            }
        }
    }
}

impl Wait {
    fn new(inflight: &Inflight) -> Self {
        Self { freed: Box::pin(inflight.bound().freed()), look_again: Box::pin(sleep(LOOK_EVERY)) }
    }
}
