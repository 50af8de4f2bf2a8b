//! Groups: leasing messages and acknowledging them.

use std::{hint::black_box, sync::Arc, time::Duration};

use msgbus_core::{
    BatchLimit, GroupName, LeaseOptions, LeaseToken, Leased, MessageBus, Options, Settlement,
    TopicName,
};

use super::{
    pace::{Bench, clocked},
    queue::{BATCH, name, payloads, put},
};

/// The number of messages that a worker takes and acknowledges at once.
const AT_ONCE: usize = 100;

/// The name of a worker, as a server has it.
pub(super) const HOLDER: &str = "127.0.0.1:50000";

pub(super) fn measure(bench: &mut Bench) {
    let workers = Workers::new();
    bench.time("put, lease and ack", BATCH, || {
        workers.start_again();
        let payloads = payloads(BATCH);
        clocked(|| {
            for payload in payloads {
                put(&workers.bus, &workers.topic, payload);
                workers.ack_one(&workers.take(1));
            }
        })
    });
    bench.time("lease and ack", BATCH, || {
        workers.fill();
        clocked(|| (0..BATCH).for_each(|_| workers.ack_one(&workers.take(1))))
    });
    bench.time("lease and ack, by 100", BATCH, || {
        workers.fill();
        clocked(|| {
            for _ in (0..BATCH).step_by(AT_ONCE) {
                workers.ack_all(&workers.take(AT_ONCE));
            }
        })
    });
    bench.time("lease, the group has none", BATCH, || {
        workers.start_again();
        clocked(|| (0..BATCH).for_each(|_| drop(black_box(workers.take(1)))))
    });
    tokens(bench, &workers);
}

/// A server writes a token with each message, and reads it with each ack.
fn tokens(bench: &mut Bench, workers: &Workers) {
    workers.fill();
    let tokens: Vec<LeaseToken> =
        workers.take(BATCH as usize).into_iter().map(|leased| leased.token).collect();
    let write = |text: &mut Vec<u8>| {
        for token in &tokens {
            token.write_to(text);
            text.push(b'\n');
        }
    };
    let mut out = Vec::new();
    bench.time("a token, to text", BATCH, || {
        out.clear();
        clocked(|| write(&mut out))
    });
    let mut text = Vec::new();
    write(&mut text);
    let text = String::from_utf8(text).expect("tokens are ASCII");
    bench.time("a token, from text", BATCH, || {
        clocked(|| {
            let tokens = LeaseToken::parse_lines(&text).map(|(_, token)| token.expect("a token"));
            black_box(tokens.count());
        })
    });
}

/// The workers of one group.
pub(super) struct Workers {
    pub(super) bus: MessageBus,
    pub(super) topic: TopicName,
    pub(super) group: GroupName,
}

impl Workers {
    fn new() -> Self {
        let group = "workers".parse().expect("a good name");
        Self { bus: MessageBus::new(Options::default()), topic: name("jobs/eu"), group }
    }

    /// Makes the topic anew, with a group that has nothing to take.
    fn start_again(&self) {
        let _ = self.bus.delete(&self.topic).wait();
        put(&self.bus, &self.topic, payloads(1).remove(0));
        self.ack_one(&self.take(1));
    }

    fn fill(&self) {
        self.start_again();
        for payload in payloads(BATCH) {
            put(&self.bus, &self.topic, payload);
        }
    }

    fn take(&self, most: usize) -> Vec<Leased> {
        take(&self.bus, &self.topic, &self.group, most)
    }

    fn ack_one(&self, leased: &[Leased]) {
        for Leased { token, .. } in leased {
            self.bus.settle(token, &Settlement::Ack).wait().expect("a live lease");
        }
    }

    fn ack_all(&self, leased: &[Leased]) {
        let tokens: Vec<LeaseToken> = leased.iter().map(|leased| leased.token.clone()).collect();
        let settled = self.bus.settle_all(&tokens, &Settlement::Ack).wait();
        assert!(settled.expect("a bus without a store").lost.is_empty(), "a lease was lost");
    }
}

/// Leases messages as a server does, for a worker with a name.
pub(super) fn take(
    bus: &MessageBus,
    topic: &TopicName,
    group: &GroupName,
    most: usize,
) -> Vec<Leased> {
    let options = LeaseOptions {
        lease: Duration::from_secs(600),
        limit: BatchLimit { events: most, bytes: usize::MAX },
        holder: Some(Arc::from(HOLDER)),
        ..LeaseOptions::default()
    };
    bus.lease(topic, group, options).wait().expect("leases are left")
}
