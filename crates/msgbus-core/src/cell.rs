//! The lock over one topic.

use std::{
    mem::take,
    ops::{Deref, DerefMut},
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};

use crate::{clock::Tick, map::TopicMap, name::TopicName, removed::Removed, topic::Topic};

/// A topic, as the map and its subscriptions share it.
#[derive(Debug)]
pub(crate) struct TopicCell {
    name: TopicName,
    map: Weak<TopicMap>,
    topic: Mutex<Topic>,
}

impl TopicCell {
    pub(crate) fn new(topic: Topic, map: Weak<TopicMap>) -> Self {
        Self { name: topic.info().name.clone(), map, topic: Mutex::new(topic) }
    }

    pub(crate) fn name(&self) -> &TopicName {
        &self.name
    }

    pub(crate) fn lock(&self) -> LockedTopic<'_> {
        LockedTopic { topic: self.topic.lock(), removed: None }
    }

    /// Locks the topic after its expired messages were removed, a slice under each lock.
    pub(crate) fn lock_expired(&self) -> LockedTopic<'_> {
        loop {
            let mut topic = self.lock();
            if !topic.expire(Tick::now()) {
                return topic;
            }
        }
    }

    /// Releases the lock, and takes the topic out of the map if it was made for consumers only and
    /// the last of them has just left.
    pub(crate) fn unlock_and_forget_abandoned(self: &Arc<Self>, topic: LockedTopic<'_>) {
        let is_abandoned = topic.is_abandoned();
        drop(topic);
        if is_abandoned && let Some(map) = self.map.upgrade() {
            map.forget_if(self, Topic::is_abandoned);
        }
    }
}

/// A locked topic. Messages that leave it are freed after the lock is released.
#[derive(Debug)]
pub(crate) struct LockedTopic<'a> {
    // Fields are dropped in this order: the lock first, then the messages.
    topic: MutexGuard<'a, Topic>,
    removed: Option<Removed>,
}

impl Deref for LockedTopic<'_> {
    type Target = Topic;

    fn deref(&self) -> &Topic {
        &self.topic
    }
}

impl DerefMut for LockedTopic<'_> {
    fn deref_mut(&mut self) -> &mut Topic {
        &mut self.topic
    }
}

impl Drop for LockedTopic<'_> {
    fn drop(&mut self) {
        let removed = self.topic.removed();
        if !removed.is_empty() {
            self.removed = Some(take(removed));
        }
    }
}
