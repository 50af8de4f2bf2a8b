//! Groups that are created, moved, changed or removed by themselves.

use std::sync::Arc;

use super::{
    super::{Commit, State, Topic, durable::Durable},
    GroupStep, Groups,
    group::Group,
};
use crate::{
    error::{GroupError, PublishError},
    model::{GroupName, Now, Position},
    options::GroupConfig,
    store::{GroupChange, Record, StoreError},
};

impl Topic {
    /// A group at a position. Groups of dead letters deliver without end by default.
    pub(super) fn new_group(&mut self, name: &GroupName, wanted: u64) -> Group {
        let next_id = wanted.max(self.log.first_id());
        let mut group = Group::new(name.clone(), next_id, &mut self.log);
        if self.info.name.is_of_dead_letters() {
            group.settings.max_deliveries = 0;
        }
        group
    }

    /// Creates a group, moves it or changes its settings. Before its first publish the topic calls `admit`, as for
    /// [`append`](Self::append). Returns whether the group is new, and a commit to wait for.
    pub(crate) fn set_group(
        &mut self,
        name: &GroupName,
        config: &GroupConfig,
        now: Now,
        admit: impl FnOnce(&Self) -> Result<Option<Box<Durable>>, PublishError>,
    ) -> Result<(bool, Option<Arc<Commit>>), GroupError> {
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
        let number = self.place_group(name, existing, config, now)?;
        self.last_publish = now.monotonic;
        let kept = self.keep_group(number, now);
        if kept.is_err() {
            if existing.is_none() {
                self.drop_group(number);
            }
            if is_admitted {
                self.was_published = false;
                self.durable = None;
            }
        }
        Ok((existing.is_none(), kept?))
    }

    /// Puts the group with its settings into its slot. Returns its number.
    fn place_group(
        &mut self,
        name: &GroupName,
        existing: Option<u8>,
        config: &GroupConfig,
        now: Now,
    ) -> Result<u8, GroupError> {
        let from = config.from.or(existing.is_none().then_some(Position::All));
        let mut made = from.map(|from| {
            let (wanted, _) = self.resolve(from, now);
            self.new_group(name, wanted)
        });
        let groups = self.groups.get_or_insert_default();
        let number = match existing {
            Some(number) => number,
            None => match made.take() {
                Some(group) => groups.add(group)?,
                None => return Err(GroupError::TooManyGroups { limit: Groups::MAX }),
            },
        };
        if let Some(group) = groups.get_mut(number) {
            if let Some(made) = made {
                let settings = std::mem::take(&mut group.settings);
                *group = Group { settings, ..made };
            }
            config.apply(&mut group.settings);
            group.is_explicit = true;
        }
        Ok(number)
    }

    fn drop_group(&mut self, number: u8) {
        let Some(groups) = &mut self.groups else { return };
        if let Some(slot) = groups.slots.get_mut(usize::from(number)) {
            *slot = None;
        }
        if groups.slots.iter().all(Option::is_none) {
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
        let Some(number) = self.groups.as_ref().and_then(|groups| groups.number(name)) else {
            return Ok((false, None));
        };
        let mut commit = None;
        if self.is_durable() {
            let record = Record::Group { number, change: GroupChange::Removed };
            commit = Some(self.store_group(record, number, GroupStep::Other)?);
        }
        self.drop_group(number);
        Ok((true, commit))
    }
}
