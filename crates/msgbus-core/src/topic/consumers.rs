//! The consumers of one topic: subscriptions and waiting pulls.
//!
//! Most topics have none. Memory is allocated when the first consumer arrives, and freed by a sweep after
//! the last one has left.

use super::{Groups, cursors::Cursors, waiters::Waiters};
use crate::model::GroupName;

#[derive(Debug, Default)]
pub(crate) struct Consumers(Option<Box<Tables>>);

#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) cursors: Cursors,
    pub(crate) waiters: Waiters,
    /// The waiting pulls of groups. None is empty.
    groups: Vec<(GroupName, Waiters)>,
    /// Those that wait only for the end of the topic.
    pub(crate) watchers: Waiters,
}

static EMPTY: Tables = Tables {
    cursors: Cursors::new(),
    waiters: Waiters::new(),
    groups: Vec::new(),
    watchers: Waiters::new(),
};

impl Consumers {
    /// Whether there is no consumer.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.as_deref().is_none_or(Tables::is_empty)
    }

    #[inline]
    pub(crate) fn tables(&self) -> &Tables {
        self.0.as_deref().unwrap_or(&EMPTY)
    }

    /// Whether there is no memory for consumers.
    #[cfg(test)]
    pub(crate) fn is_unallocated(&self) -> bool {
        self.0.is_none()
    }

    /// Whether any consumer may have left a waker.
    #[inline]
    pub(crate) fn may_sleep(&self) -> bool {
        self.0.as_deref().is_some_and(|tables| {
            tables.cursors.any_parked()
                || tables.waiters.len() > 0
                || !tables.groups.is_empty()
                || tables.watchers.len() > 0
        })
    }

    /// The queue of a group's waiting pulls, or of plain pulls, if there is one.
    pub(crate) fn existing_queue(&mut self, group: Option<&GroupName>) -> Option<&mut Waiters> {
        let tables = self.0.as_deref_mut()?;
        match group {
            None => Some(&mut tables.waiters),
            Some(name) => {
                let mut groups = tables.groups.iter_mut();
                groups.find(|(group, _)| group == name).map(|(_, queue)| queue)
            }
        }
    }

    /// Frees the queue of a group that the last waiting pull has left.
    pub(crate) fn drop_empty_queue(&mut self, group: Option<&GroupName>) {
        if let (Some(tables), Some(name)) = (&mut self.0, group) {
            tables.groups.retain(|(group, queue)| group != name || queue.len() > 0);
        }
    }

    /// The tables, allocated on first use.
    #[inline]
    pub(crate) fn tables_mut(&mut self) -> &mut Tables {
        self.0.get_or_insert_default()
    }

    /// Frees the tables once the last consumer has left.
    pub(crate) fn shrink(&mut self) {
        if self.is_empty() {
            self.0 = None;
        } else if let Some(tables) = &mut self.0 {
            tables.cursors.shrink();
        }
    }
}

impl Tables {
    fn is_empty(&self) -> bool {
        self.cursors.len() == 0
            && self.waiters.len() == 0
            && self.groups.is_empty()
            && self.watchers.len() == 0
    }

    /// The queue of a group's waiting pulls, or of plain pulls.
    pub(crate) fn queue(&self, group: Option<&GroupName>) -> Option<&Waiters> {
        let Some(name) = group else { return Some(&self.waiters) };
        self.groups.iter().find(|(group, _)| group == name).map(|(_, queue)| queue)
    }

    /// The queue of a group's waiting pulls, or of plain pulls, which is created if there is none. `None` if there are
    /// too many.
    pub(crate) fn queue_mut(&mut self, group: Option<&GroupName>) -> Option<&mut Waiters> {
        let Some(name) = group else { return Some(&mut self.waiters) };
        let index = match self.groups.iter().position(|(group, _)| group == name) {
            Some(index) => index,
            None if self.groups.len() >= Groups::MAX => return None,
            None => {
                self.groups.push((name.clone(), Waiters::default()));
                self.groups.len() - 1
            }
        };
        self.groups.get_mut(index).map(|(_, queue)| queue)
    }

    /// The number of waiting pulls, of groups too.
    pub(crate) fn waiting(&self) -> usize {
        self.waiters.len() + self.groups.iter().map(|(_, queue)| queue.len()).sum::<usize>()
    }

    /// All queues of waiting pulls of groups.
    pub(crate) fn group_queues(&mut self) -> impl Iterator<Item = &mut Waiters> {
        self.groups.iter_mut().map(|(_, queue)| queue)
    }
}
