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
    publish::{Batch, run, run_all},
};

type Answer = Result<Receipt, EngineError>;
type Waiting = (Batch, oneshot::Sender<Answer>);
/// Who waits, and for how many of the messages.
type Parts = Vec<(u64, oneshot::Sender<Answer>)>;

/// The most messages that are sent before an answer, and the most bytes, unless one publish alone has more.
const MAX_MESSAGES: usize = 256;
const MAX_BYTES: usize = 1 << 20;

/// The publishes that wait, by topic. A topic is here as long as a task publishes to it.
#[derive(Debug, Default)]
pub(crate) struct Together(Mutex<HashMap<TopicName, VecDeque<Waiting>>>);

impl Together {
    /// Publishes messages, so that their numbers follow one another. They have their place among those of the topic as soon
    /// as this returns, and are published when what it returns is polled.
    pub(crate) fn publish(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        topic: TopicName,
        batch: Batch,
    ) -> impl Future<Output = Answer> + use<> {
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
        let (together, shared) = (Arc::clone(self), Arc::clone(shared));
        async move {
            if is_first {
                // A task of its own: the others do not depend on whether this one is waited for.
                tokio::spawn(together.drive(shared, topic));
            }
            answer.await.unwrap_or(Err(EngineError::Closed))
        }
    }

    async fn drive(self: Arc<Self>, shared: Arc<Shared>, topic: TopicName) {
        while let Some(calls) = self.next(&topic) {
            let (batches, parts): (Vec<Batch>, Vec<Parts>) = calls.into_iter().unzip();
            let receipts = match &batches[..] {
                [batch] => vec![run(&shared, batch).await],
                batches => run_all(&shared, batches).await,
            };
            for (receipt, parts) in receipts.into_iter().zip(parts) {
                answer(receipt, parts);
            }
        }
    }

    /// Takes what is published together next, as calls of the script. A batch with idempotency keys has one of its own, as its
    /// numbers may be those of before.
    fn next(&self, topic: &TopicName) -> Option<Vec<(Batch, Parts)>> {
        let mut topics = self.0.lock();
        let queue = topics.get_mut(topic)?;
        let (mut calls, mut all, mut bytes) = (Vec::<(Batch, Parts)>::new(), 0, 0);
        while let Some((batch, sender)) = queue.pop_front() {
            // Who waits no longer was told that nobody knows: no more wait than operations have permits.
            if sender.is_closed() {
                continue;
            }
            (all, bytes) = (all + batch.len(), bytes + batch.bytes());
            if !calls.is_empty() && (all > MAX_MESSAGES || bytes > MAX_BYTES) {
                queue.push_front((batch, sender));
                break;
            }
            let part = (batch.len() as u64, sender);
            match calls.last_mut() {
                Some((call, parts)) if !call.has_keys() && !batch.has_keys() => {
                    call.append(batch);
                    parts.push(part);
                }
                _ => calls.push((batch, vec![part])),
            }
        }
        if calls.is_empty() {
            topics.remove(topic);
            return None;
        }
        Some(calls)
    }
}

/// Answers those whose messages were published by one call.
fn answer(receipt: Answer, parts: Parts) {
    let (mut before, is_one) = (0, parts.len() == 1);
    for (count, sender) in parts {
        let _ = sender.send(receipt.map(|all| if is_one { all } else { part(all, before, count) }));
        before += count;
    }
}

/// The receipt of some of the messages that were published together.
fn part(whole: Receipt, before: u64, count: u64) -> Receipt {
    let first = whole.first + before;
    Receipt { epoch: whole.epoch, first, last: first + count.max(1) - 1 }
}
