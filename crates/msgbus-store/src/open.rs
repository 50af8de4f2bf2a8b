//! Where the open messages of groups stand in the log.

use std::collections::BTreeMap;

use crate::index::Location;

/// For each message that a group was given and has not settled, the newest record that says so. A message takes about
/// 24 bytes. Each method calls `gone` with the places that it forgets.
#[derive(Debug, Default)]
pub(crate) struct OpenIndex {
    groups: BTreeMap<u8, BTreeMap<u64, Location>>,
    /// Messages below this id are gone.
    released: u64,
}

impl OpenIndex {
    /// Notes where the newest record of a message is. It is forgotten at once if the message is gone.
    pub(crate) fn set(
        &mut self,
        group: u8,
        id: u64,
        place: Location,
        gone: &mut impl FnMut(Location),
    ) {
        if id < self.released {
            gone(place);
        } else if let Some(before) = self.groups.entry(group).or_default().insert(id, place) {
            gone(before);
        }
    }

    /// Notes that a group has settled a message.
    pub(crate) fn settle(&mut self, group: u8, id: u64, gone: &mut impl FnMut(Location)) {
        let open = self.groups.get_mut(&group);
        open.and_then(|open| open.remove(&id)).into_iter().for_each(gone);
    }

    /// Forgets all messages of a group.
    pub(crate) fn remove(&mut self, group: u8, gone: &mut impl FnMut(Location)) {
        self.groups.remove(&group).into_iter().flat_map(BTreeMap::into_values).for_each(gone);
    }

    /// Forgets the messages below `first_id`.
    pub(crate) fn release(&mut self, first_id: u64, gone: &mut impl FnMut(Location)) {
        self.released = self.released.max(first_id);
        for open in self.groups.values_mut() {
            while let Some(first) = open.first_entry().filter(|first| *first.key() < first_id) {
                gone(first.remove());
            }
        }
    }

    /// Whether the newest record of a message is at this place.
    pub(crate) fn is_at(&self, group: u8, id: u64, place: Location) -> bool {
        self.groups.get(&group).and_then(|open| open.get(&id)) == Some(&place)
    }

    /// Notes that a message was copied from one place to another, if it is still at the first one. Forgets the other
    /// one.
    pub(crate) fn moved(
        &mut self,
        group: u8,
        id: u64,
        (from, to): (Location, Location),
        gone: &mut impl FnMut(Location),
    ) {
        let place = self.groups.get_mut(&group).and_then(|open| open.get_mut(&id));
        match place.filter(|place| **place == from) {
            Some(place) => {
                *place = to;
                gone(from);
            }
            None => gone(to),
        }
    }
}
