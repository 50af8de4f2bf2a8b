//! Those who wait for what is published together.

use std::time::{Duration, Instant};

use msgbus_core::engine::{EngineError, Receipt};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub(crate) type Answer = Result<Receipt, EngineError>;

/// Who waits for how many messages. They are published, whether or not the answer is waited for.
#[derive(Debug)]
pub(crate) struct Part {
    count: u64,
    since: Instant,
    answer: oneshot::Sender<Answer>,
    _permit: OwnedSemaphorePermit,
}

impl Part {
    /// The answer is that the engine is closed if the part is dropped before its messages were sent.
    pub(crate) fn new(
        count: usize,
        permit: OwnedSemaphorePermit,
    ) -> (Self, impl Future<Output = Answer> + use<>) {
        let (sender, answer) = oneshot::channel();
        let part =
            Self { count: count as u64, since: Instant::now(), answer: sender, _permit: permit };
        (part, async { answer.await.unwrap_or(Err(EngineError::Closed)) })
    }

    /// Refuses one that has waited for that long.
    pub(crate) fn in_time(self, limit: Duration) -> Option<Self> {
        if self.since.elapsed() < limit {
            return Some(self);
        }
        let _ = self.answer.send(Err(EngineError::Busy));
        None
    }
}

/// Those whose messages are sent in one call. If nobody answers them, nobody knows what became of the messages: the
/// runtime has ended.
#[derive(Debug)]
pub(crate) struct Sent(pub(crate) Vec<Part>);

impl Sent {
    pub(crate) fn answer(mut self, receipt: Answer) {
        let (mut before, is_one) = (0, self.0.len() == 1);
        for Part { count, answer, .. } in self.0.drain(..) {
            let _ =
                answer.send(receipt.map(|all| if is_one { all } else { part(all, before, count) }));
            before += count;
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        for Part { answer, .. } in self.0.drain(..) {
            let _ = answer.send(Err(EngineError::Unknown));
        }
    }
}

/// The receipt of some of the messages that were published together.
fn part(whole: Receipt, before: u64, count: u64) -> Receipt {
    let first = whole.first + before;
    Receipt { epoch: whole.epoch, first, last: first + count.max(1) - 1 }
}
