//! The cursor of a subscription to a pattern.

use std::{
    fmt,
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use crate::{
    bus::{SharedPattern, StoredPages, clock},
    derived::{Reader, Step, Stored},
    error::RecvError,
    model::{Event, TopicInfo},
    options::BatchLimit,
    stats::SubscriptionStats,
    topic::CursorKey,
};

/// Decides of which topics a subscription to a pattern receives messages.
///
/// It is called for every message, when the subscription is about to receive it, while locks are held: it must be quick,
/// and must not use the bus.
pub trait TopicFilter: fmt::Debug + Send + Sync {
    /// Whether the subscription receives messages of this topic now.
    fn allows(&mut self, topic: &TopicInfo) -> bool;
}

/// A cursor over a derived log. Dropping it unsubscribes.
#[derive(Debug)]
pub(super) struct PatternCursor {
    pattern: Arc<SharedPattern>,
    key: CursorKey,
    filter: Option<Box<dyn TopicFilter>>,
    /// What was read from stores, for messages that are not in memory.
    pages: StoredPages,
    /// The message to read next.
    unread: Option<Stored>,
    /// How many messages the filter has left out.
    left_out: u64,
}

impl PatternCursor {
    pub(super) fn new(pattern: Arc<SharedPattern>, key: CursorKey) -> Self {
        Self {
            pattern,
            key,
            filter: None,
            pages: StoredPages::default(),
            unread: None,
            left_out: 0,
        }
    }

    pub(super) fn set_filter(&mut self, filter: Box<dyn TopicFilter>) {
        self.filter = Some(filter);
    }

    pub(super) fn name(&self) -> &str {
        self.pattern.name()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.pattern.epoch()
    }

    pub(super) fn stats(&self) -> SubscriptionStats {
        let stats = self.pattern.lock().subscription_stats(self.key);
        SubscriptionStats { missed: stats.missed - self.left_out, ..stats }
    }

    pub(super) fn next_size(&self) -> Option<usize> {
        self.pattern.lock().next_size(self.key, clock::monotonic())
    }

    /// Takes the next event.
    pub(super) fn poll_event(
        &mut self,
        cx: Option<&mut Context<'_>>,
    ) -> Poll<Result<Event, RecvError>> {
        let mut taken = None;
        let polled = self.poll_take(cx, &mut |event| {
            taken = Some(event);
            ControlFlow::Break(())
        });
        match ready!(polled) {
            // It was ready, so there is an event.
            Ok(()) => taken.map_or(Poll::Pending, |event| Poll::Ready(Ok(event))),
            Err(end) => Poll::Ready(Err(end)),
        }
    }

    /// Takes the events that there are, up to a limit.
    pub(super) fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        events: &mut Vec<Event>,
        limit: BatchLimit,
    ) -> Poll<Result<(), RecvError>> {
        let (mut count, mut bytes) = (0, 0);
        self.poll_take(Some(cx), &mut |event| {
            count += 1;
            if let Event::Message { message, .. } = &event {
                bytes += message.payload().len();
            }
            events.push(event);
            if count < limit.events && bytes < limit.bytes {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
    }

    /// Takes events under the log's lock. If there is nothing, parks the task of `cx` under the same lock, so that no
    /// publish can fall in between. Reads what is needed from stores without a lock.
    fn poll_take(
        &mut self,
        cx: Option<&mut Context<'_>>,
        give: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Poll<Result<(), RecvError>> {
        let has_task = cx.is_some();
        let mut no_task = Context::from_waker(Waker::noop());
        let cx = cx.unwrap_or(&mut no_task);
        loop {
            ready!(self.pages.poll_read(cx, &self.pattern, self.unread.take()))?;
            let mut log = self.pattern.lock();
            let step = if log.is_caught_up(self.key) {
                Step::Wait
            } else {
                let filter =
                    self.filter.as_deref_mut().map(|filter| filter as &mut dyn TopicFilter);
                let mut reader = Reader { filter, pages: &mut self.pages, left_out: 0 };
                let step = log.take(self.key, clock::monotonic(), &mut reader, give);
                self.left_out += reader.left_out;
                step
            };
            match step {
                Step::Taken => return Poll::Ready(Ok(())),
                Step::Again => {}
                Step::Read(stored) => self.unread = Some(stored),
                Step::Over(end) => return Poll::Ready(Err(end)),
                Step::Wait => {
                    let replaced = has_task.then(|| log.park(self.key, cx.waker()));
                    drop(log);
                    drop(replaced);
                    self.pages.clear();
                    return Poll::Pending;
                }
            }
        }
    }
}

impl Drop for PatternCursor {
    fn drop(&mut self) {
        self.pattern.unsubscribe(self.key);
    }
}
