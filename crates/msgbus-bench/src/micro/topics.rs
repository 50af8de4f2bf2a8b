//! Publishing with many topics.

use msgbus_core::{MessageBus, Options, TopicName, TopicSettings};

use super::{
    pace::{Bench, clocked},
    queue::{BATCH, name, payload, payloads, put},
};

pub(super) fn measure(bench: &mut Bench) {
    let most = if bench.is_quick() { 10_000 } else { 100_000 };
    for count in [1, 10, most] {
        let to_one = format!("put, to one of {count} topics");
        let to_all = format!("put, to any of {count} topics");
        if !bench.wants(&to_one) && !bench.wants(&to_all) {
            continue;
        }
        // Few messages per topic, so that the memory does not grow between batches.
        let settings = TopicSettings { max_messages: 4, ..TopicSettings::default() };
        let bus = MessageBus::new(Options { topic: settings, ..Options::default() });
        let topics: Vec<TopicName> = (0..count).map(|n| name(&format!("topic/{n}"))).collect();
        for topic in topics.iter().cycle().take(4 * topics.len()) {
            put(&bus, topic, payload());
        }
        bench.time(&to_one, BATCH, || {
            let payloads = payloads(BATCH);
            clocked(|| payloads.into_iter().for_each(|payload| put(&bus, &topics[0], payload)))
        });
        let mut random = fastrand::Rng::with_seed(1);
        bench.time(&to_all, BATCH, || {
            let work: Vec<_> =
                payloads(BATCH).into_iter().map(|p| (p, &topics[random.usize(..count)])).collect();
            clocked(|| work.into_iter().for_each(|(payload, topic)| put(&bus, topic, payload)))
        });
    }
}
