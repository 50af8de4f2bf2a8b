//! What is published to a topic while a script runs there is published by the next one, together: a call of the script
//! costs Redis more than a message in it.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
};

use msgbus_core::{
    TopicName,
    engine::{EngineError, Receipt},
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    connection::Shared,
    publish::{Batch, run},
};

type Answer = Result<Receipt, EngineError>;
type Waiting = (Batch, oneshot::Sender<Answer>);
/// Who waits, and for how many of the messages.
type Parts = Vec<(u64, oneshot::Sender<Answer>)>;

/// The most messages of one call, and the most bytes, unless one publish alone has more.
const MAX_MESSAGES: usize = 256;
const MAX_BYTES: usize = 1 << 20;

/// The publishes that wait, by topic. A topic is here as long as a task publishes to it.
#[derive(Debug, Default)]
pub(crate) struct Together(Mutex<HashMap<TopicName, VecDeque<Waiting>>>);

impl Together {
    /// Publishes messages, none of which has an idempotency key, so that their numbers follow one another.
    pub(crate) async fn publish(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        topic: TopicName,
        batch: Batch,
    ) -> Answer {
        let (sender, answer) = oneshot::channel();
        let is_first = match self.0.lock().entry(topic.clone()) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push_back((batch, sender));
                false
            }
            Entry::Vacant(topic) => {
                topic.insert(VecDeque::from([(batch, sender)]));
                true
            }
        };
        if is_first {
            // A task of its own: the others do not depend on whether this one is waited for.
            tokio::spawn(Arc::clone(self).drive(Arc::clone(shared), topic));
        }
        answer.await.unwrap_or(Err(EngineError::Closed))
    }

    async fn drive(self: Arc<Self>, shared: Arc<Shared>, topic: TopicName) {
        while let Some((batch, waiting)) = self.next(&topic) {
            let receipt = run(&shared, &batch).await;
            let mut before = 0;
            for (count, sender) in waiting {
                let answer = receipt.map(|whole| part(whole, before, count));
                before += count;
                let _ = sender.send(answer);
            }
        }
    }

    /// Takes what is published together next.
    fn next(&self, topic: &TopicName) -> Option<(Batch, Parts)> {
        let mut topics = self.0.lock();
        let Some((mut batch, sender)) = topics.get_mut(topic)?.pop_front() else {
            topics.remove(topic);
            return None;
        };
        let mut senders = vec![(batch.len() as u64, sender)];
        let queue = topics.get_mut(topic)?;
        while let Some((more, sender)) = queue.pop_front() {
            if batch.len() + more.len() > MAX_MESSAGES || batch.bytes() + more.bytes() > MAX_BYTES {
                queue.push_front((more, sender));
                break;
            }
            senders.push((more.len() as u64, sender));
            batch.append(more);
        }
        Some((batch, senders))
    }
}

/// The receipt of some of the messages that were published together.
fn part(whole: Receipt, before: u64, count: u64) -> Receipt {
    let first = whole.first + before;
    Receipt { epoch: whole.epoch, first, last: first + count.max(1) - 1 }
}
