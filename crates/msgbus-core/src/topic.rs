//! The rules of one topic. No lock and no clock here: callers hold the one and pass the other, so
//! that everything can be tested with invented times.

use std::{sync::Arc, task::Waker, time::Duration};

use crate::{
    audience::Audience,
    budget::Reservation,
    clock::{Now, Span, Tick, Wall},
    cursors::{Cursor, CursorKey, LagPolicy, Parked},
    error::{NoRoom, PublishError, RecvError, SubscribeError},
    event::{Event, Peek, Start},
    log::Log,
    message::{Draft, Headers, Message, TopicInfo},
    options::{BatchLimit, Overflow, SubscribeOptions, TopicSettings},
    position::Position,
    removed::Removed,
    stats::{Counters, Departed, SubscriberStats, SubscriptionStats, TopicStats},
    waiters::Ticket,
    wakes::{self, Wakes},
};

#[cfg(test)]
mod tests;

/// One topic: its log, the cursors over it, and the bounds.
#[derive(Debug)]
pub(crate) struct Topic {
    info: Arc<TopicInfo>,
    settings: TopicSettings,
    /// Of the settings, as it is needed.
    ttl: Span,
    /// Headers of the latest message that had any, shared with the next one if equal.
    headers: Option<Arc<Headers>>,
    life: Life,
    log: Log,
    /// The id of the next message to pull: of those retained, the ones below it were pulled.
    pull_next: u64,
    audience: Audience,
    counters: Counters,
    room: Reservation,
    /// Messages that have left and are to be freed without the lock.
    removed: Removed,
    next_ticket: Ticket,
    /// Whether a publish was ever accepted. Until then the topic exists for its consumers only: it
    /// goes with the last of them, and counts in no bound of the bus.
    was_published: bool,
    /// What the topic itself counts for in `room`, in bytes.
    own_charge: u64,
    last_created: Wall,
    last_publish: Tick,
}

/// How much is to be appended at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchSize {
    /// In messages.
    pub(crate) count: usize,
    /// In bytes, as the bounds count them.
    pub(crate) charge: u64,
}

impl BatchSize {
    pub(crate) fn of(drafts: &[Draft]) -> Self {
        Self { count: drafts.len(), charge: drafts.iter().map(Draft::charge).sum() }
    }
}

/// Whether a topic still takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// The bus is closed: what is retained may still be read.
    Closed,
    /// The topic is out of the map: whoever still holds it has to look again.
    Deleted,
}

impl Topic {
    /// What a topic counts for in the bound of the bus beyond its name and messages, in bytes.
    const OVERHEAD: u64 = 512;
    /// A topic without use is forgotten after this many times its ttl, but not before the next.
    const IDLE_TTLS: u32 = 10;
    const SHORTEST_IDLE: Duration = Duration::from_secs(600);

    pub(crate) fn new(
        info: Arc<TopicInfo>,
        settings: TopicSettings,
        room: Reservation,
        now: Now,
    ) -> Self {
        let own_charge = info.name.as_str().len() as u64 + Self::OVERHEAD;
        Self {
            last_created: now.wall,
            info,
            settings,
            ttl: settings.ttl.into(),
            headers: None,
            life: Life::Open,
            log: Log::default(),
            pull_next: 0,
            audience: Audience::default(),
            counters: Counters::default(),
            room,
            removed: Removed::default(),
            next_ticket: 0,
            was_published: false,
            own_charge,
            last_publish: now.tick,
        }
    }

    pub(crate) fn info(&self) -> &Arc<TopicInfo> {
        &self.info
    }

    /// Whether the topic has left the map: its name may have a new one by now.
    pub(crate) fn is_deleted(&self) -> bool {
        self.life == Life::Deleted
    }

    /// The id of the next message.
    pub(crate) fn next_id(&self) -> u64 {
        self.log.next_id()
    }

    /// Whether a publish was ever accepted.
    pub(crate) fn was_published(&self) -> bool {
        self.was_published
    }

    /// Messages to be freed when the lock is released.
    pub(crate) fn removed(&mut self) -> &mut Removed {
        &mut self.removed
    }

    // Publishing

    /// Appends messages, all or none: numbers them and makes them visible to everybody in one step.
    /// The answer is the id of the first. The first publish ever is to be `admitted` by the bus. The caller then wakes [`take_wakers`](Self::take_wakers).
    pub(crate) fn append(
        &mut self,
        drafts: impl IntoIterator<Item = Draft>,
        size: BatchSize,
        now: Now,
        admitted: impl FnOnce() -> Result<(), NoRoom>,
    ) -> Result<u64, PublishError> {
        if self.life != Life::Open {
            return Err(PublishError::Closed);
        }
        self.expire(now.tick);
        self.make_room(size, now.tick)?;
        if !self.was_published {
            admitted()?;
            self.was_published = true;
        }
        let first = self.log.next_id();
        for draft in drafts {
            self.push(draft, now);
        }
        Ok(first)
    }

    #[inline]
    fn push(&mut self, draft: Draft, now: Now) {
        let created = self.last_created.max(now.wall);
        let ttl = draft.ttl.map_or(self.ttl, |asked| self.ttl.min(asked.into()));
        let message = Message::new(
            Arc::clone(&self.info),
            self.log.next_id(),
            created,
            // Of the clock as it is, which may have been set back.
            now.wall.after(ttl),
            draft.payload,
            draft.headers.map(|headers| self.share(headers)),
        );
        self.log.push(message, now.tick.after(ttl), ttl < self.ttl);
        self.counters.published += 1;
        self.last_created = created;
        self.last_publish = now.tick;
    }

    /// Most messages of a topic have the same headers.
    fn share(&mut self, headers: Arc<Headers>) -> Arc<Headers> {
        match &self.headers {
            Some(last) if *last == headers => Arc::clone(last),
            _ => Arc::clone(self.headers.insert(headers)),
        }
    }

    /// Sees to it that so much fits every bound, or refuses it and changes nothing.
    fn make_room(&mut self, size: BatchSize, now: Tick) -> Result<(), PublishError> {
        let TopicSettings { max_messages, max_bytes, .. } = self.settings;
        let BatchSize { count, charge } = size;
        if count > max_messages {
            return Err(PublishError::TooMany { count, limit: max_messages });
        }
        if charge > max_bytes {
            return Err(PublishError::TooLarge { size: charge, limit: max_bytes });
        }
        let least = self.own_charge + charge;
        let bus_is_full = !self.room.reserve(least + self.log.bytes());
        let no_room = NoRoom::Bytes { limit: self.room.limit() };
        if bus_is_full && !self.room.reserve(least) {
            // Giving up everything of its own would not be enough.
            return Err(no_room.into());
        }
        let held = self.room.held();
        let fits = |messages: usize, bytes: u64| {
            messages + count <= max_messages && bytes + charge <= max_bytes && least + bytes <= held
        };
        let refusal = if bus_is_full { no_room.into() } else { PublishError::TopicFull };
        while !fits(self.log.len(), self.log.bytes()) && self.expire_one(now) {}
        let leaving = self.leaving_until(fits).ok_or(refusal)?;
        for _ in 0..leaving {
            self.evict_oldest();
        }
        Ok(())
    }

    /// How many of the oldest messages have to leave until the rest `fits`; `None` when the policy
    /// does not let so many go.
    fn leaving_until(&self, fits: impl Fn(usize, u64) -> bool) -> Option<usize> {
        let (mut messages, mut bytes) = (self.log.len(), self.log.bytes());
        let mut oldest = self.log.iter();
        while !fits(messages, bytes) {
            let message = oldest.next()?;
            let was_pulled = message.id() < self.pull_next;
            if self.settings.overflow == Overflow::Reject && !was_pulled {
                return None;
            }
            messages -= 1;
            bytes -= message.charge();
        }
        Some(self.log.len() - messages)
    }

    fn evict_oldest(&mut self) {
        if let Some(oldest) = self.log.pop() {
            self.counters.evicted.count(oldest.id() < self.pull_next);
            self.removed.push(oldest);
        }
    }

    // Expiry

    /// How many expired messages are removed under one lock. Those that are left are skipped by
    /// whoever reads.
    const EXPIRY_SLICE: usize = if cfg!(test) { 2 } else { 256 };

    /// Removes messages whose time is over, at most a slice of them. Says whether there may be more.
    #[inline]
    pub(crate) fn expire(&mut self, now: Tick) -> bool {
        (0..Self::EXPIRY_SLICE).all(|_| self.expire_one(now))
    }

    #[inline]
    fn expire_one(&mut self, now: Tick) -> bool {
        let Some(message) = self.log.pop_expired(now) else { return false };
        self.counters.expired.count(message.id() < self.pull_next);
        self.removed.push(message);
        true
    }

    /// Removes every message whose time is over: for what has to be exact. Callers with a lock go
    /// through [`lock_expired`](crate::cell::TopicCell::lock_expired), so that few are left here.
    fn expire_all(&mut self, now: Tick) {
        while self.expire(now) {}
    }

    /// Gives memory back. Says how many messages have expired, and whether more may have.
    pub(crate) fn sweep(&mut self, now: Tick) -> (usize, bool) {
        let before = self.log.len();
        let more = self.expire(now);
        if !more {
            self.log.shrink();
            self.audience.shrink();
            if self.log.is_empty() {
                self.headers = None;
            }
            self.room.trim(self.own_charge + self.log.bytes());
        }
        (before - self.log.len(), more)
    }

    /// Whether the topic was made for consumers only and all have left.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.life != Life::Deleted && !self.was_published && self.has_no_consumers()
    }

    fn has_no_consumers(&self) -> bool {
        self.audience.cursors.len() == 0 && self.audience.waiters.len() == 0
    }

    /// Whether nothing would be lost, and nobody would notice, if the topic were forgotten.
    pub(crate) fn is_idle(&self, now: Tick) -> bool {
        let patience = self.settings.ttl.map_or(Self::SHORTEST_IDLE, |ttl| {
            ttl.saturating_mul(Self::IDLE_TTLS).max(Self::SHORTEST_IDLE)
        });
        self.life == Life::Open
            && self.log.is_empty()
            && self.has_no_consumers()
            && now.since(self.last_publish) >= patience
    }

    // Pulling

    /// Whether anything was published after what was pulled, expired or not: known without a clock.
    pub(crate) fn may_be_pulled(&self) -> bool {
        self.pull_next < self.log.next_id()
    }

    /// The size of the oldest payload that nobody has pulled, in bytes.
    pub(crate) fn next_unpulled_size(&mut self, now: Tick) -> Option<usize> {
        self.expire(now);
        self.log.from(self.pull_next, now).next().map(|message| message.payload().len())
    }

    /// Takes the oldest message that nobody has pulled.
    pub(crate) fn take_next(&mut self, now: Tick) -> Option<Message> {
        let more = self.expire(now);
        self.take(now, more)
    }

    /// `skips` says that there may be expired messages in the log.
    fn take(&mut self, now: Tick, skips: bool) -> Option<Message> {
        let message = self.log.from(self.pull_next, now).next().cloned();
        // Past the holes before it, or past all of them: they are not looked at again.
        let next = message.as_ref().map_or(self.log.next_id(), |message| message.id() + 1);
        if skips {
            // Nobody has pulled the expired ones in between, and their removal will not know it.
            self.counters.expired.unpulled += self.log.count_expired(self.pull_next..next, now);
        }
        self.pull_next = next;
        self.counters.pulled += u64::from(message.is_some());
        message
    }

    /// Takes messages until a limit is reached or none is left.
    pub(crate) fn take_batch(&mut self, limit: BatchLimit, now: Tick) -> Vec<Message> {
        let more = self.expire(now);
        let mut messages = Vec::new();
        let mut bytes = 0;
        while messages.len() < limit.events.max(1) && bytes < limit.bytes.max(1) {
            let Some(message) = self.take(now, more) else { break };
            bytes += message.payload().len();
            messages.push(message);
        }
        messages
    }

    /// The messages from a position on, or those that nobody has pulled; they stay where they are.
    pub(crate) fn peek(&mut self, from: Option<Position>, limit: BatchLimit, now: Now) -> Peek {
        self.expire(now.tick);
        let (wanted, restarted) = match from {
            Some(position) => self.resolve(position, now),
            None => (self.pull_next, false),
        };
        let mut bytes = 0;
        let fits = |message: &&Message| {
            let room = bytes < limit.bytes.max(1);
            bytes += message.payload().len();
            room
        };
        let from_there = self.log.from(wanted, now.tick).take(limit.events.max(1));
        let messages: Vec<_> = from_there.take_while(fits).cloned().collect();
        let next_id = messages.first().map_or(self.log.next_id(), Message::id);
        // What nobody pulled in time was not asked for by anybody.
        let missed = from.map_or(0, |_| next_id - wanted);
        let start = Start { next_id, missed, restarted };
        Peek { messages, epoch: self.info.epoch, start }
    }

    // Waiting to pull

    /// Joins those who wait.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) fn wait(&mut self) -> Result<Ticket, SubscribeError> {
        if self.life != Life::Open {
            return Err(SubscribeError::Closed);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.audience.waiters.join(ticket);
        Ok(ticket)
    }

    /// Takes messages for one who waits, if it is its turn. What comes back empty is to be tried
    /// again when woken.
    ///
    /// # Errors
    /// When there is nothing to wait for any more.
    pub(crate) fn take_waiting(
        &mut self,
        ticket: Ticket,
        limit: BatchLimit,
        now: Tick,
    ) -> Result<Vec<Message>, RecvError> {
        if self.life == Life::Deleted {
            return Err(RecvError::Deleted);
        }
        if !self.audience.waiters.is_first(ticket) {
            return Ok(Vec::new());
        }
        let messages = self.take_batch(limit, now);
        match self.life {
            Life::Closed if messages.is_empty() => Err(RecvError::Closed),
            _ => Ok(messages),
        }
    }

    /// As [`park`](Self::park), for one who waits to pull.
    #[must_use]
    pub(crate) fn park_waiter(&mut self, ticket: Ticket, waker: &Waker) -> Option<Waker> {
        self.audience.waiters.park(ticket, waker)
    }

    /// Leaves those who wait. To be handled when the lock is released: its own waker, to be dropped,
    /// and the waker of the one whose turn it is now, if there is something for it.
    #[must_use]
    pub(crate) fn leave(&mut self, ticket: Ticket) -> (Option<Waker>, Option<Waker>) {
        let was_first = self.audience.waiters.is_first(ticket);
        let own = self.audience.waiters.leave(ticket);
        let is_something_left = self.life != Life::Open || self.log.has_any_from(self.pull_next);
        let next = if was_first && is_something_left {
            self.audience.waiters.unpark_first()
        } else {
            None
        };
        (own, next)
    }

    // Subscribing

    /// Adds a cursor at a position.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) fn subscribe(
        &mut self,
        options: SubscribeOptions,
        now: Now,
    ) -> Result<(CursorKey, Start), SubscribeError> {
        if self.life != Life::Open {
            return Err(SubscribeError::Closed);
        }
        self.expire(now.tick);
        let SubscribeOptions { from, lag, label } = options;
        let (wanted, restarted) = self.resolve(from, now);
        let next = wanted.max(self.first_live_from(0, now.tick));
        let key = self.audience.cursors.insert(Cursor::new(wanted, next, lag, label));
        Ok((key, Start { next_id: next, missed: next - wanted, restarted }))
    }

    /// The first id that a position asks for, and whether it must be from another life of the
    /// topic: then everything is wanted from the start.
    fn resolve(&mut self, position: Position, now: Now) -> (u64, bool) {
        let tail = self.log.next_id();
        match position {
            Position::New => (tail, false),
            Position::All => (self.first_live_from(0, now.tick), false),
            Position::Id(id) if id <= tail => (id, false),
            Position::After { epoch, id } if epoch == self.info.epoch && id < tail => {
                (id + 1, false)
            }
            Position::Start { epoch } => (0, epoch != self.info.epoch),
            Position::Id(_) | Position::After { .. } => (0, true),
            Position::At(time) => self.resolve_time(time.into(), now.tick),
            Position::Ago(ago) => {
                // On the clock of `created`, which stands still when the system's was set back.
                let now_created = self.last_created.max(now.wall);
                self.resolve_time(now_created.before(ago.into()), now.tick)
            }
        }
    }

    fn resolve_time(&mut self, time: Wall, now: Tick) -> (u64, bool) {
        let first = self.log.first_created_at(time);
        (self.first_live_from(first, now), false)
    }

    /// The first id from this one on whose message has not expired.
    fn first_live_from(&self, id: u64, now: Tick) -> u64 {
        self.log.from(id, now).next().map_or(self.log.next_id(), Message::id)
    }

    /// Whether there is nothing for a cursor, not even an end: known without a clock.
    pub(crate) fn is_caught_up(&self, key: CursorKey) -> bool {
        let cursor = self.audience.cursors.get(key);
        self.life == Life::Open && cursor.next == self.log.next_id() && cursor.untold == 0
    }

    /// The size of the payload that a cursor comes to next, in bytes; `None` when that is a gap, an end, or
    /// nothing yet. The caller has called [`expire`](Self::expire) under the same lock.
    pub(crate) fn next_size(&mut self, key: CursorKey, now: Tick) -> Option<usize> {
        let cursor = self.audience.cursors.get(key);
        let message = self.log.from(cursor.next, now).next()?;
        let is_next = cursor.untold == 0 && message.id() == cursor.next;
        is_next.then(|| message.payload().len())
    }

    /// Moves a cursor over the next thing there is for it: a message, or a gap. The caller has
    /// called [`expire`](Self::expire) under the same lock.
    ///
    /// # Errors
    /// When the subscription is over; it is so at every later call.
    pub(crate) fn next_event(
        &mut self,
        key: CursorKey,
        now: Tick,
    ) -> Result<Option<Event>, RecvError> {
        if self.life == Life::Deleted {
            return Err(RecvError::Deleted);
        }
        let cursor = self.audience.cursors.get_mut(key);
        let untold = std::mem::take(&mut cursor.untold);
        if untold > 0 {
            self.counters.missed += untold;
            return Ok(Some(Event::Missed(untold)));
        }
        let message = self.log.from(cursor.next, now).next();
        let reached = message.map_or(self.log.next_id(), Message::id);
        let missed = reached - cursor.next;
        if missed > 0 {
            if cursor.lag == LagPolicy::Disconnect {
                return Err(RecvError::Lagged { missed });
            }
            cursor.next = reached;
            self.counters.missed += missed;
            return Ok(Some(Event::Missed(missed)));
        }
        match message {
            Some(message) => {
                cursor.next = reached + 1;
                cursor.received += 1;
                self.counters.delivered += 1;
                Ok(Some(Event::Message(message.clone())))
            }
            None if self.life == Life::Closed => Err(RecvError::Closed),
            None => Ok(None),
        }
    }

    /// Remembers whom to wake when there is something for this cursor. To be dropped when the lock
    /// is released: a waker that this replaces.
    #[must_use]
    pub(crate) fn park(&mut self, key: CursorKey, waker: &Waker) -> Option<Waker> {
        self.audience.cursors.park(key, waker)
    }

    /// The wakers of everyone who waits for what has just happened: of all who subscribe and, of those
    /// who wait to pull, of the first, or of all if this is the end. To be woken when the lock is released.
    #[inline]
    pub(crate) fn take_wakers(&mut self) -> Wakes {
        if self.audience.is_nobody() {
            return Wakes::default();
        }
        let mut wakes =
            Wakes { parked: self.audience.cursors.take_parked(wakes::spare), ..Wakes::default() };
        match self.life {
            Life::Open => wakes.waiter = self.audience.waiters.unpark_first(),
            Life::Closed | Life::Deleted => {
                wakes.parked.extend(self.audience.waiters.unpark_all().map(Parked::other));
            }
        }
        wakes
    }

    /// Removes a cursor. To be dropped when the lock is released: its waker.
    #[must_use]
    pub(crate) fn unsubscribe(&mut self, key: CursorKey, now: Tick) -> Option<Waker> {
        let more = self.expire(now);
        let cursor = self.audience.cursors.get(key);
        self.counters.missed += unnoticed(&mut self.log, cursor);
        if more {
            self.counters.missed += self.log.count_expired(cursor.next..self.log.next_id(), now);
        }
        self.audience.cursors.remove(key)
    }

    pub(crate) fn subscription_stats(&mut self, key: CursorKey, now: Tick) -> SubscriptionStats {
        self.expire_all(now);
        account(&mut self.log, self.audience.cursors.get(key))
    }

    pub(crate) fn subscribers(&mut self, now: Tick) -> Vec<SubscriberStats> {
        self.expire_all(now);
        let log = &mut self.log;
        self.audience
            .cursors
            .iter()
            .map(|cursor| SubscriberStats {
                label: cursor.label.clone(),
                next_id: cursor.next.max(log.first_id()),
                stats: account(log, cursor),
            })
            .collect()
    }

    // Ending

    /// Takes no more messages; what is retained can still be read.
    pub(crate) fn close(&mut self) {
        if self.life == Life::Open {
            self.life = Life::Closed;
        }
    }

    /// Gives the messages up, which are to be dropped when the locks are released. The caller takes
    /// the topic out of the map and wakes the sleepers.
    #[must_use]
    pub(crate) fn delete(&mut self, now: Tick) -> Log {
        self.life = Life::Deleted;
        let tail = self.log.next_id();
        let expired = Departed {
            total: self.log.count_expired(0..tail, now),
            unpulled: self.log.count_expired(self.pull_next..tail, now),
        };
        self.counters.expired += expired;
        self.counters.deleted.total += self.log.len() as u64 - expired.total;
        self.counters.deleted.unpulled += self.log.count_from(self.pull_next) - expired.unpulled;
        let retained = self.log.take_all();
        self.room.trim(self.own_charge);
        retained
    }

    // Accounting

    pub(crate) fn stats(&mut self, now: Tick) -> TopicStats {
        self.expire_all(now);
        let log = &mut self.log;
        let unnoticed: u64 =
            self.audience.cursors.iter().map(|cursor| unnoticed(log, cursor)).sum();
        TopicStats {
            topic: Arc::clone(&self.info),
            counters: Counters { missed: self.counters.missed + unnoticed, ..self.counters },
            retained: self.log.len() as u64,
            unpulled: self.log.count_from(self.pull_next),
            bytes: self.log.bytes(),
            settings: self.settings,
            first_id: self.log.first_id(),
            next_id: self.log.next_id(),
            subscribers: self.audience.cursors.len(),
            waiters: self.audience.waiters.len(),
        }
    }
}

/// Messages that are gone and that the subscription has not been told of.
fn unnoticed(log: &mut Log, cursor: &Cursor) -> u64 {
    cursor.untold + (log.next_id() - cursor.next) - log.count_from(cursor.next)
}

/// What a subscription has received, missed and still before it.
fn account(log: &mut Log, cursor: &Cursor) -> SubscriptionStats {
    let pending = log.count_from(cursor.next);
    let published = log.next_id() - cursor.start;
    SubscriptionStats {
        received: cursor.received,
        missed: published - cursor.received - pending,
        pending,
    }
}
