//! A plain pull that waits in the topic's queue.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use super::waiting::{InEngine, Source, Take, Waiting};
use crate::{
    bus::{MessageBus, TopicHandle, TopicRef, clock},
    error::{RecvError, SubscribeError},
    model::{GroupName, Message, TopicName},
    options::BatchLimit,
    topic::{Page, TakeError, Taken, Topic, WaiterId},
};

impl MessageBus {
    /// Pulls messages as soon as there are any. The topic need not exist, see
    /// [`subscribe`](Self::subscribe). Waiting pulls are served in the order in which they began. A
    /// [`get`](Self::get) does not queue and may come before them.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn pull_wait(&self, topic: &TopicName, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        self.topic_ref(topic, &mut None).pull_wait(limit)
    }
}

impl TopicHandle {
    /// Pulls messages as soon as there are any, see [`MessageBus::pull_wait`].
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn pull_wait(&mut self, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        self.topic_ref().pull_wait(limit)
    }
}

impl TopicRef<'_> {
    fn pull_wait(&mut self, limit: BatchLimit) -> Result<Pull, SubscribeError> {
        if let Some(engine) = self.engine() {
            let pull = InEngine::new(|has_taken| {
                let pulled = engine.pull_wait(self.name(), limit, has_taken);
                pulled.map(|pulled| pulled.map_err(RecvError::from))
            });
            return Ok(Pull(Source::Engine(pull)));
        }
        let joined = self.with_or_create(|_, topic| topic.wait(None));
        let (topic, waiter) = joined.map_err(|_| SubscribeError::Closed)?;
        Ok(Pull(Source::Topic(Waiting::new(topic, waiter, TakeNext { limit }))))
    }
}

/// A pull that waits for its messages: a future of at least one message, up to a limit.
///
/// The waiting pulls of a topic are served in the order in which they began, and each message goes to one of
/// them. A pull takes messages only when its future completes. Dropping it earlier takes nothing and lets the
/// next one have them. A pull from a durable topic takes them, and then waits for the store: dropped meanwhile, it has
/// pulled them. Once completed, it stays pending and no longer queues.
#[derive(Debug)]
pub struct Pull(Source<TakeNext>);

#[derive(Debug)]
struct TakeNext {
    limit: BatchLimit,
}

impl Take for TakeNext {
    type Item = Message;
    type Error = RecvError;

    fn group(&self) -> Option<&GroupName> {
        None
    }

    fn take(
        &self,
        topic: &mut Topic,
        waiter: WaiterId,
        page: &mut Page,
    ) -> Result<Taken, TakeError> {
        topic.poll_pull(waiter, self.limit, clock::monotonic(), page)
    }
}

impl Pull {
    /// The size of the oldest payload that nobody has pulled, in bytes. `None` if there is none or the topic
    /// was deleted. Takes nothing.
    pub fn next_size(&self) -> Option<usize> {
        self.0.waiting()?.topic().lock().next_unpulled_size(clock::monotonic())
    }

    /// Whether messages were taken from a durable topic, and the store has not kept the new position yet. Nobody else
    /// can get them any more.
    pub fn is_committing(&self) -> bool {
        self.0.is_committing()
    }

    /// Blocks the thread until there are messages or the timeout has passed, and then returns `None`. If messages were taken by
    /// then, it waits until the store or the engine has kept that.
    ///
    /// # Errors
    /// When the topic was deleted or the bus closed, or the store of the topic fails.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Option<Vec<Message>>, RecvError> {
        self.0.wait_timeout(timeout)
    }

    /// Polls for messages as the future does, for a caller that may lose its permission. `may_take` is called
    /// under the topic's lock. If it returns `false`, nothing is taken and the result is empty. So nothing is
    /// taken that was published after the permission was lost.
    ///
    /// # Errors
    /// When the topic was deleted or the bus closed.
    pub fn poll_allowed(
        &mut self,
        cx: &mut Context<'_>,
        may_take: impl FnMut() -> bool,
    ) -> Poll<Result<Vec<Message>, RecvError>> {
        self.0.poll_allowed(cx, may_take)
    }
}

impl Future for Pull {
    type Output = Result<Vec<Message>, RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_allowed(cx, || true)
    }
}
