//! Where the messages of a topic stand in the log.

use std::collections::VecDeque;

use crate::{
    format::record::{ALIGNMENT, units},
    open::OpenIndex,
};

/// A place in the log, in 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    /// The number of the segment.
    pub(crate) segment: u32,
    /// The offset in it, in units of [`ALIGNMENT`].
    units: u32,
}

impl Location {
    pub(crate) fn new(segment: u32, offset: u64) -> Self {
        Self { segment, units: units(offset) }
    }

    /// The offset in the segment, in bytes.
    pub(crate) fn offset(self) -> u64 {
        u64::from(self.units) * ALIGNMENT as u64
    }
}

/// The locations of the messages of a topic that are not released, by id. A message takes 8 bytes as long as ids are
/// dense; a gap takes 40.
#[derive(Debug, Default)]
pub(crate) struct Index {
    runs: VecDeque<Run>,
    /// Messages below this id are gone.
    released: u64,
    /// The messages that groups have not settled.
    pub(crate) open: OpenIndex,
}

/// Messages with consecutive ids. Never empty.
#[derive(Debug)]
struct Run {
    first_id: u64,
    locations: VecDeque<Location>,
}

impl Run {
    fn end(&self) -> u64 {
        self.first_id + self.locations.len() as u64
    }
}

impl Index {
    /// Adds a message with a higher id than all others. Returns whether it is kept: it may have been released before
    /// it was written.
    pub(crate) fn push(&mut self, id: u64, location: Location) -> bool {
        if id < self.released {
            return false;
        }
        match self.runs.back_mut() {
            Some(run) if run.end() == id => run.locations.push_back(location),
            Some(run) if run.end() > id => return false,
            _ => self.runs.push_back(Run { first_id: id, locations: [location].into() }),
        }
        true
    }

    /// Forgets the messages below `first_id`, and calls `gone` with each of them.
    pub(crate) fn release(&mut self, first_id: u64, mut gone: impl FnMut(Location)) {
        self.released = self.released.max(first_id);
        while let Some(run) = self.runs.front_mut() {
            while run.first_id < first_id
                && let Some(location) = run.locations.pop_front()
            {
                run.first_id += 1;
                gone(location);
            }
            if !run.locations.is_empty() {
                // A long backlog that was read must not keep its memory.
                if run.locations.capacity() > 64 + 4 * run.locations.len() {
                    run.locations.shrink_to(2 * run.locations.len());
                }
                return;
            }
            self.runs.pop_front();
        }
    }

    /// Messages below this id are gone.
    pub(crate) fn released(&self) -> u64 {
        self.released
    }

    /// Where a message is.
    pub(crate) fn get(&self, id: u64) -> Option<Location> {
        let run = &self.runs[self.run_of(id)?];
        run.locations.get(usize::try_from(id.checked_sub(run.first_id)?).ok()?).copied()
    }

    /// Notes that a message was copied from one place to another. Returns whether it is at the new one now.
    pub(crate) fn moved(&mut self, id: u64, from: Location, to: Location) -> bool {
        let Some(run) = self.run_of(id).and_then(|index| self.runs.get_mut(index)) else {
            return false;
        };
        let place = id
            .checked_sub(run.first_id)
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| run.locations.get_mut(index))
            .filter(|place| **place == from);
        place.map(|place| *place = to).is_some()
    }

    /// The first messages from an id on.
    pub(crate) fn from(&self, id: u64) -> impl Iterator<Item = (u64, Location)> {
        let first = self.runs.partition_point(|run| run.end() <= id);
        self.runs.iter().skip(first).flat_map(move |run| {
            let skipped = usize::try_from(id.saturating_sub(run.first_id)).unwrap_or(usize::MAX);
            let ids = run.first_id.max(id)..;
            ids.zip(run.locations.iter().skip(skipped).copied())
        })
    }

    /// The run that would have this id, if any.
    fn run_of(&self, id: u64) -> Option<usize> {
        self.runs.partition_point(|run| run.first_id <= id).checked_sub(1)
    }
}
