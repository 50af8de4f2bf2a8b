//! What groups report about themselves.

use super::{
    super::{Page, Topic, Unread, waiters::Waiters},
    group::Group,
    open::State,
};
use crate::{
    model::{Event, GroupName, Now, Peek},
    options::BatchLimit,
    stats::{GroupStats, LeaseStats},
};

impl Topic {
    pub(crate) fn groups(&mut self, now: Now) -> Vec<GroupStats> {
        if self.groups.is_none() {
            return Vec::new();
        }
        self.expire_all(now.monotonic);
        let names = self.groups.iter().flat_map(|groups| groups.iter());
        let names: Vec<_> = names.map(|group| group.name.clone()).collect();
        names.iter().filter_map(|name| self.stats_of_group(name, now)).collect()
    }

    fn stats_of_group(&mut self, name: &GroupName, now: Now) -> Option<GroupStats> {
        let groups = self.groups.as_mut()?;
        let number = groups.number(name)?;
        let group = groups.get_mut(number)?;
        group.end_due(now.monotonic);
        let oldest = self.log.first_from(group.floor(), now.monotonic);
        Some(GroupStats {
            name: name.clone(),
            settings: group.settings.clone(),
            next_id: group.next_id,
            oldest_unacked: oldest.map(|entry| entry.created().into()),
            pending: self.log.count_from(group.next_id),
            leased: group.open.leased() as u64,
            waiting: group.open.waiting() as u64,
            counters: group.counters,
            waiters: self.consumers.tables().queue(Some(name)).map_or(0, Waiters::len),
        })
    }

    /// One group, and its oldest leases.
    pub(crate) fn group_stats(
        &mut self,
        name: &GroupName,
        max_leases: usize,
        now: Now,
    ) -> Option<(GroupStats, Vec<LeaseStats>)> {
        self.expire_all(now.monotonic);
        let stats = self.stats_of_group(name, now)?;
        Some((stats, self.group(name)?.leases(max_leases, now)))
    }

    /// The messages that a group has not settled, without taking them.
    ///
    /// # Errors
    /// When the first message has to be read.
    pub(crate) fn peek_group(
        &mut self,
        name: &GroupName,
        limit: BatchLimit,
        now: Now,
        page: &mut Page,
    ) -> Result<Peek, Unread> {
        self.expire_all(now.monotonic);
        let group = self.group(name);
        let floor = group.map_or(0, Group::floor);
        let given = group.into_iter().flat_map(|group| group.open.iter());
        let unsettled = given
            .filter(|(_, open)| open.state != State::Settling)
            .filter_map(|(id, _)| self.log.first_from(id, now.monotonic))
            .chain(self.log.from(group.map_or(0, |group| group.next_id), now.monotonic));
        let mut events = Vec::new();
        let mut bytes = 0;
        for entry in unsettled.take(limit.events.max(1)) {
            if bytes >= limit.bytes.max(1) {
                break;
            }
            bytes += entry.payload_size();
            let id = entry.id();
            match page.message(entry) {
                Ok(message) => events.push(Event::Message { id, message }),
                Err(unread) if events.is_empty() => return Err(unread),
                Err(_) => break,
            }
        }
        let start = self.start_position(floor, floor, false);
        Ok(Peek { events, epoch: self.info.epoch, start })
    }
}

impl Group {
    fn leases(&self, max: usize, now: Now) -> Vec<LeaseStats> {
        let leased = self.open.iter().filter(|(_, open)| open.state == State::Leased);
        leased
            .take(max)
            .map(|(id, open)| LeaseStats {
                id,
                deliveries: open.deliveries.into(),
                holder: open.holder.clone(),
                since: open.since.wall(now).into(),
                expires: now.wall_at(open.deadline).into(),
            })
            .collect()
    }
}

#[cfg(test)]
impl Topic {
    /// The number of messages published to a group since it was created or moved.
    pub(crate) fn published_to(&self, name: &GroupName) -> u64 {
        self.group(name).map_or(0, |group| self.log.appended() - group.base)
    }

    /// The number of deadlines that are kept for a group.
    pub(crate) fn deadlines_of(&self, name: &GroupName) -> usize {
        self.group(name).map_or(0, |group| group.open.deadlines())
    }
}
