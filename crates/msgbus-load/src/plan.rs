//! What a client publishes or pulls, in which topic, and when.

use std::time::Duration;

use tokio::time::Instant;

use crate::{load::Load, protocol::Body, trace::Trace};

/// The order in which a client visits the topics. Clients start evenly spread over the topics, so that
/// one does not pull from a topic that another has just emptied.
#[derive(Debug)]
pub(crate) struct TopicCycle {
    topic: usize,
    first: usize,
    count: usize,
    round: u64,
    /// Whether a round is one visit, because followers receive all topics in one order.
    is_one_order: bool,
}

impl TopicCycle {
    pub(crate) fn new(index: usize, load: &Load) -> Self {
        let count = load.topics.len();
        let first = index * count / load.clients;
        Self { topic: first, first, count, round: 0, is_one_order: load.pattern.is_some() }
    }

    /// The next topic, and how many times this client has visited what its followers follow.
    pub(crate) fn next(&mut self) -> (usize, u64) {
        let now = (self.topic, self.round);
        self.topic = (self.topic + 1) % self.count;
        self.round += u64::from(self.is_one_order || self.topic == self.first);
        now
    }
}

/// The due times of a client's requests.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(crate) due: Instant,
    step: Duration,
}

impl Schedule {
    #[expect(clippy::cast_precision_loss, reason = "few clients, small batches")]
    pub(crate) fn new(begin: Instant, rate: f64, index: usize, load: &Load) -> Self {
        let between = Duration::from_secs_f64(load.batch as f64 / rate);
        let offset = between.mul_f64(index as f64);
        Self { due: begin + offset, step: between.mul_f64(load.clients as f64) }
    }

    pub(crate) fn advance(&mut self) {
        self.due += self.step;
    }
}

/// The bytes to publish. Only their traces change between requests.
#[derive(Debug)]
pub(crate) struct Payload {
    bytes: Vec<u8>,
    size: usize,
    batch: usize,
}

impl Payload {
    pub(crate) fn new(size: usize, batch: usize) -> Self {
        let mut bytes = vec![b'x'; size];
        if batch > 1 {
            bytes.push(b'\n');
            bytes = bytes.repeat(batch);
        }
        Self { bytes, size, batch }
    }

    pub(crate) fn traced(
        &mut self,
        client: usize,
        round: u64,
        late: Duration,
        count: usize,
    ) -> Body<'_> {
        let is_batch = self.batch > 1;
        let line = if is_batch { self.size + 1 } else { self.size };
        let late = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
        let mut trace = Trace {
            publisher: u16::try_from(client).unwrap_or(u16::MAX),
            sequence: round * self.batch as u64,
            time: Trace::now().saturating_sub(late),
        };
        let bytes = &mut self.bytes[..line * count];
        for payload in bytes.chunks_exact_mut(line.max(1)) {
            trace.write(&mut payload[..self.size]);
            trace.sequence += 1;
        }
        if is_batch { Body::Lines(bytes) } else { Body::Message(bytes) }
    }
}
