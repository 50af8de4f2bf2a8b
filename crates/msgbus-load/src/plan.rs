//! What a client sends, to which topic, and when.

use std::time::Duration;

use tokio::time::Instant;

use crate::{load::Load, protocol::Body, stamp::Stamp};

/// Whose turn it is: each client goes round all topics, and they begin as far apart as can be, or
/// those that pull would come to what another has just emptied.
#[derive(Debug)]
pub(crate) struct Turn {
    topic: usize,
    first: usize,
    count: usize,
    round: u64,
}

impl Turn {
    pub(crate) fn new(index: usize, load: &Load) -> Self {
        let count = load.topics.len();
        let first = index * count / load.clients;
        Self { topic: first, first, count, round: 0 }
    }

    /// The next topic, and how many times this client was there before.
    pub(crate) fn next(&mut self) -> (usize, u64) {
        let now = (self.topic, self.round);
        self.topic = (self.topic + 1) % self.count;
        self.round += u64::from(self.topic == self.first);
        now
    }
}

/// When the next request of a client is due.
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

/// The bytes to publish, which change by their stamps only.
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

    pub(crate) fn stamped(
        &mut self,
        client: usize,
        round: u64,
        late: Duration,
        count: usize,
    ) -> Body<'_> {
        let is_batch = self.batch > 1;
        let line = if is_batch { self.size + 1 } else { self.size };
        let late = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
        let mut stamp = Stamp {
            publisher: u16::try_from(client).unwrap_or(u16::MAX),
            sequence: round * self.batch as u64,
            time: Stamp::now().saturating_sub(late),
        };
        let bytes = &mut self.bytes[..line * count];
        for payload in bytes.chunks_exact_mut(line.max(1)) {
            stamp.write(&mut payload[..self.size]);
            stamp.sequence += 1;
        }
        if is_batch { Body::Lines(bytes) } else { Body::Message(bytes) }
    }
}
