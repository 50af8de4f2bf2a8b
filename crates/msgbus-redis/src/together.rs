//! What is published to a topic while a script runs there is published by the next one, together: a call of the script
//! costs Redis more than a message in it.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use msgbus_core::{NewMessage, TopicName};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit, task::yield_now};

use crate::{
    connection::Shared,
    parts::{Answer, Part, Sent},
    publish::{Batch, run, run_all},
};

/// The most messages that are sent before an answer, and the most bytes, unless one publish alone has more.
const MAX_MESSAGES: usize = 256;
const MAX_BYTES: u64 = 1 << 20;

/// The publishes that wait, by topic. A topic is here as long as a task publishes to it.
#[derive(Debug)]
pub(crate) struct Together {
    /// It runs the tasks.
    runtime: Handle,
    topics: Mutex<HashMap<TopicName, VecDeque<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    messages: Vec<NewMessage>,
    part: Part,
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
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime, topics: Mutex::default() }
    }

    /// Publishes messages, so that their numbers follow one another. They have their place among those of the topic as soon
    /// as this returns. They are published, whether or not the answer is waited for.
    pub(crate) fn publish(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        topic: &TopicName,
        messages: Vec<NewMessage>,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = Answer> + use<> {
        let (part, answer) = Part::new(messages.len(), permit);
        let waiting = Waiting { messages, part };
        let is_first = match self.topics.lock().entry(topic.clone()) {
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
            let driver =
                Driver { together: Arc::clone(self), topic: topic.clone(), is_over: false };
            self.runtime.spawn(driver.run(Arc::clone(shared)));
        }
        answer
    }
}

/// Publishes what waits for a topic. When it is dropped before its end, as the runtime has ended or something has panicked,
/// nothing waits there any longer.
struct Driver {
    together: Arc<Together>,
    topic: TopicName,
    is_over: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // After the end, another one may be at work.
        if !self.is_over {
            let waiting = self.together.topics.lock().remove(&self.topic);
            // Whom that wakes may publish.
            drop(waiting);
        }
    }
}

impl Driver {
    async fn run(mut self, shared: Arc<Shared>) {
        let limit = shared.options.timeout;
        loop {
            // What has arrived on other sockets meanwhile comes along, and answers leave first.
            yield_now().await;
            let Some(calls) = self.next(limit) else { return };
            let batch =
                |call: Call| (Batch::new(&shared, &self.topic, call.messages), Sent(call.parts));
            let (batches, sent): (Vec<Batch>, Vec<Sent>) = calls.into_iter().map(batch).unzip();
            let receipts = match &batches[..] {
                [batch] => vec![run(&shared, batch).await],
                batches => run_all(&shared, batches).await,
            };
            for (receipt, sent) in receipts.into_iter().zip(sent) {
                sent.answer(receipt);
            }
        }
    }

    /// Takes what is published together next. `None` if nothing waits. Refuses what has waited for longer than the limit.
    fn next(&mut self, limit: Duration) -> Option<Vec<Call>> {
        let mut topics = self.together.topics.lock();
        let queue = topics.get_mut(&self.topic)?;
        let (mut calls, mut all, mut bytes) = (Vec::<Call>::new(), 0, 0);
        while let Some(Waiting { messages, part }) = queue.pop_front() {
            let Some(part) = part.in_time(limit) else { continue };
            (all, bytes) = (all + messages.len(), bytes + size(&messages));
            if !calls.is_empty() && (all > MAX_MESSAGES || bytes > MAX_BYTES) {
                queue.push_front(Waiting { messages, part });
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
            topics.remove(&self.topic);
            self.is_over = true;
            return None;
        }
        Some(calls)
    }
}

fn size(messages: &[NewMessage]) -> u64 {
    messages.iter().map(NewMessage::accounted_size).sum()
}
