//! The rules of one group: which message is delivered next, and what becomes of it.

use std::{sync::Arc, time::Duration};

use super::{
    super::log::{Entry, Log},
    bury::{Burial, DeadLetter},
    open::{Open, OpenTable, State},
};
use crate::{
    model::{
        GroupName, GroupSettings, LeaseKey, LeaseToken, Message, MonotonicTime, Nanos, Now,
        Settlement, WallTime,
    },
    stats::GroupCounters,
};

#[derive(Debug)]
pub(in crate::topic) struct Group {
    pub(super) name: GroupName,
    pub(super) settings: GroupSettings,
    /// Whether it was created explicitly, and not by a pull.
    pub(super) is_explicit: bool,
    /// Messages appended to the topic, without those that are counted for the group.
    pub(super) base: u64,
    /// The id of the next message that the group has not been given.
    pub(super) next_id: u64,
    pub(super) open: OpenTable,
    pub(super) counters: GroupCounters,
    /// Messages that are to become dead letters now.
    pub(super) dying: Vec<u64>,
    /// Whether the store knows the group, so that it can be told what has changed.
    pub(super) is_stored: bool,
}

/// Why a message leaves a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::topic) enum Cause {
    Expired,
    Evicted,
}

impl Group {
    /// The maximum number of open messages.
    const MAX_OPEN: usize = 65_536;
    /// The time until a dead letter that was refused is tried again.
    const RETRY: Nanos = Nanos::from_seconds(5);

    /// A group whose first message is the first one from `next_id` on.
    pub(super) fn new(name: GroupName, next_id: u64, log: &mut Log) -> Self {
        Self {
            name,
            settings: GroupSettings::default(),
            is_explicit: false,
            base: log.appended() - log.count_from(next_id),
            next_id,
            open: OpenTable::default(),
            counters: GroupCounters::default(),
            dying: Vec::new(),
            is_stored: false,
        }
    }

    /// The id below which everything is settled.
    pub(super) fn floor(&self) -> u64 {
        self.open.first().unwrap_or(self.next_id)
    }

    pub(super) fn has_max_leases(&self) -> bool {
        self.open.leased() >= self.settings.max_leases as usize
    }

    pub(super) fn has_max_open(&self) -> bool {
        self.open.len() >= Self::MAX_OPEN
    }

    /// Whether there is a message to deliver, whatever the limit on leases. It may have expired.
    pub(super) fn has_messages(&self, log: &Log) -> bool {
        self.open.first_ready().is_some() || !self.has_max_open() && log.has_any_from(self.next_id)
    }

    /// Whether a pull would get a message, unless it has expired.
    pub(super) fn has_work(&self, log: &Log) -> bool {
        !self.has_max_leases() && self.has_messages(log)
    }

    /// The message to deliver next: the oldest that was delivered before, or a new one.
    pub(super) fn next<'a>(&self, log: &'a Log, now: MonotonicTime) -> Option<Entry<'a>> {
        if self.has_max_leases() {
            return None;
        }
        match self.open.first_ready() {
            Some(id) => log.first_from(id, now),
            None if self.has_max_open() => None,
            None => log.first_from(self.next_id, now),
        }
    }

    /// Gives a message to a worker. Returns how often it was delivered.
    pub(super) fn lease(
        &mut self,
        key: LeaseKey,
        deadline: MonotonicTime,
        holder: Option<Arc<str>>,
        now: MonotonicTime,
    ) -> u32 {
        let earlier = self.open.get(key.id).map_or(0, |open| open.deliveries);
        let deliveries = earlier.saturating_add(1);
        let (nonce, since) = (key.nonce, now.into());
        self.open
            .put(key.id, Open { deadline, nonce, holder, since, deliveries, state: State::Leased });
        self.next_id = self.next_id.max(key.id + 1);
        self.counters.delivered += 1;
        self.counters.redelivered += u64::from(earlier > 0);
        deliveries.into()
    }

    /// Takes a lease back that the worker never got.
    pub(super) fn unlease(&mut self, key: LeaseKey) {
        let is_it = |open: &&Open| open.nonce == key.nonce && open.state == State::Leased;
        let Some(open) = self.open.get(key.id).filter(is_it).cloned() else { return };
        let deliveries = open.deliveries - 1;
        self.open.put(key.id, Open { deliveries, state: State::Ready, ..open });
        self.counters.delivered -= 1;
        self.counters.redelivered -= u64::from(deliveries > 0);
    }

    /// Settles one lease. Returns when it ends, which an extend has changed, or `None` if it was over. An ack stays to be
    /// [finished](Self::finish_ack) if the store must keep it first.
    pub(super) fn settle(
        &mut self,
        key: LeaseKey,
        settlement: &Settlement,
        waits_for_store: bool,
        log: &Log,
        now: Now,
    ) -> Option<MonotonicTime> {
        let open = self.open.leased_until(key, now.monotonic)?;
        let (deliveries, mut deadline) = (open.deliveries, open.deadline);
        match settlement {
            Settlement::Ack => {
                self.counters.acked += 1;
                if waits_for_store {
                    self.open.change(key.id, State::Settling, deadline);
                } else {
                    self.open.remove(key.id);
                }
            }
            Settlement::Nack { delay, reason } => {
                self.counters.nacked += 1;
                self.open.set_reason(key.id, reason.as_deref().map(DeadLetter::cut));
                let ready = now.monotonic.after(Nanos::from((*delay).min(LeaseToken::MAX_TIME)));
                self.give_back(key.id, deliveries, ready, now.monotonic);
            }
            Settlement::Extend { lease } => {
                let entry = log.first_from(key.id, now.monotonic);
                let message = entry.as_ref().and_then(Entry::message);
                deadline = lease_end(message, *lease, now);
                self.open.change(key.id, State::Leased, deadline);
            }
        }
        Some(deadline)
    }

    /// Makes a message ready at a time, or a dead letter.
    fn give_back(&mut self, id: u64, deliveries: u16, ready: MonotonicTime, now: MonotonicTime) {
        if self.is_last(deliveries) {
            self.open.change(id, State::Burying, ready);
            self.dying.push(id);
        } else if ready > now {
            self.open.change(id, State::Delayed, ready);
        } else {
            self.open.change(id, State::Ready, now);
        }
    }

    /// Whether this was the last delivery that the settings allow.
    pub(super) fn is_last(&self, deliveries: u16) -> bool {
        let max = self.settings.max_deliveries;
        max != 0 && u32::from(deliveries) >= max
    }

    /// The store has kept an ack.
    pub(super) fn finish_ack(&mut self, key: LeaseKey) {
        if self.is_settling(key) {
            self.open.remove(key.id);
        }
    }

    /// The store has not kept an ack: the lease goes on, unless its message has left meanwhile.
    pub(super) fn undo_ack(&mut self, key: LeaseKey) {
        match self.open.get(key.id) {
            Some(open) if self.is_settling(key) => {
                self.open.change(key.id, State::Leased, open.deadline);
            }
            Some(_) => return,
            None => self.counters.expired += 1,
        }
        self.counters.acked -= 1;
    }

    fn is_settling(&self, key: LeaseKey) -> bool {
        let open = self.open.get(key.id);
        open.is_some_and(|open| open.nonce == key.nonce && open.state == State::Settling)
    }

    /// Ends what is due: leases and delays.
    pub(super) fn end_due(&mut self, now: MonotonicTime) {
        while let Some(id) = self.open.first_due(now)
            && let Some(Open { state, deliveries, .. }) = self.open.get(id)
        {
            match (state, *deliveries) {
                (State::Leased, deliveries) => {
                    self.counters.lease_expired += 1;
                    let reason = self.is_last(deliveries).then(|| DeadLetter::EXPIRED.into());
                    self.open.set_reason(id, reason);
                    self.give_back(id, deliveries, now, now);
                }
                (State::Dying, _) => {
                    self.open.change(id, State::Burying, now);
                    self.dying.push(id);
                }
                _ => self.open.change(id, State::Ready, now),
            }
        }
    }

    /// A message has left the topic.
    pub(super) fn forget(&mut self, id: u64, cause: Cause) {
        let is_new = id >= self.next_id;
        if !is_new && self.open.remove(id).is_none_or(|open| open.state == State::Settling) {
            return;
        }
        match cause {
            Cause::Expired => self.counters.expired += 1,
            Cause::Evicted => self.counters.evicted += 1,
        }
    }

    /// Ends the burial of a message. It does nothing if the message or the group is another one by now.
    pub(super) fn end_burial(&mut self, key: LeaseKey, burial: Burial, now: MonotonicTime) -> bool {
        let Some(ready) = self.open.burying(key).map(|open| open.deadline) else { return false };
        match burial {
            Burial::Done => {
                self.open.remove(key.id);
                self.counters.dead_lettered += 1;
            }
            Burial::Refused => {
                self.counters.dead_letters_refused += 1;
                self.open.change(key.id, State::Dying, now.after(Self::RETRY));
            }
            Burial::Exempt if ready > now => self.open.change(key.id, State::Delayed, ready),
            Burial::Exempt => self.open.change(key.id, State::Ready, now),
        }
        true
    }

    /// The group has been given every message that there is.
    pub(super) fn skip_to(&mut self, next_id: u64) {
        self.next_id = self.next_id.max(next_id);
    }
}

/// When a lease from now ends: not after its message, if that is in memory.
pub(super) fn lease_end(message: Option<&Message>, lease: Duration, now: Now) -> MonotonicTime {
    let lease = Nanos::from(lease.min(LeaseToken::MAX_TIME));
    let left = match message.map(Message::expires_at) {
        None | Some(WallTime::NEVER) => lease,
        Some(expires) => lease.min(expires.since(now.wall)),
    };
    now.monotonic.after(left)
}
