//! The cursor of a subscription to a topic that lives in an engine.
//!
//! It reads the history of the engine, page by page, until it reaches the window of the topic. Then it is a cursor of the
//! window. What the window has lost, or never had, only sends it back to the history, which says what is really gone.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker, ready},
};

use super::topic_cursor::TopicCursor;
use crate::{
    bus::{
        Follow, Op, PAGE, Read as SharedRead, SharedEngine, SharedTopic, TopicMap, clock, history,
    },
    engine::{EngineError, EngineMessage, Page, Skipped},
    error::{RecvError, SubscribeError},
    model::{Event, Message, Position, StartPosition, TopicInfo, TopicName},
    options::{BatchLimit, LagPolicy, SubscribeOptions},
    stats::SubscriptionStats,
    topic::Topic,
};

/// Dropping it unsubscribes.
pub(super) struct EngineCursor {
    follow: Follow,
    window: Arc<SharedTopic>,
    pub(super) info: Arc<TopicInfo>,
    lag: LagPolicy,
    label: Option<Arc<str>>,
    /// The lowest id of the next message to receive.
    position: u64,
    /// What was read from the history and not received.
    read: Read,
    reading: Option<Arc<SharedRead>>,
    /// `None` while it reads the history.
    live: Option<TopicCursor>,
    /// The window is known not to have all messages before this one.
    complete_from: u64,
    received: u64,
    missed: u64,
    /// Why the history could not be read the last time.
    unread: Option<EngineError>,
    end: Option<RecvError>,
}

/// Messages of the history. Then the cursor goes on at `next`.
#[derive(Default)]
struct Read {
    messages: VecDeque<EngineMessage>,
    /// What is gone between the last message and `next`.
    skipped: Skipped,
    next: u64,
}

impl fmt::Debug for EngineCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineCursor")
            .field("topic", &self.info.name)
            .field("position", &self.position)
            .field("is_live", &self.live.is_some())
            .finish_non_exhaustive()
    }
}

impl EngineCursor {
    /// Subscribes, when the window of the topic is open.
    pub(super) fn subscribe(
        engine: SharedEngine,
        map: &TopicMap,
        name: &TopicName,
        options: SubscribeOptions,
    ) -> Op<Result<(Self, StartPosition), SubscribeError>> {
        let (map, name) = (Weak::clone(&map.own), name.clone());
        Op::running(async move {
            let Some(map) = map.upgrade() else { return Err(SubscribeError::Closed) };
            let opened = Follow::open(&map, engine, &name).await;
            drop(map);
            let (follow, window) = opened?;
            let mut cursor = Self::new(follow, window, &options);
            if let Some(start) = cursor.start_in_window(options.from) {
                return Ok((cursor, start));
            }
            let read = history(cursor.follow.engine(), &name, options.from, PAGE).await;
            let (page, start) = read.map_err(SubscribeError::of_engine)?;
            if page.epoch != cursor.info.epoch {
                // The window is about to end.
                return Err(SubscribeError::of_engine(EngineError::Unavailable));
            }
            cursor.position = start.requested_id;
            cursor.arrive(page);
            Ok((cursor, start))
        })
    }

    fn new(follow: Follow, window: Arc<SharedTopic>, options: &SubscribeOptions) -> Self {
        let info = Arc::clone(window.lock().info());
        Self {
            follow,
            window,
            info,
            lag: options.lag,
            label: options.label.clone(),
            position: 0,
            read: Read { skipped: Some(0), ..Read::default() },
            reading: None,
            live: None,
            complete_from: 0,
            received: 0,
            missed: 0,
            unread: None,
            end: None,
        }
    }

    /// Starts in the window, if it has everything from the position on.
    fn start_in_window(&mut self, from: Position) -> Option<StartPosition> {
        let window = Arc::clone(&self.window);
        let mut locked = window.lock();
        let wanted = match from {
            Position::New => locked.next_id(),
            Position::Id(id) => id,
            Position::After { epoch, id } if epoch == self.info.epoch => id.checked_add(1)?,
            _ => return None,
        };
        if locked.is_deleted() || !(locked.first_id()..=locked.next_id()).contains(&wanted) {
            return None;
        }
        self.position = wanted;
        self.join(&mut locked, wanted);
        let next_id = locked.first_retained(wanted, clock::monotonic());
        let next_id = next_id.map_or(locked.next_id(), |entry| entry.id());
        let (missed, is_uncounted, restarted) = (0, false, false);
        Some(StartPosition { requested_id: wanted, next_id, missed, is_uncounted, restarted })
    }

    /// Becomes a cursor of the window.
    fn join(&mut self, locked: &mut Topic, at: u64) {
        let options = SubscribeOptions {
            from: Position::Id(at),
            lag: LagPolicy::Skip,
            label: self.label.clone(),
        };
        // It fails when the bus is closed. Then the window has ended.
        if let Ok((key, _)) = locked.subscribe(options, clock::now()) {
            let (window, info) = (Arc::clone(&self.window), Arc::clone(&self.info));
            self.live = Some(TopicCursor::joined(window, info, key));
        }
    }

    /// Takes a page that was read from the position on. If it reaches the window, the rest comes from there. Returns
    /// whether it brings anything.
    fn arrive(&mut self, page: Page) -> bool {
        let Page { messages, next, skipped, .. } = page;
        let mut read = Read { messages: messages.into(), skipped, next };
        let window = Arc::clone(&self.window);
        let mut locked = window.lock();
        let first = locked.first_id().max(self.complete_from);
        if !locked.is_deleted() && next >= first {
            let at = first.max(self.position.min(locked.next_id()));
            let cut = read.messages.partition_point(|read| read.message.id < at);
            let rest = read.messages.split_off(cut);
            if let Some(first) = rest.front() {
                read.skipped = first.skipped;
            }
            // What is gone after this point, the window still has.
            let after = read.messages.back().map_or(self.position, |read| read.message.id + 1);
            let most = at.saturating_sub(after);
            read.skipped = if most == 0 { Some(0) } else { read.skipped.map(|n| n.min(most)) };
            read.next = at;
            self.join(&mut locked, at);
        }
        drop(locked);
        let brings = self.live.is_some() || read.next > self.position;
        self.read = read;
        brings
    }

    /// Takes the next event of what was read.
    fn take_read(&mut self) -> Option<Result<Event, RecvError>> {
        let Read { messages, skipped, next } = &mut self.read;
        let (skipped, next_id) = match messages.front_mut() {
            Some(read) => (&mut read.skipped, read.message.id),
            None => (skipped, *next),
        };
        if *skipped != Some(0) {
            let count = skipped.unwrap_or(0);
            if self.lag == LagPolicy::Disconnect {
                return Some(Err(RecvError::Lagged { missed: count }));
            }
            *skipped = Some(0);
            self.missed += count;
            self.position = self.position.max(next_id);
            return Some(Ok(Event::Missed { count, next_id }));
        }
        let Some(EngineMessage { message, .. }) = messages.pop_front() else {
            self.position = self.position.max(next_id);
            return None;
        };
        self.position = message.id + 1;
        self.received += 1;
        Some(Ok(Message::recovered(&self.info, message).into()))
    }

    /// Takes the events that there are, up to a limit.
    pub(super) fn poll_batch(
        &mut self,
        cx: Option<&mut Context<'_>>,
        events: &mut Vec<Event>,
        limit: BatchLimit,
    ) -> Poll<Result<(), RecvError>> {
        let mut no_task = Context::from_waker(Waker::noop());
        let has_task = cx.is_some();
        let cx = cx.unwrap_or(&mut no_task);
        loop {
            if let Some(end) = self.end {
                return Poll::Ready(Err(end));
            }
            let polled = if self.take_read_batch(events, limit) {
                Poll::Ready(Ok(true))
            } else if self.end.is_some() {
                continue;
            } else if self.live.is_some() {
                self.poll_live(has_task.then_some(&mut *cx), events, limit)
            } else {
                self.poll_history(cx).map_ok(|()| false)
            };
            match ready!(polled) {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(end) => self.end = Some(end),
            }
        }
    }

    /// Takes events of what was read. Returns whether there were any.
    fn take_read_batch(&mut self, events: &mut Vec<Event>, limit: BatchLimit) -> bool {
        let before = events.len();
        let mut bytes = 0;
        while events.len() - before < limit.events.max(1) && bytes < limit.bytes.max(1) {
            match self.take_read() {
                Some(Ok(event)) => {
                    if let Event::Message { message, .. } = &event {
                        bytes += message.payload().len();
                    }
                    events.push(event);
                }
                Some(Err(end)) => {
                    self.end = Some(end);
                    break;
                }
                None => break,
            }
        }
        events.len() > before
    }

    /// Takes events from the window. Returns whether there were any.
    fn poll_live(
        &mut self,
        cx: Option<&mut Context<'_>>,
        events: &mut Vec<Event>,
        limit: BatchLimit,
    ) -> Poll<Result<bool, RecvError>> {
        let before = events.len();
        let Some(live) = &mut self.live else { return Poll::Ready(Ok(false)) };
        ready!(live.poll_batch(cx, events, limit))?;
        let mut kept = before;
        for index in before..events.len() {
            match &events[index] {
                Event::Missed { next_id, .. } => {
                    self.complete_from = *next_id;
                    self.live = None;
                    break;
                }
                // The window is behind the history.
                Event::Message { id, .. } if *id < self.position => {}
                Event::Message { id, .. } => {
                    self.position = id + 1;
                    self.received += 1;
                    events.swap(kept, index);
                    kept += 1;
                }
            }
        }
        events.truncate(kept);
        Poll::Ready(Ok(kept > before))
    }

    /// Reads the next page.
    fn poll_history(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecvError>> {
        let position = self.position;
        let reading = self.reading.get_or_insert_with(|| self.follow.read(position));
        let read = ready!(reading.poll(cx));
        self.reading = None;
        self.unread = None;
        match read {
            Ok((page, start)) if start.restarted || page.epoch != self.info.epoch => {
                // The numbers have begun again.
                Poll::Ready(Err(RecvError::Deleted))
            }
            Ok((page, _)) => {
                if self.arrive(page) {
                    return Poll::Ready(Ok(()));
                }
                self.wait_to_retry(cx)
            }
            Err(EngineError::Closed) => Poll::Ready(Err(RecvError::Closed)),
            // Also what only somebody can change who has access to the server, such as credentials.
            Err(error) => {
                self.unread = Some(error);
                self.wait_to_retry(cx)
            }
        }
    }

    fn wait_to_retry(&self, cx: &mut Context<'_>) -> Poll<Result<(), RecvError>> {
        match self.follow.wait_to_retry(cx) {
            Ok(()) => Poll::Pending,
            Err(EngineError::Closed) => Poll::Ready(Err(RecvError::Closed)),
            Err(_) => Poll::Ready(Err(RecvError::Deleted)),
        }
    }

    pub(super) fn poll_event(
        &mut self,
        cx: Option<&mut Context<'_>>,
    ) -> Poll<Result<Event, RecvError>> {
        let mut events = Vec::with_capacity(1);
        ready!(self.poll_batch(cx, &mut events, BatchLimit::ONE))?;
        events.pop().map_or(Poll::Pending, |event| Poll::Ready(Ok(event)))
    }

    pub(super) fn next_size(&self) -> Option<usize> {
        match (self.read.messages.front(), &self.live) {
            (Some(read), _) => (read.skipped == Some(0)).then_some(read.message.payload.len()),
            (None, Some(live)) if self.read.skipped == Some(0) => live.next_size(),
            _ => None,
        }
    }

    /// Why the engine does not deliver.
    pub(super) fn stalled(&self) -> Option<EngineError> {
        self.unread.or_else(|| self.follow.stalled())
    }

    pub(super) fn window_id(&self) -> u64 {
        self.follow.window_id()
    }

    pub(super) fn stats(&self) -> SubscriptionStats {
        let live = self.live.as_ref().map(TopicCursor::stats).unwrap_or_default();
        let pending = self.read.messages.len() as u64 + live.pending;
        SubscriptionStats { received: self.received, missed: self.missed, pending }
    }
}

impl SubscribeError {
    pub(crate) fn of_engine(error: EngineError) -> Self {
        match error {
            EngineError::Closed => Self::Closed,
            error => Self::Store(error.into()),
        }
    }
}
