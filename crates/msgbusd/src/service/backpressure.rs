//! Back-pressure: how much may be taken out of a topic while memory in flight has reached `--max-inflight-bytes`. Then
//! it is one small message at a time: clients that read slowly do not block small messages, and no large message is
//! started.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use msgbus_core::{BatchLimit, Position, Subscription, TopicName};
use tokio::{
    sync::futures::OwnedNotified,
    time::{Sleep, sleep, timeout},
};

use super::error::ServiceError;
use crate::{
    limits::{inflight::Inflight, quota::QuotaPermit},
    state::App,
};

/// How often a waiter checks its topic again: the large message may have expired, or the topic may have been deleted.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How much of `limit` may be peeked at from a position, or, without a position, pulled; `None` for nothing. `small` is
/// the size, in bytes, up to which messages do not count as in flight.
pub(crate) fn admit(
    app: &App,
    topic: &TopicName,
    from: Option<Position>,
    limit: BatchLimit,
    small: usize,
) -> Option<BatchLimit> {
    admit_next(&app.inflight, limit, small, || app.bus.next_size(topic, from))
}

/// Like [`admit`], with the size of the next payload from `next_size`.
pub(super) fn admit_next(
    inflight: &Inflight,
    limit: BatchLimit,
    small: usize,
    next_size: impl FnOnce() -> Option<usize>,
) -> Option<BatchLimit> {
    if !inflight.is_full() {
        return Some(limit);
    }
    // Half of it, because a payload grows when it is encoded as JSON.
    let is_small = next_size().is_none_or(|size| size <= small / 2);
    is_small.then_some(BatchLimit { events: 1, ..limit })
}

/// Reserves memory for the answer of an engine, which brings up to this many bytes. It waits for a moment if there is
/// none.
///
/// # Errors
/// [`ServiceError::TooMuchInFlight`].
pub(super) async fn reserve(
    inflight: &Inflight,
    bytes: usize,
) -> Result<QuotaPermit, ServiceError> {
    let mut wait = MemoryWait::default();
    let has_room = poll_fn(|cx| wait.poll(cx, inflight, || (!inflight.is_full()).then_some(())));
    timeout(CHECK_INTERVAL, has_room).await.map_err(|_| ServiceError::TooMuchInFlight)?;
    Ok(inflight.overdraft(bytes.min(inflight.quota().limit())))
}

/// A wait for memory; empty while there is none.
#[derive(Debug, Default)]
pub(crate) struct MemoryWait(Option<Box<Wait>>);

#[derive(Debug)]
struct Wait {
    /// Ready when it is this waiter's turn.
    freed: Pin<Box<OwnedNotified>>,
    next_check: Pin<Box<Sleep>>,
}

impl MemoryWait {
    /// Waits until a subscription may receive, and returns how much.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        app: &App,
        subscription: &Subscription,
        limit: BatchLimit,
    ) -> Poll<BatchLimit> {
        let next_size = || subscription.next_size();
        self.poll(cx, &app.inflight, || {
            admit_next(&app.inflight, limit, Inflight::SMALL_FRAME, next_size)
        })
    }

    /// Waits until a pull may take messages up to its limit, or until there are none. `next_size` is the size of the next
    /// payload.
    pub(crate) fn poll_pull(
        &mut self,
        cx: &mut Context<'_>,
        app: &App,
        next_size: impl Fn() -> Option<usize>,
        limit: BatchLimit,
        small: usize,
    ) -> Poll<()> {
        self.poll(cx, &app.inflight, || {
            let next = next_size();
            let may = admit_next(&app.inflight, limit, small, || next);
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
                    inflight.quota().wake_next();
                }
                return Poll::Ready(admitted);
            }
            let wait = self.0.get_or_insert_with(|| Box::new(Wait::new(inflight)));
            if wait.freed.as_mut().poll(cx).is_ready() {
                wait.freed.set(inflight.quota().freed());
            } else if wait.next_check.as_mut().poll(cx).is_ready() {
                wait.next_check.set(sleep(CHECK_INTERVAL));
            } else {
                return Poll::Pending;
            }
        }
    }
}

impl Wait {
    fn new(inflight: &Inflight) -> Self {
        Self {
            freed: Box::pin(inflight.quota().freed()),
            next_check: Box::pin(sleep(CHECK_INTERVAL)),
        }
    }
}
