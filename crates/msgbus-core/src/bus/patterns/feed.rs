//! Feeding: under its lock, a topic gives the derived logs what becomes visible.

use crate::{
    bus::wake_queue,
    topic::{Topic, Wakers},
};

/// Adds the messages that have become visible in a topic to the derived logs that it feeds. Adds the subscriptions that
/// are to be woken to `wakers`. Costs a branch if it feeds none.
#[inline]
pub(in crate::bus) fn feed(topic: &mut Topic, wakers: &mut Wakers) {
    if topic.has_fresh() {
        feed_all(topic, wakers);
    }
}

#[inline(never)]
fn feed_all(topic: &mut Topic, wakers: &mut Wakers) {
    topic.give_fresh(|pattern, messages, is_durable| {
        let mut log = pattern.lock();
        for message in messages {
            log.push(message.reference(is_durable));
        }
        let mut parked = log.take_parked(wake_queue::spare);
        drop(log);
        if wakers.parked.is_empty() {
            wakers.parked = parked;
        } else {
            wakers.parked.append(&mut parked);
        }
    });
}
