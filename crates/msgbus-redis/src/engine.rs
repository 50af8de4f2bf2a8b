//! The engine.

use std::{future::ready, sync::Arc, time::Duration};

use msgbus_core::{
    BatchLimit, GroupName, NewMessage, SettledBatch, Settlement, TopicName,
    engine::{
        Answer, Begin, Engine, EngineError, EngineGroup, EngineGroupSettings, EngineStats,
        EngineTopics, Fetch, Health, LeaseKey, Leases, Page, Receipt, Unsettled, WindowSink,
    },
};
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

use crate::{
    RedisOptions, admin,
    asker::Asker,
    connection::{Connection, MAX_OPERATIONS},
    error::Request,
    groups::{self, Fetching},
    history,
    publish::Batch,
    tail,
};

/// Why an engine cannot be made: its address, its prefix or its certificates are invalid.
pub type ConnectError = redis::RedisError;

/// An engine on Redis. Clones share the connection. It needs the runtime of tokio in which it was made.
#[derive(Debug, Clone)]
pub struct RedisEngine {
    connection: Arc<Connection>,
    runtime: Handle,
}

impl RedisEngine {
    /// Begins to connect. It does not wait for the server: while there is none, every operation fails with
    /// [`EngineError::Unavailable`].
    ///
    /// # Errors
    /// When the options are invalid.
    ///
    /// # Panics
    /// Outside of a runtime of tokio.
    pub fn connect(options: RedisOptions) -> Result<Self, ConnectError> {
        let connection = Arc::new(Connection::begin(options)?);
        Ok(Self { connection, runtime: Handle::current() })
    }

    /// An answer that comes in time, to whatever executor or thread waits for it. What is asked for is done whether or not
    /// somebody waits.
    fn answer<T, F>(&self, request: Request, act: impl FnOnce(Arc<Connection>) -> F) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        let limit = self.connection.shared.options.timeout * 2;
        let Ok(permit) = Arc::clone(&self.connection.shared.permits).try_acquire_owned() else {
            return Box::pin(ready(Err(EngineError::Busy)));
        };
        let acting = act(Arc::clone(&self.connection));
        let (sender, answer) = oneshot::channel();
        self.runtime.spawn(async move {
            let asker = Asker::new(sender, request);
            let answer = timeout(limit, acting).await;
            drop(permit);
            let _ = asker.answer(answer.unwrap_or_else(|_| Err(request.unanswered())));
        });
        Box::pin(async { answer.await.unwrap_or(Err(EngineError::Closed)) })
    }
}

impl Engine for RedisEngine {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn health(&self) -> Health {
        self.connection.shared.health()
    }

    fn max_age(&self, topic: &TopicName) -> Option<Duration> {
        self.connection.shared.options.max_age.filter(|_| !topic.is_of_dead_letters())
    }

    fn publish(&self, topic: &TopicName, messages: Vec<NewMessage>) -> Answer<Receipt> {
        let Connection { shared, publisher, lanes, .. } = &*self.connection;
        let Ok(permit) = Arc::clone(&shared.permits).try_acquire_owned() else {
            return Box::pin(ready(Err(EngineError::Busy)));
        };
        match publisher {
            Some(publisher) => {
                Box::pin(publisher.publish(Batch::new(shared, topic, messages), permit))
            }
            None => Box::pin(lanes.here().publish(shared, topic, messages, permit)),
        }
    }

    /// Each publish has a permit until it is answered.
    fn finish(&self) -> Answer<()> {
        let permits = Arc::clone(&self.connection.shared.permits);
        Box::pin(async move {
            let all = permits.acquire_many(MAX_OPERATIONS).await;
            all.map(drop).map_err(|_| EngineError::Closed)
        })
    }

    fn fetch(&self, topic: &TopicName, group: Option<&GroupName>, fetch: Fetch) -> Answer<Leases> {
        let shared = Arc::clone(&self.connection.shared);
        let fetching = Fetching { shared, topic: topic.clone(), group: group.cloned(), fetch };
        let (worker, leases) = oneshot::channel();
        // Each of its requests has a limit.
        self.runtime.spawn(fetching.run(worker));
        Box::pin(async move { leases.await.unwrap_or(Err(EngineError::Closed)) })
    }

    fn settle(
        &self,
        topic: &TopicName,
        group: Option<&GroupName>,
        keys: Vec<LeaseKey>,
        settlement: &Settlement,
    ) -> Answer<SettledBatch> {
        let (topic, group, settlement) = (topic.clone(), group.cloned(), settlement.clone());
        self.answer(Request::Final, |connection| {
            groups::settle_all(connection, topic, group, keys, settlement)
        })
    }

    fn history(&self, topic: &TopicName, from: Begin, limit: BatchLimit) -> Answer<Page> {
        let topic = topic.clone();
        self.answer(Request::Harmless, |connection| history::page(connection, topic, from, limit))
    }

    fn tail(&self, topic: &TopicName, sink: WindowSink) {
        let shared = Arc::clone(&self.connection.shared);
        self.runtime.spawn(tail::feed(shared, topic.clone(), sink));
    }

    fn delete(&self, topic: &TopicName) -> Answer<bool> {
        let topic = topic.clone();
        self.answer(Request::Final, |connection| history::delete(connection, topic))
    }

    fn stats(&self, topic: &TopicName) -> Answer<Option<EngineStats>> {
        let topic = topic.clone();
        self.answer(Request::Harmless, |connection| history::stats(connection, topic))
    }

    fn topics(&self, prefix: &str, after: &str, max: usize) -> Answer<EngineTopics> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        self.answer(Request::Harmless, |connection| admin::topics(connection, prefix, after, max))
    }

    fn group(&self, topic: &TopicName, group: &GroupName) -> Answer<Option<EngineGroup>> {
        let (topic, group) = (topic.clone(), group.clone());
        self.answer(Request::Harmless, |connection| admin::group(connection, topic, group))
    }

    fn unsettled(
        &self,
        topic: &TopicName,
        group: &GroupName,
        max: usize,
    ) -> Answer<Option<Unsettled>> {
        let (topic, group) = (topic.clone(), group.clone());
        self.answer(Request::Harmless, move |connection| {
            admin::unsettled(connection, topic, group, max)
        })
    }

    fn set_group(&self, topic: &TopicName, group: &GroupName, from: Option<Begin>) -> Answer<bool> {
        let (topic, group) = (topic.clone(), group.clone());
        self.answer(Request::Final, |connection| admin::set_group(connection, topic, group, from))
    }

    fn change_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        change: EngineGroupSettings,
    ) -> Answer<()> {
        let (topic, group) = (topic.clone(), group.clone());
        self.answer(Request::Final, |connection| {
            admin::change_group(connection, topic, group, change)
        })
    }

    fn remove_group(&self, topic: &TopicName, group: &GroupName) -> Answer<bool> {
        let (topic, group) = (topic.clone(), group.clone());
        self.answer(Request::Final, |connection| admin::remove_group(connection, topic, group))
    }
}
