//! Groups that are created, moved, changed or removed explicitly.

use std::{sync::Arc, task::Waker};

use super::{
    super::{Commit, State, Topic, durable::Durable},
    GroupStep, Groups,
    group::Group,
};
use crate::{
    error::{GroupError, PublishError},
    model::{GroupName, GroupSettings, Now, Position},
    options::GroupConfig,
    store::{GroupChange, GroupUpdate, Record, StoreError},
};

/// A group that was created or changed.
#[derive(Debug)]
pub(crate) struct SetGroup {
    pub(crate) is_new: bool,
    /// Tells when it is kept. `None` if it is.
    pub(crate) commit: Option<Arc<Commit>>,
    /// The waiting pull that may get a message now, to be woken after the lock is released.
    pub(crate) waker: Option<Waker>,
}

impl Topic {
    /// A group at a position.
    pub(super) fn new_group(&mut self, name: &GroupName, wanted: u64) -> Group {
        let next_id = wanted.max(self.log.first_id());
        let mut group = Group::new(name.clone(), next_id, &mut self.log);
        group.settings = GroupSettings::of(&self.info.name);
        group
    }

    /// Creates a group, moves it or changes its settings. Before its first publish the topic calls `admit`, as for
    /// [`append`](Self::append).
    pub(crate) fn set_group(
        &mut self,
        name: &GroupName,
        config: &GroupConfig,
        now: Now,
        admit: impl FnOnce(&Self) -> Result<Option<Box<Durable>>, PublishError>,
    ) -> Result<SetGroup, GroupError> {
        if self.state != State::Open {
            return Err(GroupError::Closed);
        }
        self.expire_all(now.monotonic);
        let (existing, room) = match &self.groups {
            Some(groups) => (groups.number(name), groups.iter().count() < Groups::MAX),
            None => (None, true),
        };
        if existing.is_none() && !room {
            return Err(GroupError::TooManyGroups { limit: Groups::MAX });
        }
        let is_admitted = !self.was_published;
        if is_admitted {
            self.durable = admit(self)?;
            self.was_published = true;
        }
        let (number, step) = self.place_group(name, existing, config, now)?;
        self.last_publish = now.monotonic;
        let kept = self.keep(number, |_| GroupUpdate::default(), now, step);
        if kept.is_err() && is_admitted {
            self.was_published = false;
            self.durable = None;
        }
        Ok(SetGroup {
            is_new: existing.is_none(),
            commit: kept?,
            waker: self.waker_of_group(number),
        })
    }

    /// Puts the group with its settings into its slot, to be sent to the store as a whole. Returns its number, and how
    /// to undo it.
    fn place_group(
        &mut self,
        name: &GroupName,
        existing: Option<u8>,
        config: &GroupConfig,
        now: Now,
    ) -> Result<(u8, GroupStep), GroupError> {
        let from = config.from.or(existing.is_none().then_some(Position::All));
        let mut made = from.map(|from| {
            let (wanted, _) = self.resolve(from, now);
            self.new_group(name, wanted)
        });
        let groups = self.groups.get_or_insert_default();
        let mut step = GroupStep::Replace(None);
        let number = match existing {
            Some(number) => number,
            None => match made.take() {
                Some(group) => groups.add(group)?,
                None => return Err(GroupError::TooManyGroups { limit: Groups::MAX }),
            },
        };
        if let Some(group) = groups.get_mut(number) {
            if let Some(made) = made {
                let settings = group.settings.clone();
                let previous = std::mem::replace(group, Group { settings, ..made });
                step = GroupStep::Replace(Some(Box::new(previous)));
            } else if existing.is_some() {
                step = GroupStep::Settings(group.settings.clone(), group.is_explicit);
            }
            config.apply(&mut group.settings);
            group.is_explicit = true;
            group.is_stored = false;
        }
        Ok((number, step))
    }

    /// Frees the table after the last group.
    pub(super) fn drop_groups_if_none(&mut self) {
        if self.groups.as_ref().is_some_and(|groups| groups.slots.iter().all(Option::is_none)) {
            self.groups = None;
        }
    }

    /// Removes a group with its leases. Returns whether there was one, and a commit to wait for.
    ///
    /// # Errors
    /// When the store does not accept it. The group stays then.
    pub(crate) fn remove_group(
        &mut self,
        name: &GroupName,
    ) -> Result<(bool, Option<Arc<Commit>>), StoreError> {
        let Some(groups) = &mut self.groups else { return Ok((false, None)) };
        let Some(number) = groups.number(name) else { return Ok((false, None)) };
        let removed = groups.slots.get_mut(usize::from(number)).and_then(Option::take);
        self.drop_groups_if_none();
        if !self.is_durable() {
            return Ok((true, None));
        }
        let record = Record::Group { number, change: GroupChange::Removed };
        let step = GroupStep::Replace(removed.map(Box::new));
        match self.store_group(record, number, step) {
            Ok(commit) => Ok((true, Some(commit))),
            Err((error, step)) => {
                self.undo(number, step);
                Err(error)
            }
        }
    }
}
