//! What the records of a topic's groups amount to.

use std::{collections::BTreeMap, mem, sync::atomic::Ordering::Relaxed};

use msgbus_core::store::{GroupChange, KeptGroup};

use crate::{
    format::{DecodeError, GroupKind, GroupRecord},
    groups::{Groups, WrittenGroup},
    index::Location,
    open::OpenIndex,
    segments::Segments,
};

/// The groups of a topic as the records so far say.
#[derive(Debug, Default)]
pub(super) struct ReplayedGroups(BTreeMap<u8, ReplayedGroup>);

#[derive(Debug)]
struct ReplayedGroup {
    kept: KeptGroup,
    /// The newest record of each of its open messages.
    places: BTreeMap<u64, Location>,
    mentioned_in: u32,
}

impl ReplayedGroups {
    /// Applies the record that stands here. Returns how many open messages it has.
    ///
    /// # Errors
    /// When it contradicts what came before, or itself.
    pub(super) fn apply(
        &mut self,
        record: &GroupRecord<'_>,
        place: Location,
    ) -> Result<usize, DecodeError> {
        let mut open = 0;
        match record.change()? {
            GroupChange::Set(kept) if record.kind == GroupKind::Continued => {
                self.go_on(record.number, *kept, place);
            }
            GroupChange::Set(kept) => {
                open = kept.open.len();
                let places = kept.open.keys().map(|id| (*id, place)).collect();
                let group = ReplayedGroup { kept: *kept, places, mentioned_in: place.segment };
                self.0.insert(record.number, group);
            }
            GroupChange::Update(update) => {
                // Its name and settings come first in each segment.
                let group = self.0.get_mut(&record.number).ok_or(DecodeError::Malformed)?;
                open = update.open.len();
                group.places.extend(update.open.iter().map(|message| (message.id, place)));
                for id in &update.settled {
                    group.places.remove(id);
                }
                group.kept.update(&update);
            }
            // What it removes may have stood in a segment that is gone.
            GroupChange::Removed => {
                self.0.remove(&record.number);
            }
        }
        Ok(open)
    }

    /// Applies what stands at the beginning of a group's records in a segment. Open messages that are known remain.
    fn go_on(&mut self, number: u8, mut kept: KeptGroup, place: Location) {
        let mut places = BTreeMap::new();
        if let Some(known) = self.0.get_mut(&number)
            && known.kept.name == kept.name
        {
            kept.open = mem::take(&mut known.kept.open);
            places = mem::take(&mut known.places);
        }
        self.0.insert(number, ReplayedGroup { kept, places, mentioned_in: place.segment });
    }

    /// Forgets the open messages below an id.
    pub(super) fn trim(&mut self, first_id: u64) {
        for group in self.0.values_mut() {
            group.kept.open = group.kept.open.split_off(&first_id);
            group.places = group.places.split_off(&first_id);
        }
    }

    /// How many groups there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many messages the groups have not settled.
    pub(super) fn open(&self) -> u64 {
        self.0.values().map(|group| group.places.len() as u64).sum()
    }

    /// The groups for the writer and for the bus. What is needed of them is counted in its segments.
    pub(super) fn into_parts(
        self,
        segments: &Segments,
        index: &mut OpenIndex,
    ) -> (Groups, Vec<(u8, KeptGroup)>) {
        let (mut written, mut kept) = (BTreeMap::new(), Vec::with_capacity(self.0.len()));
        for (number, group) in self.0 {
            segments.moved(None, Some(group.mentioned_in), |segment| &segment.groups);
            for (id, place) in group.places {
                if let Some(segment) = segments.get(place.segment) {
                    segment.open.fetch_add(1, Relaxed);
                }
                index.set(number, id, place, &mut |gone| {
                    segments.released(gone.segment, 1, |segment| &segment.open);
                });
            }
            written.insert(number, WrittenGroup::new(&group.kept, group.mentioned_in));
            kept.push((number, group.kept));
        }
        (Groups::recovered(written), kept)
    }
}
