//! What a topic and its subscriptions report about themselves.

use std::sync::Arc;

use super::{
    Topic,
    cursors::{Cursor, CursorKey},
    log::Log,
};
use crate::{
    model::Tick,
    stats::{Counters, SubscriberStats, SubscriptionStats, TopicStats},
};

impl Topic {
    pub(crate) fn subscription_stats(&mut self, key: CursorKey, now: Tick) -> SubscriptionStats {
        self.expire_all(now);
        account(&mut self.log, self.audience.cursors.get(key))
    }

    pub(crate) fn subscribers(&mut self, now: Tick) -> Vec<SubscriberStats> {
        self.expire_all(now);
        let log = &mut self.log;
        self.audience
            .cursors
            .iter()
            .map(|cursor| SubscriberStats {
                label: cursor.label.clone(),
                next_id: cursor.next.max(log.first_id()),
                stats: account(log, cursor),
            })
            .collect()
    }

    pub(crate) fn stats(&mut self, now: Tick) -> TopicStats {
        self.expire_all(now);
        let log = &mut self.log;
        let unnoticed: u64 =
            self.audience.cursors.iter().map(|cursor| unnoticed(log, cursor)).sum();
        TopicStats {
            topic: Arc::clone(&self.info),
            counters: Counters { missed: self.counters.missed + unnoticed, ..self.counters },
            retained: self.log.len() as u64,
            unpulled: self.log.count_from(self.pull_next),
            bytes: self.log.bytes(),
            settings: self.settings,
            first_id: self.log.first_id(),
            next_id: self.log.next_id(),
            subscribers: self.audience.cursors.len(),
            waiters: self.audience.waiters.len(),
        }
    }
}

/// Messages that are gone and that the subscription has not been told of.
pub(super) fn unnoticed(log: &mut Log, cursor: &Cursor) -> u64 {
    cursor.untold + (log.next_id() - cursor.next) - log.count_from(cursor.next)
}

/// What a subscription has received, missed and still before it.
fn account(log: &mut Log, cursor: &Cursor) -> SubscriptionStats {
    let pending = log.count_from(cursor.next);
    let published = log.next_id() - cursor.start;
    SubscriptionStats {
        received: cursor.received,
        missed: published - cursor.received - pending,
        pending,
    }
}
