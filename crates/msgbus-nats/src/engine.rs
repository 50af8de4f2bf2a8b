//! The engine.

use std::{
    future::ready,
    pin::Pin,
    sync::Arc,
    task::{self, Context, Poll},
    time::Duration,
};

use async_nats::{ConnectError, ConnectOptions};
use msgbus_core::{
    BatchLimit, GroupName, NewMessage, NewRequest, SettledBatch, Settlement, TopicName,
    engine::{
        Answer, Asked, Begin, Engine, EngineError, EngineGroup, EngineGroupSettings, EngineStats,
        EngineTopics, Fetch, Health, LeaseKey, Leases, Page, Receipt, ServiceSink, TakeRequest,
        Unsettled, Urgency, WindowSink,
    },
};
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, error::Elapsed, timeout},
};
use tracing::debug;

use crate::{
    NatsOptions, admin, connection::Connection, error::change_error, groups, history,
    publish::Pending, refusals::API, services, tail,
};

/// An engine on NATS `JetStream`. Clones share the connection. It needs the runtime of tokio in which it was made.
#[derive(Debug, Clone)]
pub struct NatsEngine {
    connection: Arc<Connection>,
    /// The same connection, with the stream of dead letters: they do not expire, and no other topic displaces them.
    dead_letters: Arc<Connection>,
    runtime: Handle,
}

impl NatsEngine {
    /// Begins to connect. It does not wait for the server: while there is none, every operation fails with
    /// [`EngineError::Unavailable`].
    ///
    /// # Errors
    /// When the addresses are invalid.
    ///
    /// # Panics
    /// Outside of a runtime of tokio.
    pub async fn connect(
        options: NatsOptions,
        connect: ConnectOptions,
    ) -> Result<Self, ConnectError> {
        let [connection, dead_letters] = Connection::begin(options, connect).await?;
        Ok(Self { connection, dead_letters, runtime: Handle::current() })
    }

    /// The connection with the stream in which a topic is.
    fn of(&self, topic: &TopicName) -> &Arc<Connection> {
        if topic.is_of_dead_letters() { &self.dead_letters } else { &self.connection }
    }

    /// An answer that comes in time, to whatever executor or thread waits for it.
    fn answer<T, F>(
        &self,
        topic: &TopicName,
        extra: Duration,
        act: impl FnOnce(Arc<Connection>) -> F,
    ) -> Running<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        self.run(self.of(topic), extra, true, act)
    }

    /// `is_counted`: whether it is one of the operations of which there is a maximum.
    fn run<T, F>(
        &self,
        connection: &Arc<Connection>,
        extra: Duration,
        is_counted: bool,
        act: impl FnOnce(Arc<Connection>) -> F,
    ) -> Running<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        let limit = connection.options.timeout * 2 + extra;
        let (connection, began) = (Arc::clone(connection), Instant::now());
        let answer = act(Arc::clone(&connection));
        // The timer is made in the runtime, because the caller may have none.
        let permit = is_counted.then(|| Arc::clone(&self.connection.operations));
        let permit = permit.map(Semaphore::try_acquire_owned).transpose();
        let task = self.runtime.spawn(async move {
            let Ok(_permit) = permit else { return Ok(Err(EngineError::Busy)) };
            let answer = timeout(limit, answer).await?;
            Ok(answer.map_err(|error| match error {
                // Nothing was done, so it does no harm if another request was refused.
                EngineError::Unavailable => connection.refusals.explain(error, API, began),
                error => error,
            }))
        });
        let is_too_late = task.is_finished();
        Running { task, is_too_late, is_abandoned_when_dropped: false }
    }
}

/// An operation that the runtime runs. It goes on when this is dropped, unless nobody else has use for it.
struct Running<T> {
    task: JoinHandle<Result<Result<T, EngineError>, Elapsed>>,
    /// Whether the task had ended at once: if it has no answer then, there was no runtime.
    is_too_late: bool,
    is_abandoned_when_dropped: bool,
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if self.is_abandoned_when_dropped {
            self.task.abort();
        }
    }
}

impl<T> Future for Running<T> {
    type Output = Result<T, EngineError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match task::ready!(Pin::new(&mut self.task).poll(cx)) {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                debug!("NATS has not answered in time");
                Err(EngineError::Unknown)
            }
            Err(_) if self.is_too_late => Err(EngineError::Closed),
            // The runtime has ended meanwhile. Something may have been sent.
            Err(_) => Err(EngineError::Unknown),
        })
    }
}

async fn delete(connection: Arc<Connection>, topic: TopicName) -> Result<bool, EngineError> {
    let known = connection.stream().await?;
    let purged = known.stream.purge().filter(connection.subject(&topic)).await;
    Ok(purged.map_err(|error| change_error(&error))?.purged > 0)
}

async fn stats(
    connection: Arc<Connection>,
    topic: TopicName,
) -> Result<Option<EngineStats>, EngineError> {
    let (known, info) = connection.state().await?;
    let subject = connection.subject(&topic);
    let (pending, page) =
        history::read(&connection, &known, subject, Begin::First, BatchLimit::ONE).await?;
    let Some((first, ..)) = page.first() else { return Ok(None) };
    let next = info.state.last_sequence + 1;
    let (epoch, first) = (known.epoch, first.id);
    Ok(Some(EngineStats { epoch, retained: pending, first, next: next.max(first + 1) }))
}

impl Engine for NatsEngine {
    fn kind(&self) -> &'static str {
        "nats"
    }

    fn health(&self) -> Health {
        self.connection.health()
    }

    fn max_age(&self, topic: &TopicName) -> Option<Duration> {
        self.of(topic).options.max_age
    }

    fn publish(&self, topic: &TopicName, messages: Vec<NewMessage>) -> Answer<Receipt> {
        let connection = self.of(topic);
        let Ok(permit) = Arc::clone(&self.connection.publishes).try_acquire_owned() else {
            return Box::pin(ready(Err(EngineError::Busy)));
        };
        match Pending::new(connection, topic, messages, permit) {
            Ok((publish, receipt)) => {
                connection.publisher.publish(publish);
                Box::pin(async { receipt.await.unwrap_or(Err(EngineError::Unknown)) })
            }
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn fetch(&self, topic: &TopicName, group: Option<&GroupName>, fetch: Fetch) -> Answer<Leases> {
        let (name, group) = (topic.clone(), group.cloned());
        // Those that wait are limited elsewhere, and end when nobody waits for them.
        let is_counted = fetch.wait.is_zero();
        let mut fetching = self.run(self.of(topic), fetch.wait, is_counted, |connection| {
            groups::fetch(connection, name, group, fetch)
        });
        fetching.is_abandoned_when_dropped = true;
        Box::pin(fetching)
    }

    fn settle(
        &self,
        topic: &TopicName,
        group: Option<&GroupName>,
        keys: Vec<LeaseKey>,
        settlement: &Settlement,
    ) -> Answer<SettledBatch> {
        let (name, group, settlement) = (topic.clone(), group.cloned(), settlement.clone());
        Box::pin(self.answer(topic, Duration::ZERO, |connection| {
            groups::settle(connection, name, group, keys, settlement)
        }))
    }

    fn history(&self, topic: &TopicName, from: Begin, limit: BatchLimit) -> Answer<Page> {
        let name = topic.clone();
        Box::pin(self.answer(topic, Duration::ZERO, |connection| {
            history::page(connection, name, from, limit)
        }))
    }

    fn tail(&self, topic: &TopicName, sink: WindowSink) {
        self.runtime.spawn(tail::feed(Arc::clone(self.of(topic)), topic.clone(), sink));
    }

    fn delete(&self, topic: &TopicName) -> Answer<bool> {
        let name = topic.clone();
        Box::pin(self.answer(topic, Duration::ZERO, |connection| delete(connection, name)))
    }

    fn stats(&self, topic: &TopicName) -> Answer<Option<EngineStats>> {
        let name = topic.clone();
        Box::pin(self.answer(topic, Duration::ZERO, |connection| stats(connection, name)))
    }

    fn topics(&self, prefix: &str, after: &str, max: usize) -> Answer<EngineTopics> {
        let list = |connection: &Arc<Connection>| {
            let (prefix, after) = (prefix.to_owned(), after.to_owned());
            self.run(connection, Duration::ZERO, true, |connection| {
                admin::topics(connection, prefix, after, max)
            })
        };
        let (topics, dead_letters) = (list(&self.connection), list(&self.dead_letters));
        Box::pin(async move {
            let (mut all, others) = (topics.await?, dead_letters.await?);
            // Behind the last name of a list that is not complete, others are missing.
            let ends =
                [&all, &others].map(|list| list.topics.last().filter(|_| list.has_more).cloned());
            let end = ends.into_iter().flatten().min();
            // What a version before has put there.
            all.topics.retain(|(name, _)| !name.is_of_dead_letters());
            all.topics.extend(others.topics);
            all.topics.sort_unstable();
            all.topics.retain(|found| end.as_ref().is_none_or(|end| found.0 <= end.0));
            all.has_more |= others.has_more || all.topics.len() > max;
            all.topics.truncate(max);
            Ok(all)
        })
    }

    fn group(&self, topic: &TopicName, group: &GroupName) -> Answer<Option<EngineGroup>> {
        let (name, group) = (topic.clone(), group.clone());
        Box::pin(
            self.answer(topic, Duration::ZERO, |connection| admin::group(connection, name, group)),
        )
    }

    fn unsettled(
        &self,
        topic: &TopicName,
        group: &GroupName,
        _max: usize,
    ) -> Answer<Option<Unsettled>> {
        let (name, group) = (topic.clone(), group.clone());
        Box::pin(
            self.answer(topic, Duration::ZERO, |connection| {
                admin::unsettled(connection, name, group)
            }),
        )
    }

    fn set_group(&self, topic: &TopicName, group: &GroupName, from: Option<Begin>) -> Answer<bool> {
        let (name, group) = (topic.clone(), group.clone());
        Box::pin(self.answer(topic, Duration::ZERO, move |connection| {
            admin::set_group(connection, name, group, from)
        }))
    }

    fn change_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        change: EngineGroupSettings,
    ) -> Answer<()> {
        let (name, group) = (topic.clone(), group.clone());
        Box::pin(self.answer(topic, Duration::ZERO, move |connection| {
            admin::change_group(connection, name, group, change)
        }))
    }

    fn remove_group(&self, topic: &TopicName, group: &GroupName) -> Answer<bool> {
        let (name, group) = (topic.clone(), group.clone());
        Box::pin(self.answer(topic, Duration::ZERO, |connection| {
            admin::remove_group(connection, name, group)
        }))
    }

    fn serve(&self, service: &TopicName, sink: ServiceSink) {
        let connection = Arc::clone(&self.connection);
        let serving = services::serve(Arc::clone(&connection), service.clone(), sink);
        connection.serving.tasks.spawn_on(serving, &self.runtime);
    }

    fn request(&self, service: &TopicName, take: TakeRequest, urgency: Urgency) -> Answer<Asked> {
        let service = service.clone();
        // Those that wait are limited by the memory of the bus, and end when nobody waits for them.
        let mut asking = self.run(&self.connection, NewRequest::MAX_TIMEOUT, false, |connection| {
            services::request(connection, service, take, urgency)
        });
        asking.is_abandoned_when_dropped = true;
        Box::pin(asking)
    }

    fn finish(&self) -> Answer<()> {
        // It comes once, and has to come through whatever is not answered.
        Box::pin(self.run(&self.connection, Duration::ZERO, false, |connection| async move {
            let served = services::finish(Arc::clone(&connection)).await;
            served.and(connection.published().await)
        }))
    }

    fn is_served(&self, service: &TopicName) -> Answer<bool> {
        let service = service.clone();
        Box::pin(self.run(&self.connection, Duration::ZERO, true, |connection| {
            services::is_served(connection, service)
        }))
    }
}
