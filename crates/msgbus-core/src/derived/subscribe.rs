//! Cursors over a derived log.

use std::{ops::ControlFlow, sync::Arc, task::Waker};

use super::{
    DerivedLog, Reference, State,
    reference::{Found, Stored},
};
use crate::{
    error::{RecvError, SubscribeError},
    model::{Event, Message, MonotonicTime, Now, Position, StartPosition, TopicInfo, WallTime},
    options::{LagPolicy, SubscribeOptions},
    receive::TopicFilter,
    topic::{Cursor, CursorKey, Ordinal},
};

/// Messages that one reader has read from stores.
pub(crate) trait Pages {
    /// The message, or `None` if it is gone. An error if that is not known yet. Asked for rising ids of a topic.
    fn find(&mut self, topic: &Arc<TopicInfo>, id: u64) -> Result<Option<Message>, Stored>;
}

/// One reader of a derived log: what it may see, and what it has read from stores.
pub(crate) struct Reader<'a> {
    pub(crate) filter: Option<&'a mut dyn TopicFilter>,
    pub(crate) pages: &'a mut dyn Pages,
    /// How many messages were left out because of the filter.
    pub(crate) left_out: u64,
}

/// What a reader does after it has taken what it could under one lock.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It has events.
    Taken,
    /// It waits for the next message.
    Wait,
    /// It releases the lock, and continues.
    Again,
    /// It reads this message.
    Read(Stored),
    /// It ends.
    Over(RecvError),
}

impl DerivedLog {
    /// References that a reader passes under one lock without an event.
    const SLICE: usize = if cfg!(test) { 4 } else { 1024 };

    /// Whether a subscription that starts at a position asks for what the topics retain.
    pub(crate) fn asks_for_retained(&self, epoch: u64, position: Position) -> bool {
        match position {
            Position::New => false,
            Position::All | Position::Ago(_) | Position::At(_) => true,
            other => self.resume(epoch, other).is_none(),
        }
    }

    /// The id at which a subscription resumes. `None` if the position is not of this log.
    fn resume(&self, epoch: u64, position: Position) -> Option<u64> {
        let id = match position {
            Position::Id(id) => id,
            Position::After { epoch: of, id } if of == epoch => id.checked_add(1)?,
            Position::Start { epoch: of } if of == epoch => self.origin,
            _ => return None,
        };
        (self.origin..=self.next_id()).contains(&id).then_some(id)
    }

    /// Adds a cursor at a position. `retained` is the number of messages that the topics retain from the position on, if
    /// that may be more than there are references.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) fn subscribe(
        &mut self,
        epoch: u64,
        options: SubscribeOptions,
        retained: Option<u64>,
        now: Now,
    ) -> Result<(CursorKey, StartPosition), SubscribeError> {
        if self.state != State::Open {
            return Err(SubscribeError::Closed);
        }
        let SubscribeOptions { from, lag, label } = options;
        let start = self.resolve(epoch, from, retained, now);
        let StartPosition { requested_id, next_id, .. } = start;
        self.origin = self.origin.min(requested_id);
        self.unused_since = None;
        let next = (Ordinal::new(next_id), next_id);
        let cursor = Cursor::new(Ordinal::new(requested_id), next, lag, label);
        Ok((self.cursors.insert(cursor), start))
    }

    fn resolve(
        &self,
        epoch: u64,
        from: Position,
        retained: Option<u64>,
        now: Now,
    ) -> StartPosition {
        let starts = |requested_id: u64, next_id: u64, restarted| {
            let missed = next_id - requested_id;
            StartPosition { requested_id, next_id, missed, is_uncounted: false, restarted }
        };
        if from == Position::New {
            return starts(self.next_id(), self.next_id(), false);
        }
        if let Some(id) = self.resume(epoch, from) {
            return starts(id, id.max(self.first_id), false);
        }
        let (since, restarted) = match from {
            Position::At(time) => (Some(time.into()), false),
            Position::Ago(ago) => {
                // By the clock of `created`, which stands still after the system clock was set back.
                let latest = self.references.back().map_or(now.wall, Reference::created);
                (Some(now.wall.max(latest).before(ago.into())), false)
            }
            Position::All => (None, false),
            _ => (None, true),
        };
        let next_id = self.first_kept(since, now.monotonic);
        let left_out = retained.map_or(0, |all| {
            let references = self.references.range(self.index_of(next_id)..);
            let kept = references.filter(|reference| reference.may_be_kept(now.monotonic)).count();
            all.saturating_sub(kept as u64)
        });
        starts(next_id - left_out, next_id, restarted)
    }

    /// The id of the first message that was created at a time or later and may be there; that of the next one if there is
    /// none.
    fn first_kept(&self, since: Option<WallTime>, now: MonotonicTime) -> u64 {
        let is_wanted = |reference: &Reference| {
            since.is_none_or(|since| reference.created() >= since) && reference.may_be_kept(now)
        };
        let index = self.references.iter().position(is_wanted).unwrap_or(self.references.len());
        self.first_id + index as u64
    }

    /// The index of the reference with this id, or where it would be.
    fn index_of(&self, id: u64) -> usize {
        let index = usize::try_from(id.saturating_sub(self.first_id)).unwrap_or(usize::MAX);
        index.min(self.references.len())
    }

    /// Whether there is nothing for a cursor, not even an end.
    pub(crate) fn is_caught_up(&self, key: CursorKey) -> bool {
        let cursor = self.cursors.get(key);
        self.state == State::Open && cursor.next_id == self.next_id() && cursor.pending_gap == 0
    }

    /// Stores the waker of a cursor that has nothing to receive. Returns the waker that it replaces, to be dropped after
    /// the lock is released.
    #[must_use]
    pub(crate) fn park(&mut self, key: CursorKey, waker: &Waker) -> Option<Waker> {
        self.cursors.park(key, waker)
    }

    /// Removes a cursor. Returns its waker, to be dropped after the lock is released.
    #[must_use]
    pub(crate) fn unsubscribe(&mut self, key: CursorKey, now: MonotonicTime) -> Option<Waker> {
        let cursor = self.cursors.get(key);
        self.counters.missed += cursor.pending_gap + self.first_id.saturating_sub(cursor.next_id);
        let waker = self.cursors.remove(key);
        if self.cursors.len() == 0 {
            self.unused_since = Some(now);
        }
        waker
    }

    /// The payload size of the message that a cursor receives next, in bytes. `None` if there is none, or if a gap comes
    /// first. Unknown sizes count as large.
    pub(crate) fn next_size(&self, key: CursorKey, now: MonotonicTime) -> Option<usize> {
        let cursor = self.cursors.get(key);
        if cursor.pending_gap > 0 || cursor.next_id < self.first_id {
            return None;
        }
        match self.references.get(self.index_of(cursor.next_id))?.find(now) {
            Found::Kept(message) => Some(message.payload().len()),
            Found::Stored { .. } => Some(usize::MAX),
            Found::Gone => None,
        }
    }

    /// Takes events and passes them to `give`, until it wants no more.
    pub(crate) fn take(
        &mut self,
        key: CursorKey,
        now: MonotonicTime,
        reader: &mut Reader<'_>,
        give: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Step {
        let mut has_taken = false;
        loop {
            match self.next_event(key, now, reader) {
                Ok(event) => {
                    has_taken = true;
                    if give(event).is_break() {
                        return Step::Taken;
                    }
                }
                // What stopped it is found again by the next call.
                Err(_) if has_taken => return Step::Taken,
                Err(step) => return step,
            }
        }
    }

    /// Moves a cursor past the next event: a message or a gap.
    fn next_event(
        &mut self,
        key: CursorKey,
        now: MonotonicTime,
        reader: &mut Reader<'_>,
    ) -> Result<Event, Step> {
        let first_id = self.first_id;
        let cursor = self.cursors.get_mut(key);
        let gap = std::mem::take(&mut cursor.pending_gap);
        if gap > 0 {
            self.counters.missed += gap;
            return Ok(Event::Missed { count: gap, next_id: cursor.next_id });
        }
        let from = cursor.next_id.max(first_id);
        let overtaken = from - cursor.next_id;
        let Passed { id, missed, found } = self.pass(from, overtaken, now, reader);
        let cursor = self.cursors.get_mut(key);
        if missed > 0 && cursor.lag == LagPolicy::Disconnect {
            return Err(Step::Over(RecvError::Lagged { missed }));
        }
        reader.left_out += id - cursor.next_id - missed;
        (cursor.next, cursor.next_id) = (Ordinal::new(id), id);
        if missed > 0 {
            self.counters.missed += missed;
            return Ok(Event::Missed { count: missed, next_id: id });
        }
        let message = found?;
        (cursor.next, cursor.next_id) = (Ordinal::new(id + 1), id + 1);
        cursor.received += 1;
        self.counters.delivered += 1;
        Ok(Event::Message { id, message })
    }

    /// Passes the references from an id on that a reader may not see or whose messages are gone, after it has missed some
    /// before them.
    fn pass(
        &self,
        from: u64,
        mut missed: u64,
        now: MonotonicTime,
        reader: &mut Reader<'_>,
    ) -> Passed {
        let references = self.references.range(self.index_of(from)..);
        let mut id = from;
        for reference in references.take(Self::SLICE) {
            let topic = reference.topic();
            let is_seen = reader.filter.as_mut().is_none_or(|filter| filter.allows(topic));
            let found = match reference.find(now) {
                _ if !is_seen => None,
                Found::Kept(message) => Some(Ok(message)),
                Found::Stored { id } => match reader.pages.find(topic, id) {
                    Ok(message) => message.map(Ok),
                    Err(stored) => Some(Err(Step::Read(stored))),
                },
                Found::Gone => None,
            };
            if let Some(found) = found {
                return Passed { id, missed, found };
            }
            missed += u64::from(is_seen);
            id += 1;
        }
        let stop = match self.state {
            _ if id < self.next_id() => Step::Again,
            State::Open => Step::Wait,
            State::Closed | State::Dropped => Step::Over(RecvError::Closed),
        };
        Passed { id, missed, found: Err(stop) }
    }
}

/// Where a reader is after it has passed references.
struct Passed {
    id: u64,
    /// How many messages that it may see were gone.
    missed: u64,
    /// The message there, or why there is none.
    found: Result<Message, Step>,
}
