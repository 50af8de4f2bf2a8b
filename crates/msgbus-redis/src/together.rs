//! What is published to a topic while a script runs there is published by the next one, together: a call of the script
//! costs Redis more than a message in it.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use msgbus_core::{
    NewMessage, TopicName,
    engine::{EngineError, Receipt},
};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, oneshot},
};

use crate::{
    connection::Shared,
    publish::{Batch, run, run_all},
};

type Answer = Result<Receipt, EngineError>;

/// The most messages that are sent before an answer, and the most bytes, unless one publish alone has more.
const MAX_MESSAGES: usize = 256;
const MAX_BYTES: u64 = 1 << 20;

/// The publishes that wait, by topic. A topic is here as long as a task publishes to it.
#[derive(Debug, Default)]
pub(crate) struct Together(Mutex<HashMap<TopicName, VecDeque<Waiting>>>);

#[derive(Debug)]
struct Waiting {
    messages: Vec<NewMessage>,
    part: Part,
    since: Instant,
}

/// Who waits for how many messages.
#[derive(Debug)]
struct Part {
    count: u64,
    answer: oneshot::Sender<Answer>,
    _permit: OwnedSemaphorePermit,
}

/// What one call of the script publishes. A publish with idempotency keys has one of its own, as its numbers may be those of
/// before.
#[derive(Debug)]
struct Call {
    messages: Vec<NewMessage>,
    parts: Vec<Part>,
    has_keys: bool,
}

impl Together {
    /// Publishes messages, so that their numbers follow one another. They have their place among those of the topic as soon
    /// as this returns. A task of `runtime` publishes them, whether or not the answer is waited for.
    pub(crate) fn publish(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        runtime: &Handle,
        topic: &TopicName,
        messages: Vec<NewMessage>,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = Answer> + use<> {
        let (sender, answer) = oneshot::channel();
        let part = Part { count: messages.len() as u64, answer: sender, _permit: permit };
        let waiting = Waiting { messages, part, since: Instant::now() };
        let is_first = match self.0.lock().entry(topic.clone()) {
            Entry::Occupied(mut others) => {
                others.get_mut().push_back(waiting);
                false
            }
            Entry::Vacant(topic) => {
                topic.insert(VecDeque::from([waiting]));
                true
            }
        };
        if is_first {
            runtime.spawn(Arc::clone(self).drive(Arc::clone(shared), topic.clone()));
        }
        async { answer.await.unwrap_or(Err(EngineError::Closed)) }
    }

    async fn drive(self: Arc<Self>, shared: Arc<Shared>, topic: TopicName) {
        let limit = shared.options.timeout;
        while let Some(calls) = self.next(&topic, limit) {
            let batch = |call: Call| (Batch::new(&shared, &topic, call.messages), call.parts);
            let (batches, parts): (Vec<Batch>, Vec<Vec<Part>>) =
                calls.into_iter().map(batch).unzip();
            let receipts = match &batches[..] {
                [batch] => vec![run(&shared, batch).await],
                batches => run_all(&shared, batches).await,
            };
            for (receipt, parts) in receipts.into_iter().zip(parts) {
                answer(receipt, parts);
            }
        }
    }

    /// Takes what is published together next. `None` if nothing waits. Refuses what has waited for longer than the limit.
    fn next(&self, topic: &TopicName, limit: Duration) -> Option<Vec<Call>> {
        let now = Instant::now();
        let mut topics = self.0.lock();
        let queue = topics.get_mut(topic)?;
        let (mut calls, mut all, mut bytes) = (Vec::<Call>::new(), 0, 0);
        while let Some(Waiting { messages, part, since }) = queue.pop_front() {
            // Who waits no longer was told that nobody knows.
            if part.answer.is_closed() {
                continue;
            }
            if now.duration_since(since) >= limit {
                let _ = part.answer.send(Err(EngineError::Busy));
                continue;
            }
            (all, bytes) = (all + messages.len(), bytes + size(&messages));
            if !calls.is_empty() && (all > MAX_MESSAGES || bytes > MAX_BYTES) {
                queue.push_front(Waiting { messages, part, since });
                break;
            }
            let has_keys = messages.iter().any(|message| message.repeat_key().is_some());
            match calls.last_mut() {
                Some(call) if !call.has_keys && !has_keys => {
                    call.messages.extend(messages);
                    call.parts.push(part);
                }
                _ => calls.push(Call { messages, parts: vec![part], has_keys }),
            }
        }
        if calls.is_empty() {
            topics.remove(topic);
            return None;
        }
        Some(calls)
    }
}

fn size(messages: &[NewMessage]) -> u64 {
    messages.iter().map(NewMessage::accounted_size).sum()
}

/// Answers those whose messages were published by one call.
fn answer(receipt: Answer, parts: Vec<Part>) {
    let (mut before, is_one) = (0, parts.len() == 1);
    for Part { count, answer, .. } in parts {
        let _ = answer.send(receipt.map(|all| if is_one { all } else { part(all, before, count) }));
        before += count;
    }
}

/// The receipt of some of the messages that were published together.
fn part(whole: Receipt, before: u64, count: u64) -> Receipt {
    let first = whole.first + before;
    Receipt { epoch: whole.epoch, first, last: first + count.max(1) - 1 }
}
