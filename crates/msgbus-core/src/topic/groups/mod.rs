//! Groups: workers that share the messages of a topic. Each message goes to one worker of a group, who leases it for a
//! time and acknowledges it. What is not acknowledged is delivered again.
//!
//! Plain pulls are a group too, which acknowledges as it takes. It needs one position only, see [`super::pull`].

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    task::Waker,
};

use super::{Commit, Page, State as TopicState, TakeError, Taken, Topic, waiters::WaiterId};
use crate::{
    error::LeaseError,
    model::{
        GroupName, GroupSettings, LeaseKey, LeaseToken, Leased, MonotonicTime, Now, Settlement,
        TokenScope, TopicInfo, WallTime,
    },
    options::LeaseOptions,
    store::StoreError,
};

mod bury;
mod group;
mod id_map;
mod keep;
mod open;
mod settings;
mod stats;

use self::group::{Group, lease_end};
pub(crate) use self::{
    bury::{Burial, DeadLetter, Registration},
    settings::SetGroup,
};
pub(super) use self::{group::Cause, keep::GroupStep};

/// The groups of one topic.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// By number. The number of a group never changes.
    slots: Vec<Option<Group>>,
    /// What the tokens of all leases have in common, once there is one.
    scope: Option<Arc<TokenScope>>,
    /// Makes the nonces of leases: a keyed hash (`SipHash`) of a number that is used once.
    secret: RandomState,
    /// Leases given.
    leases: u64,
    /// The deadline for which the timer of the bus will call.
    registered: Option<MonotonicTime>,
}

/// The outcome of settling leases.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// The indices of those that were over.
    pub(crate) lost: Vec<usize>,
    /// When the first of those ends that were extended.
    pub(crate) expires: Option<WallTime>,
    /// Tells when the acks are kept. `None` if they are.
    pub(crate) commit: Option<Arc<Commit>>,
    /// The waiting pull that may get a message now, to be woken after the lock is released.
    pub(crate) waker: Option<Waker>,
}

impl Groups {
    /// The maximum number of groups of a topic.
    pub(crate) const MAX: usize = GroupSettings::MAX_GROUPS;

    fn number(&self, name: &GroupName) -> Option<u8> {
        let is_it = |group: &Option<Group>| group.as_ref().is_some_and(|group| group.name == *name);
        self.slots.iter().position(is_it).and_then(|number| u8::try_from(number).ok())
    }

    fn get(&self, number: u8) -> Option<&Group> {
        self.slots.get(usize::from(number))?.as_ref()
    }

    fn get_mut(&mut self, number: u8) -> Option<&mut Group> {
        self.slots.get_mut(usize::from(number))?.as_mut()
    }

    fn iter(&self) -> impl Iterator<Item = &Group> {
        self.slots.iter().flatten()
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.slots.iter_mut().flatten()
    }

    /// Puts a group into the first free slot.
    fn add(&mut self, group: Group) -> Result<u8, LeaseError> {
        let limit = Self::MAX;
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        let number = u8::try_from(free).ok().filter(|_| free < limit);
        let number = number.ok_or(LeaseError::TooManyGroups { limit })?;
        self.place(number, Some(group));
        Ok(number)
    }

    /// Sets what is in a slot.
    fn place(&mut self, number: u8, group: Option<Group>) {
        let index = usize::from(number);
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = group;
    }

    fn scope(&mut self, topic: &TopicInfo) -> &Arc<TokenScope> {
        let new = || Arc::new(TokenScope::new(topic.name.clone(), topic.epoch));
        self.scope.get_or_insert_with(new)
    }

    fn nonce(&mut self) -> u64 {
        self.leases += 1;
        self.secret.hash_one(self.leases)
    }

    /// A message has left the topic.
    #[inline(never)]
    pub(super) fn forget(&mut self, id: u64, cause: Cause) {
        for group in self.iter_mut() {
            group.forget(id, cause);
        }
    }

    /// The id below which every group has settled everything.
    pub(super) fn floor(&self) -> u64 {
        self.iter().map(Group::floor).min().unwrap_or(u64::MAX)
    }

    /// What the groups take of the memory of the bus, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        /// What a group takes without open messages, in bytes.
        const GROUP: u64 = 512;
        self.iter().map(|group| GROUP + group.open.memory_bytes()).sum()
    }

    /// Whether a group is more than what pulls have created.
    pub(super) fn is_explicit(&self) -> bool {
        self.iter().any(|group| group.is_explicit)
    }
}

impl Topic {
    /// Leases messages to a worker of a group, until a limit is reached or none is left.
    ///
    /// # Errors
    /// When the first message has to be read, a limit is reached, or the store does not accept the leases. Nothing is
    /// leased then.
    pub(crate) fn lease(
        &mut self,
        name: &GroupName,
        options: &LeaseOptions,
        now: Now,
        page: &mut Page,
    ) -> Result<Taken<Leased>, TakeError<LeaseError>> {
        let taken = self.try_lease(name, options, now, page)?;
        if taken.messages.is_empty()
            && let Some(group) = self.group(name)
            && group.has_max_leases()
            && group.has_messages(&self.log)
        {
            let limit = group.settings.max_leases;
            return Err(TakeError::Over(LeaseError::TooManyLeases { limit }));
        }
        Ok(taken)
    }

    /// As [`lease`](Self::lease), but returns nothing while the group has all the leases that it may have.
    fn try_lease(
        &mut self,
        name: &GroupName,
        options: &LeaseOptions,
        now: Now,
        page: &mut Page,
    ) -> Result<Taken<Leased>, TakeError<LeaseError>> {
        if !self.was_published {
            return Ok(Taken::default());
        }
        // So that no message is passed over because it has expired and is still in the log.
        self.expire_all(now.monotonic);
        let number = self.find_or_add_group(name, options, now).map_err(TakeError::Over)?;
        let messages = self.lease_messages(number, options, now, page)?;
        if messages.is_empty() {
            self.keep_new_group(number, now);
            return Ok(Taken::default());
        }
        let commit = self.keep_leases(number, &messages, now).map_err(LeaseError::from);
        Ok(Taken { messages, commit: commit.map_err(TakeError::Over)? })
    }

    fn find_or_add_group(
        &mut self,
        name: &GroupName,
        options: &LeaseOptions,
        now: Now,
    ) -> Result<u8, LeaseError> {
        let (wanted, _) = match self.groups.as_ref().and_then(|groups| groups.number(name)) {
            Some(number) => return Ok(number),
            None => self.resolve(options.from, now),
        };
        let group = self.new_group(name, wanted);
        self.groups.get_or_insert_default().add(group)
    }

    fn group(&self, name: &GroupName) -> Option<&Group> {
        let groups = self.groups.as_ref()?;
        groups.get(groups.number(name)?)
    }

    /// Leases messages. Those that had been delivered before come first, so ids may go back.
    fn lease_messages(
        &mut self,
        number: u8,
        options: &LeaseOptions,
        now: Now,
        page: &mut Page,
    ) -> Result<Vec<Leased>, TakeError<LeaseError>> {
        let LeaseOptions { lease, limit, holder, .. } = options;
        let Some(groups) = &mut self.groups else { return Ok(Vec::new()) };
        let mut messages: Vec<Leased> = Vec::new();
        let mut bytes = 0;
        if let Some(group) = groups.get_mut(number) {
            group.end_due(now.monotonic);
        }
        let scope = Arc::clone(groups.scope(&self.info));
        while messages.len() < limit.events.max(1) && bytes < limit.bytes.max(1) {
            let Some(group) = groups.get_mut(number) else { break };
            let Some(entry) = group.next(&self.log, now.monotonic) else {
                if !group.has_max_leases() && !group.has_max_open() {
                    group.skip_to(self.log.next_id());
                }
                break;
            };
            let message = match page.message(entry) {
                Ok(message) => message,
                Err(unread) if messages.is_empty() => return Err(unread.into()),
                Err(_) => break,
            };
            bytes += message.payload().len();
            let key = LeaseKey { id: message.id(), nonce: groups.nonce() };
            let deadline = lease_end(Some(&message), *lease, now);
            let expires = now.wall_at(deadline).into();
            let Some(group) = groups.get_mut(number) else { break };
            let deliveries = group.lease(key, deadline, holder.clone(), now.monotonic);
            let token = LeaseToken { scope: Arc::clone(&scope), group: number, key };
            messages.push(Leased { message, token, deliveries, expires });
        }
        Ok(messages)
    }

    /// Leases messages to a waiting pull if it is first in the queue of its group. After an empty result the caller
    /// parks and tries again when woken.
    ///
    /// # Errors
    /// When no message can come any more, and as for [`lease`](Self::lease).
    pub(crate) fn poll_lease(
        &mut self,
        waiter: WaiterId,
        name: &GroupName,
        options: &LeaseOptions,
        now: Now,
        page: &mut Page,
    ) -> Result<Taken<Leased>, TakeError<LeaseError>> {
        if self.state == TopicState::Deleted {
            return Err(TakeError::Over(LeaseError::Deleted));
        }
        if !self.consumers.tables().queue(Some(name)).is_some_and(|queue| queue.is_first(waiter)) {
            return Ok(Taken::default());
        }
        let taken = self.try_lease(name, options, now, page)?;
        if taken.messages.is_empty() && self.is_at_end() {
            return Err(TakeError::Over(LeaseError::Closed));
        }
        Ok(taken)
    }

    /// Whether a waiting pull of the group would get a message now.
    pub(super) fn has_work_for(&self, name: &GroupName) -> bool {
        match self.group(name) {
            Some(group) => group.has_work(&self.log),
            // Its first pull creates it.
            None => !self.log.is_empty(),
        }
    }

    /// The size of the payload that a group gets next, in bytes.
    pub(crate) fn next_size_for(&mut self, name: &GroupName, now: MonotonicTime) -> Option<usize> {
        self.expire(now);
        if let Some(groups) = &mut self.groups {
            groups.iter_mut().for_each(|group| group.end_due(now));
        }
        let entry = match self.group(name) {
            Some(group) => group.next(&self.log, now),
            None => self.log.first_from(0, now),
        };
        entry.map(|entry| entry.payload_size())
    }

    /// Settles leases of one group.
    ///
    /// # Errors
    /// When the store does not accept the acks. Nothing is settled then.
    pub(crate) fn settle(
        &mut self,
        number: u8,
        keys: &[LeaseKey],
        settlement: &Settlement,
        now: Now,
    ) -> Result<Settled, StoreError> {
        let is_durable = self.is_durable();
        let group = self.groups.as_mut().and_then(|groups| groups.get_mut(number));
        let Some(group) = group else {
            return Ok(Settled { lost: (0..keys.len()).collect(), ..Settled::default() });
        };
        let mut settled = Settled::default();
        let mut first_end = None;
        let mut kept = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            match group.settle(*key, settlement, is_durable, &self.log, now) {
                None => settled.lost.push(index),
                Some(end) => {
                    first_end = first_end.into_iter().chain([end]).min();
                    if is_durable {
                        kept.push(*key);
                    }
                }
            }
        }
        if matches!(settlement, Settlement::Extend { .. }) {
            settled.expires = first_end.map(|end| now.wall_at(end));
        }
        if !kept.is_empty() {
            match settlement {
                Settlement::Ack => settled.commit = self.keep_acks(number, kept, now)?,
                _ => self.keep_changes(number, &kept, now),
            }
        }
        if settled.lost.len() < keys.len() {
            settled.waker = self.waker_of_group(number);
        }
        Ok(settled)
    }

    /// Takes the waker of the pull that waits first in a group, if there is something for it.
    #[must_use]
    fn waker_of_group(&mut self, number: u8) -> Option<Waker> {
        let group = self.groups.as_ref()?.get(number)?;
        if !group.has_work(&self.log) {
            return None;
        }
        self.consumers.existing_queue(Some(&group.name))?.unpark_first()
    }
}
