//! A topic as a store has kept it.

use std::sync::Arc;

use super::{Durable, Reservation, Topic, log::Log, sequence::Ordinal};
use crate::{
    model::{MonotonicTime, Now, TopicInfo, WallTime},
    options::TopicSettings,
    stats::Counters,
    store::{Gap, KeptMessage, Promise, RecoveredTopic},
};

impl Topic {
    /// Puts a topic together from what its store has kept, within the settings of now.
    pub(crate) fn restore(
        info: Arc<TopicInfo>,
        settings: TopicSettings,
        reservation: Reservation,
        promise: Promise,
        recovered: RecoveredTopic,
        now: Now,
    ) -> Self {
        let RecoveredTopic { state, gaps, messages, groups, store, .. } = recovered;
        let mut topic = Self::new(info, settings, reservation, now);
        topic.durable = Some(Box::new(Durable::new(store, promise)));
        topic.was_published = true;
        let oldest = messages.first().map_or(state.next_id, |message| message.id);
        topic.log = Log::starting_at(oldest, ordinal(&gaps, oldest));
        let mut latest_deadline = now.monotonic;
        for message in messages {
            advance(&mut topic.log, &gaps, message.id);
            topic.restore_message(message, &mut latest_deadline, now);
        }
        advance(&mut topic.log, &gaps, state.next_id);
        topic.pull_next = state.pull_next.min(topic.log.next_id());
        // Some had expired before the restart, and pulls have passed them.
        while topic.log.pop_expired(now.monotonic).is_some() {}
        topic.counters = topic.balanced(state.counters);
        topic.restore_groups(groups, now);
        topic.enforce_limits_of_restored(now.monotonic);
        topic
    }

    /// Appends a message. It is cold: its payload stays in the store.
    fn restore_message(
        &mut self,
        kept: KeptMessage,
        latest_deadline: &mut MonotonicTime,
        now: Now,
    ) {
        let expires = WallTime::from_nanoseconds(kept.expires);
        // At most the TTL from now, in case the clock was set back.
        let left = match expires {
            WallTime::NEVER => self.ttl,
            expires => self.ttl.min(expires.since(now.wall)),
        };
        let deadline = now.monotonic.after(left);
        let created = WallTime::from_nanoseconds(kept.created);
        self.last_created = self.last_created.max(created);
        let is_early = deadline < *latest_deadline;
        self.log.push_cold(created, kept.size, deadline, is_early);
        *latest_deadline = deadline.max(*latest_deadline);
    }

    /// Completes counters of removals that are from some time before the end of the log. Of the messages that left since
    /// then it is unknown whether they were evicted; they count as expired. Those that had expired before older ones are
    /// back, and count when they leave again. What was received since then is unknown too.
    fn balanced(&mut self, known: Counters) -> Counters {
        let mut counters = known;
        let unpulled = self.log.count_from(self.pull_next);
        counters.published = self.log.appended();
        let gone = counters.published - self.log.len() as u64;
        let gone_unpulled = counters.published.saturating_sub(known.pulled + unpulled);
        let Counters { expired, evicted, deleted, .. } = &mut counters;
        let total = [&mut expired.total, &mut evicted.total, &mut deleted.total];
        adjust(total, gone);
        let most = [expired.total, evicted.total, deleted.total];
        adjust(
            [&mut expired.unpulled, &mut evicted.unpulled, &mut deleted.unpulled],
            gone_unpulled,
        );
        // No more of a kind than there are of it.
        let mut excess = 0;
        for (count, most) in [expired, evicted, deleted].into_iter().zip(most) {
            let all = count.unpulled + excess;
            count.unpulled = all.min(most);
            excess = all - count.unpulled;
        }
        counters.pulled = counters.published - unpulled - gone_unpulled + excess;
        counters
    }
}

/// Changes counts so that they add up to a sum: the first one grows, or they shrink in order.
fn adjust(counts: [&mut u64; 3], sum: u64) {
    let now: u64 = counts.iter().map(|count| **count).sum();
    let (mut more, mut less) = (sum.saturating_sub(now), now.saturating_sub(sum));
    for count in counts {
        *count += std::mem::take(&mut more);
        let taken = less.min(*count);
        *count -= taken;
        less -= taken;
    }
}

/// The ordinal of an id that is not in a gap.
fn ordinal(gaps: &[Gap], id: u64) -> Ordinal {
    let gap = gaps.iter().rfind(|gap| gap.id <= id);
    Ordinal::new(gap.map_or(id, |gap| gap.appended + (id - gap.id)))
}

/// Moves the end of the log to an id. In between are gaps, and messages that have left.
fn advance(log: &mut Log, gaps: &[Gap], id: u64) {
    for gap in gaps.iter().filter(|gap| gap.id <= id) {
        if gap.id <= log.next_id() {
            continue;
        }
        let before = gap.appended.saturating_sub(log.appended());
        log.leave_out(log.next_id() + before);
        log.skip_to(gap.id);
    }
    log.leave_out(id);
}
