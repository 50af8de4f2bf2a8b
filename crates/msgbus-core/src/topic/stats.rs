//! What a topic and its subscriptions report about themselves.

use std::sync::Arc;

use super::{
    Topic,
    cursors::{Cursor, CursorKey},
    log::Log,
};
use crate::{
    model::MonotonicTime,
    stats::{Counters, SubscriberStats, SubscriptionStats, TopicStats},
};

impl Topic {
    pub(crate) fn subscription_stats(
        &mut self,
        key: CursorKey,
        now: MonotonicTime,
    ) -> SubscriptionStats {
        self.expire_all(now);
        subscription_stats(&mut self.log, self.consumers.tables().cursors.get(key))
    }

    pub(crate) fn subscribers(&mut self, now: MonotonicTime) -> Vec<SubscriberStats> {
        self.expire_all(now);
        let log = &mut self.log;
        let cursors = self.consumers.tables().cursors.iter();
        cursors
            .map(|cursor| SubscriberStats {
                label: cursor.label.clone(),
                next_id: log.id(cursor.next).max(log.first_id()),
                stats: subscription_stats(log, cursor),
            })
            .collect()
    }

    pub(crate) fn stats(&mut self, now: MonotonicTime) -> TopicStats {
        self.expire_all(now);
        let durability = self.durability();
        let log = &mut self.log;
        let consumers = self.consumers.tables();
        let unreported: u64 =
            consumers.cursors.iter().map(|cursor| unreported_missed(log, cursor)).sum();
        TopicStats {
            topic: Arc::clone(&self.info),
            counters: Counters { missed: self.counters.missed + unreported, ..self.counters },
            retained: self.log.len() as u64,
            unpulled: self.log.count_from(self.pull_next),
            bytes: self.log.bytes(),
            settings: self.settings,
            durability,
            first_id: self.log.first_id(),
            next_id: self.log.next_id(),
            subscribers: consumers.cursors.len(),
            waiters: consumers.waiting(),
        }
    }
}

/// Messages that a cursor has missed and that have not been reported to its subscription.
pub(super) fn unreported_missed(log: &mut Log, cursor: &Cursor) -> u64 {
    let gone = log.next_ordinal().since(cursor.next) - log.count_from(cursor.next_id);
    cursor.pending_gap + gone
}

fn subscription_stats(log: &mut Log, cursor: &Cursor) -> SubscriptionStats {
    let pending = log.count_from(cursor.next_id);
    let published = log.next_ordinal().since(cursor.start);
    SubscriptionStats {
        received: cursor.received,
        missed: published - cursor.received - pending,
        pending,
    }
}
