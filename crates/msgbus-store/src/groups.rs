//! The groups of a topic as they were written, without their open messages.

use std::{collections::BTreeMap, mem};

use msgbus_core::store::KeptGroup;

/// The groups of a topic, by number. A batch that is not written leaves no trace.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    written: BTreeMap<u8, WrittenGroup>,
    /// What has changed in this batch, and how it was before.
    before: Vec<(u8, Option<WrittenGroup>)>,
}

/// A group after its last record.
#[derive(Debug, Clone)]
pub(crate) struct WrittenGroup {
    /// The group. Its open messages are left out: they are read back from the log when they must be copied.
    pub(crate) group: KeptGroup,
    /// The newest segment that has the group's name and settings, which is also the newest that has any record of it.
    pub(crate) mentioned_in: u32,
}

impl WrittenGroup {
    pub(crate) fn new(group: &KeptGroup, mentioned_in: u32) -> Self {
        let (name, settings) = (group.name.clone(), group.settings.clone());
        let group = KeptGroup { name, settings, open: BTreeMap::new(), ..*group };
        Self { group, mentioned_in }
    }
}

impl Groups {
    /// Groups that the log has.
    pub(crate) fn recovered(written: BTreeMap<u8, WrittenGroup>) -> Self {
        Self { written, before: Vec::new() }
    }

    pub(crate) fn get(&self, number: u8) -> Option<&WrittenGroup> {
        self.written.get(&number)
    }

    /// Replaces a group, or removes it.
    pub(crate) fn set(&mut self, number: u8, group: Option<WrittenGroup>) {
        let before = match group {
            Some(group) => self.written.insert(number, group),
            None => self.written.remove(&number),
        };
        if !self.before.iter().any(|(changed, _)| *changed == number) {
            self.before.push((number, before));
        }
    }

    /// Removes all groups.
    pub(crate) fn clear(&mut self) {
        for number in self.written.keys().copied().collect::<Vec<_>>() {
            self.set(number, None);
        }
    }

    /// Takes back what has changed in this batch.
    pub(crate) fn undo(&mut self) {
        for (number, before) in mem::take(&mut self.before) {
            match before {
                Some(group) => self.written.insert(number, group),
                None => self.written.remove(&number),
            };
        }
    }

    /// Ends the batch, which was written. Returns in which segments the groups that have changed were mentioned last,
    /// before it and now.
    pub(crate) fn settle(&mut self) -> Vec<(Option<u32>, Option<u32>)> {
        let segment = |group: &WrittenGroup| group.mentioned_in;
        let changed = mem::take(&mut self.before).into_iter();
        changed
            .map(|(number, before)| {
                (before.as_ref().map(segment), self.written.get(&number).map(segment))
            })
            .collect()
    }
}
