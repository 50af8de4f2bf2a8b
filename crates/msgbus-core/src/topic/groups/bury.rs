//! What is due, and dead letters: messages that a group was given too often.

use std::task::Waker;

use super::{
    super::{Page, Topic, Unread, waiters::Waiters},
    group::Group,
    open::State,
};
use crate::model::{GroupName, LeaseKey, LeaseToken, Message, MonotonicTime, Now, TopicName};

/// What was due in one topic.
#[derive(Debug, Default)]
pub(crate) struct Due {
    /// Waiting pulls for which there are messages now, to be woken after the lock is released.
    pub(crate) wakers: Vec<Waker>,
    /// Messages to publish as dead letters.
    pub(crate) dead: Vec<DeadLetter>,
}

/// A message that becomes a dead letter.
#[derive(Debug)]
pub(crate) struct DeadLetter {
    pub(crate) group: u8,
    pub(crate) name: GroupName,
    pub(crate) key: LeaseKey,
    pub(crate) deliveries: u32,
    pub(crate) reason: Option<Box<str>>,
    /// The topic for it, if the group's settings name one.
    pub(crate) topic: Option<TopicName>,
}

/// What the timer has to know of a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registration {
    /// When something is due.
    pub(crate) at: MonotonicTime,
    /// The registration that this one replaces.
    pub(crate) previous: Option<MonotonicTime>,
}

/// The outcome of a burial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Burial {
    /// The dead letter was published.
    Done,
    /// It was not, and will be tried again.
    Refused,
    /// The message is a dead letter already.
    Exempt,
}

impl DeadLetter {
    /// How the headers of dead letters begin.
    pub(crate) const PREFIX: &str = "dead-letter-";
    /// The header that names the topic where the message was published first.
    pub(crate) const TOPIC: &str = "dead-letter-topic";
    /// The reason of one whose last lease was not settled.
    pub(crate) const EXPIRED: &str = "the lease expired";

    /// The beginning of a reason, as much as is kept.
    pub(crate) fn cut(reason: &str) -> Box<str> {
        let mut end = reason.len().min(LeaseToken::MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason[..end].into()
    }
}

impl Topic {
    /// The time of the next thing that is due, if the timer does not know of it. It must be told.
    pub(crate) fn next_registration(&mut self, now: MonotonicTime) -> Option<Registration> {
        let groups = self.groups.as_mut()?;
        if let Some(registered) = groups.registered
            && groups.iter().all(|group| group.has_nothing_before(registered))
        {
            return None;
        }
        let deadlines = groups.iter_mut().filter_map(|group| {
            if group.dying.is_empty() { group.open.next_deadline() } else { Some(now) }
        });
        let at = deadlines.min()?;
        if groups.registered.is_some_and(|registered| registered <= at) {
            return None;
        }
        let previous = groups.registered.replace(at);
        Some(Registration { at, previous })
    }

    /// Does what is due.
    pub(crate) fn run_due(&mut self, now: MonotonicTime) -> Due {
        let mut due = Due::default();
        self.expire_all(now);
        let Some(groups) = &mut self.groups else { return due };
        groups.registered = None;
        for (number, group) in (0..).zip(&mut groups.slots) {
            let Some(group) = group else { continue };
            group.end_due(now);
            due.dead.extend(group.take_dying(number));
            if group.has_work(&self.log) {
                let queue = self.consumers.existing_queue(Some(&group.name));
                due.wakers.extend(queue.and_then(Waiters::unpark_first));
            }
        }
        due
    }

    /// Messages of a group that are to become dead letters, because a settlement has ended their last leases.
    pub(crate) fn take_dying(&mut self, group: u8) -> Vec<DeadLetter> {
        let found = self.groups.as_mut().and_then(|groups| groups.get_mut(group));
        found.map(|found| found.take_dying(group)).unwrap_or_default()
    }

    /// The message of a dead letter. `None` if it has left meanwhile.
    pub(crate) fn message_with(
        &self,
        id: u64,
        now: MonotonicTime,
        page: &mut Page,
    ) -> Result<Option<Message>, Unread> {
        let entry = self.log.first_from(id, now).filter(|entry| entry.id() == id);
        entry.map(|entry| page.message(entry)).transpose()
    }

    /// Ends the burial of a message. Returns the waiting pull that may get a message now, to be woken after the lock is
    /// released.
    #[must_use]
    pub(crate) fn end_burial(
        &mut self,
        dead: &DeadLetter,
        burial: Burial,
        now: Now,
    ) -> Option<Waker> {
        let group = self.groups.as_mut()?.get_mut(dead.group)?;
        let is_ended = group.end_burial(dead.key, burial, now.monotonic);
        if is_ended && burial == Burial::Done {
            self.keep_burial(dead.group, dead.key.id, now);
        }
        self.waker_of_group(dead.group)
    }
}

impl Group {
    fn has_nothing_before(&self, time: MonotonicTime) -> bool {
        self.dying.is_empty() && self.open.is_nothing_before(time)
    }

    fn take_dying(&mut self, number: u8) -> Vec<DeadLetter> {
        let dying = std::mem::take(&mut self.dying);
        dying.into_iter().filter_map(|id| self.dead_letter(number, id)).collect()
    }

    fn dead_letter(&self, number: u8, id: u64) -> Option<DeadLetter> {
        let open = self.open.get(id).filter(|open| open.state == State::Burying)?;
        Some(DeadLetter {
            group: number,
            name: self.name.clone(),
            key: LeaseKey { id, nonce: open.nonce },
            deliveries: open.deliveries.into(),
            reason: self.open.reason(id).map(Box::from),
            topic: self.settings.dead_letters.clone(),
        })
    }
}
