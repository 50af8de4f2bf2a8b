//! What a store keeps of groups, and a group after a restart.
//!
//! A change is made at once, and the store is told. If the store refuses it, leases are taken back and acks undone; and
//! because the group may have changed further since, the store is sent all of it at the next change.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    super::{Commit, State as TopicState, Topic, log::Log},
    Groups,
    group::{Cause, Group},
    open::{Open, OpenTable, State},
};
use crate::{
    model::{GroupSettings, LeaseKey, LeaseToken, Leased, Nanos, Now, WallTime},
    store::{GroupChange, GroupUpdate, KeptGroup, OpenMessage, Record, StoreError},
};

/// A change that is not committed yet, with what is needed to undo it.
#[derive(Debug)]
pub(in crate::topic) enum GroupStep {
    Lease(Vec<LeaseKey>),
    Ack(Vec<LeaseKey>),
    /// The group was created, moved or removed. This is the one before, if there was one.
    Replace(Option<Box<Group>>),
    /// The settings were changed. These are the ones before, and whether the group was explicit.
    Settings(GroupSettings, bool),
    /// Nothing is undone.
    Other,
}

impl Group {
    fn open_message(&self, id: u64, open: &Open, now: Now) -> OpenMessage {
        let is_leased = open.state == State::Leased;
        let until = now.wall_at(open.deadline).nanoseconds();
        let reason = self.open.reason(id).map(Box::from);
        OpenMessage {
            id,
            nonce: open.nonce,
            deliveries: open.deliveries.into(),
            is_leased,
            until,
            reason,
        }
    }

    /// Describes the open messages with these keys.
    pub(super) fn update(&self, keys: &[LeaseKey], now: Now) -> GroupUpdate {
        let open = keys.iter().filter_map(|key| {
            let open = self.open.get(key.id)?;
            Some(self.open_message(key.id, open, now))
        });
        let (open, next_id, counters) = (open.collect(), self.next_id, self.counters);
        GroupUpdate { next_id, open, settled: Vec::new(), counters }
    }

    fn whole(&self, now: Now) -> KeptGroup {
        let open: BTreeMap<_, _> = self
            .open
            .iter()
            // The store has been told that they are settled.
            .filter(|(_, open)| open.state != State::Settling)
            .map(|(id, open)| (id, self.open_message(id, open, now)))
            .collect();
        KeptGroup {
            name: self.name.clone(),
            settings: self.settings.clone(),
            is_explicit: self.is_explicit,
            base: self.base,
            next_id: self.next_id,
            open,
            counters: self.counters,
        }
    }

    fn restore(kept: KeptGroup, log: &mut Log, now: Now) -> Self {
        let KeptGroup { name, settings, is_explicit, base, next_id, open, counters } = kept;
        let next_id = next_id.min(log.next_id());
        let mut group = Self {
            name,
            settings,
            is_explicit,
            base,
            next_id,
            open: OpenTable::default(),
            counters,
            dying: Vec::new(),
            is_stored: true,
        };
        for (id, message) in open {
            let is_retained = || log.first_from(id, now.monotonic).is_some_and(|e| e.id() == id);
            if id < next_id && is_retained() {
                group.restore_message(id, message, now);
            }
        }
        // What is gone since has expired, as far as anybody knows.
        let published = log.appended().saturating_sub(base);
        group.counters.expired += published.saturating_sub(group.accounted(log));
        group.uncount_ended_leases();
        group
    }

    fn restore_message(&mut self, id: u64, message: OpenMessage, now: Now) {
        let OpenMessage { nonce, deliveries, is_leased, until, reason, .. } = message;
        // At most the longest time from now, in case the clock was set back.
        let deliveries = u16::try_from(deliveries).unwrap_or(u16::MAX);
        let left = WallTime::from_nanoseconds(until).since(now.wall);
        let deadline = now.monotonic.after(left.min(Nanos::from(LeaseToken::MAX_TIME)));
        let state = match is_leased {
            true => State::Leased,
            false if self.is_last(deliveries) => State::Dying,
            false => State::Delayed,
        };
        self.open.set_reason(id, reason);
        let since = now.monotonic.into();
        let open = Open { deadline, nonce, holder: None, since, deliveries, state };
        self.open.put(id, open);
    }

    /// A lease that ends is counted, and the store is not told. After a restart it ends once more.
    fn uncount_ended_leases(&mut self) {
        let leased = self.open.leased() as u64;
        let counters = &mut self.counters;
        let ended = counters.acked + counters.nacked + counters.lease_expired;
        let twice = (ended + leased).saturating_sub(counters.delivered);
        counters.lease_expired = counters.lease_expired.saturating_sub(twice);
    }

    /// The number of messages that are accounted for.
    pub(super) fn accounted(&self, log: &mut Log) -> u64 {
        let open = self.open.leased() + self.open.waiting();
        let counters = &self.counters;
        let gone = counters.acked + counters.dead_lettered + counters.expired + counters.evicted;
        log.count_from(self.next_id) + open as u64 + gone
    }
}

impl Groups {
    /// The store has kept a change.
    pub(in crate::topic) fn finish(&mut self, number: u8, step: GroupStep) {
        if let (Some(group), GroupStep::Ack(keys)) = (self.get_mut(number), step) {
            for key in keys {
                group.finish_ack(key);
            }
        }
    }
}

impl Topic {
    pub(in crate::topic) fn restore_groups(&mut self, kept: Vec<(u8, KeptGroup)>, now: Now) {
        for (number, group) in kept {
            if usize::from(number) < Groups::MAX {
                let group = Group::restore(group, &mut self.log, now);
                self.groups.get_or_insert_default().place(number, Some(group));
            }
        }
    }

    /// Tells the store about a change of a group. `None` if the topic is not durable.
    ///
    /// # Errors
    /// When the store does not accept it. The change is undone then.
    pub(super) fn keep(
        &mut self,
        number: u8,
        update: impl FnOnce(&Group) -> GroupUpdate,
        now: Now,
        step: GroupStep,
    ) -> Result<Option<Arc<Commit>>, StoreError> {
        if !self.is_durable() {
            return Ok(None);
        }
        let group = self.groups.as_mut().and_then(|groups| groups.get_mut(number));
        let Some(group) = group else { return Ok(None) };
        let change = if group.is_stored {
            GroupChange::Update(Box::new(update(group)))
        } else {
            GroupChange::Set(Box::new(group.whole(now)))
        };
        group.is_stored = true;
        match self.store_group(Record::Group { number, change }, number, step) {
            Ok(commit) => Ok(Some(commit)),
            Err((error, step)) => {
                self.undo(number, step);
                Err(error)
            }
        }
    }

    /// Keeps new leases, or takes them back.
    pub(super) fn keep_leases(
        &mut self,
        number: u8,
        leased: &[Leased],
        now: Now,
    ) -> Result<Option<Arc<Commit>>, StoreError> {
        if !self.is_durable() {
            return Ok(None);
        }
        let keys: Vec<_> = leased.iter().map(|leased| leased.token.key).collect();
        let step = GroupStep::Lease(keys.clone());
        self.keep(number, |group| group.update(&keys, now), now, step)
    }

    /// Keeps acks, or undoes them.
    pub(super) fn keep_acks(
        &mut self,
        number: u8,
        keys: Vec<LeaseKey>,
        now: Now,
    ) -> Result<Option<Arc<Commit>>, StoreError> {
        let settled = keys.iter().map(|key| key.id).collect();
        let update = |group: &Group| GroupUpdate { settled, ..group.update(&[], now) };
        self.keep(number, update, now, GroupStep::Ack(keys))
    }

    /// Tells the store what has changed. After a crash it is as it was before, which does no harm: so nothing waits for
    /// it, and it is done whether the store accepts it or not.
    pub(super) fn keep_changes(&mut self, number: u8, keys: &[LeaseKey], now: Now) {
        let _ = self.keep(number, |group| group.update(keys, now), now, GroupStep::Other);
    }

    /// Tells the store that a message became a dead letter.
    pub(super) fn keep_burial(&mut self, number: u8, id: u64, now: Now) {
        let update = |group: &Group| GroupUpdate { settled: vec![id], ..group.update(&[], now) };
        let _ = self.keep(number, update, now, GroupStep::Other);
    }

    /// Tells the store of a group that it does not know, because no message was leased yet.
    pub(super) fn keep_new_group(&mut self, number: u8, now: Now) {
        let group = self.groups.as_ref().and_then(|groups| groups.get(number));
        if group.is_some_and(|group| !group.is_stored) {
            let _ = self.keep(number, |_| GroupUpdate::default(), now, GroupStep::Other);
        }
    }

    /// The store has not kept a change.
    pub(in crate::topic) fn undo(&mut self, number: u8, step: GroupStep) {
        let step = match step {
            GroupStep::Replace(previous) => return self.put_group_back(number, previous),
            step => step,
        };
        let group = self.groups.as_mut().and_then(|groups| groups.get_mut(number));
        let Some(group) = group else { return };
        group.is_stored = false;
        match step {
            GroupStep::Lease(keys) => keys.into_iter().for_each(|key| group.unlease(key)),
            GroupStep::Ack(keys) => keys.into_iter().for_each(|key| group.undo_ack(key)),
            GroupStep::Settings(settings, is_explicit) => {
                group.settings = settings;
                group.is_explicit = is_explicit;
            }
            GroupStep::Replace(_) | GroupStep::Other => {}
        }
    }

    /// Puts the group into its slot that was there before.
    fn put_group_back(&mut self, number: u8, previous: Option<Box<Group>>) {
        if self.state == TopicState::Deleted {
            return;
        }
        let previous = previous.map(|previous| Group { is_stored: false, ..*previous });
        self.groups.get_or_insert_default().place(number, previous);
        self.drop_groups_if_none();
    }

    /// A message has left the log.
    #[inline]
    pub(in crate::topic) fn forget(&mut self, id: u64, cause: Cause) {
        if let Some(groups) = &mut self.groups {
            groups.forget(id, cause);
        }
    }
}
