//! Room for what is about to be taken out of a topic. At `--max-inflight-bytes` that is one small message
//! at a time: nobody who reads slowly stops what is small, and nothing large is begun.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use msgbus_core::{BatchLimit, Position, Subscription, TopicName};
use tokio::time::{Sleep, sleep};

use super::App;
use crate::inflight::Inflight;

/// How often somebody who waits for room looks again.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How much of `limit` may be taken from here on, or, without a position, pulled; `None` for nothing.
/// `small` is what is not counted as in flight, in bytes.
pub(in crate::http) fn find(
    app: &App,
    topic: &TopicName,
    from: Option<Position>,
    limit: BatchLimit,
    small: usize,
) -> Option<BatchLimit> {
    if !app.inflight.is_full() {
        return Some(limit);
    }
    let one = BatchLimit { events: 1, ..limit };
    let next = app.bus.peek(topic, from, one).and_then(|peek| peek.messages.into_iter().next());
    // Half of it: JSON makes more of a payload.
    next.is_none_or(|message| message.payload().len() <= small / 2).then_some(one)
}

/// The same for somebody who follows a topic and has come to this id.
pub(in crate::http) fn to_follow(
    app: &App,
    subscription: &Subscription,
    next_id: u64,
    limit: BatchLimit,
) -> Option<BatchLimit> {
    let topic = &subscription.topic().name;
    find(app, topic, Some(Position::Id(next_id)), limit, Inflight::SMALL)
}

/// Somebody who may have to wait for room.
#[derive(Debug, Default)]
pub(in crate::http) struct Patience(Option<Pin<Box<Sleep>>>);

impl Patience {
    /// Looks for room, again and again.
    pub(in crate::http) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut find: impl FnMut() -> Option<T>,
    ) -> Poll<T> {
        loop {
            let found = find();
            if let Some(found) = found {
                self.0 = None;
                return Poll::Ready(found);
            }
            let timer = self.0.get_or_insert_with(|| Box::pin(sleep(LOOK_EVERY)));
            ready!(timer.as_mut().poll(cx));
            self.0 = None;
        }
    }
}
