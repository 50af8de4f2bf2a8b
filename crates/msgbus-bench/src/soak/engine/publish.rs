//! Publishers: they repeat a message with its idempotency key until it is confirmed, so that it is there once; batches
//! they do not repeat.

use std::{collections::HashMap, rc::Rc, time::Duration};

use bytes::Bytes;
use fastrand::Rng;
use tokio::time::{Instant, sleep};

use super::{
    super::{
        invariants::{Count, Invariant},
        payload::{self, Described, Origin},
        raw_client::Head,
    },
    EngineSoak,
    caller::Caller,
    topics::Topic,
};

/// A message that is not confirmed after this time, though everything is restarted within seconds, is a fault.
const TIMEOUT: Duration = Duration::from_secs(60);
const MAX_LINES: u64 = 60;
/// Batches are told by [`Origin::reloads`].
const IN_BATCH: u64 = 1;

pub(super) struct Publisher {
    soak: Rc<EngineSoak>,
    caller: Caller,
    number: u64,
    /// How many messages were published to each topic.
    counts: HashMap<Topic, u64>,
}

/// Whether a message was published in a batch, which may be there in part.
pub(super) fn is_in_batch(origin: Origin) -> bool {
    origin.reloads == IN_BATCH
}

impl Publisher {
    pub(super) fn new(soak: &Rc<EngineSoak>, rng: Rng) -> Self {
        Self {
            soak: Rc::clone(soak),
            caller: Caller::new(soak, rng),
            number: soak.new_number(),
            counts: HashMap::new(),
        }
    }

    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            let topic = Topic::any(&mut self.caller.rng);
            if self.caller.rng.u8(..20) == 0 {
                self.publish_batch(topic).await;
            } else {
                self.publish(topic).await;
            }
            sleep(Duration::from_millis(self.caller.rng.u64(..12))).await;
        }
    }

    /// Publishes a message until it is confirmed.
    pub(super) async fn publish(&mut self, topic: Topic) {
        let sequence = self.counts.entry(topic).or_default();
        let described = Described { has_type: sequence.is_multiple_of(3), has_encoding: false };
        let origin = Origin { publisher: self.number, sequence: *sequence, reloads: 0, described };
        *sequence += 1;
        let key = format!("{}-{}", self.number, origin.sequence);
        let headers = format!("{}Idempotency-Key: {key}\r\n", described.headers(self.number));
        let mut body = Vec::new();
        payload::write(&mut body, topic.name(), origin, self.caller.rng.usize(..400));
        let (target, begin) = (format!("/{}", topic.path()), Instant::now());
        loop {
            match self.caller.ask("PUT", &target, &headers, &body).await {
                Ok((head, _)) if head.status == 202 => {
                    return self.confirm(topic, &head, &[origin]);
                }
                Ok((head, text)) if !matches!(head.status, 503 | 504) => {
                    return self.fail(&target, &head, &text);
                }
                _ => {}
            }
            self.soak.invariants.borrow_mut().count("publishes repeated", 1);
            if begin.elapsed() > TIMEOUT {
                return self.give_up(topic, &target);
            }
            sleep(Duration::from_millis(self.caller.rng.u64(5..200))).await;
        }
    }

    fn give_up(&self, topic: Topic, target: &str) {
        self.may_have_published(topic, 1);
        self.soak.invariants.borrow_mut().check(Invariant::Responses, false, || {
            format!("PUT {target}: not confirmed within {TIMEOUT:?}")
        });
    }

    fn may_have_published(&self, topic: Topic, count: u64) {
        let unknown = Count { confirmed: 0, unconfirmed: count };
        self.soak.invariants.borrow_mut().count_published(unknown);
        self.soak.accounts.borrow_mut().may_have_published(topic, count);
    }

    /// Publishes a batch once. Without an answer, any part of it may be there.
    async fn publish_batch(&mut self, topic: Topic) {
        let (publisher, count) = (self.soak.new_number(), self.caller.rng.u64(1..=MAX_LINES));
        let described = Described::default();
        let origin = |sequence| Origin { publisher, sequence, reloads: IN_BATCH, described };
        let origins: Vec<Origin> = (0..count).map(origin).collect();
        let mut body = Vec::new();
        for origin in &origins {
            payload::write(&mut body, topic.name(), *origin, self.caller.rng.usize(..200));
            body.push(b'\n');
        }
        let target = format!("/{}?split=lines", topic.path());
        match self.caller.ask("PUT", &target, "", &body).await {
            Ok((head, _)) if head.status == 202 => self.confirm(topic, &head, &origins),
            // Nothing was done.
            Ok((head, _)) if head.status == 503 => {
                self.soak.invariants.borrow_mut().count("batches refused", 1);
            }
            Ok((head, text)) if head.status != 504 => self.fail(&target, &head, &text),
            _ => self.may_have_published(topic, count),
        }
    }

    fn confirm(&self, topic: Topic, head: &Head, origins: &[Origin]) {
        let mut invariants = self.soak.invariants.borrow_mut();
        let id = head.number("msgbus-id").map(|id| (id, id));
        let ids = head.number("msgbus-first-id").zip(head.number("msgbus-last-id"));
        let (Some((first, last)), Some(epoch)) = (id.or(ids), head.number("msgbus-epoch")) else {
            return invariants
                .check(Invariant::Responses, false, || format!("{topic:?}: a 202 without ids"));
        };
        let count = origins.len() as u64;
        invariants.count("messages published", count);
        invariants.count_published(Count { confirmed: count, unconfirmed: 0 });
        let is_new = self.soak.accounts.borrow_mut().publish(topic, (epoch, first), origins);
        // Other messages may be in between those of a batch.
        invariants.check(Invariant::Published, is_new && last + 1 >= first + count, || {
            format!("{topic:?}: {count} messages have the ids {first} to {last} of epoch {epoch}")
        });
    }

    fn fail(&self, target: &str, head: &Head, text: &Bytes) {
        self.soak.invariants.borrow_mut().check(Invariant::Responses, false, || {
            format!("PUT {target}: {} {}", head.status, String::from_utf8_lossy(text))
        });
    }
}
