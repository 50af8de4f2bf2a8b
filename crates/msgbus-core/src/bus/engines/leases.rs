//! Pulls, leases and their settlement in engines.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use chrono::Utc;

use super::{
    SharedEngine,
    dead_letters::{Graves, Rule},
};
use crate::{
    bus::{burials::Settling, map::TopicMap, op::Op},
    engine::{Answer, Begin, Engine, EngineError, Fetch, Fetched, LeaseKey, Leases},
    error::LeaseError,
    model::{GroupName, LeaseToken, Leased, Message, SettledBatch, Settlement, TopicName},
    options::{BatchLimit, LeaseOptions},
    store::{RecoveredMessage, StoreError},
};

/// How long an engine waits for messages before it is asked again.
const WAIT: Duration = Duration::from_secs(30);

impl SharedEngine {
    /// Takes the messages that there are: each goes to one pull.
    pub(in crate::bus) fn pull(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
    ) -> Op<Result<Vec<Message>, StoreError>> {
        let (engine, topic) = (self.clone(), topic.clone());
        Op::running(async move {
            let has_taken = AtomicBool::new(false);
            engine.take(&topic, limit, Duration::ZERO, &has_taken).await
        })
    }

    /// As [`pull`](Self::pull), as soon as there are messages. `has_taken` becomes true when there are: then it must not be
    /// dropped before it is ready, or they are lost.
    pub(crate) fn pull_wait(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
        has_taken: Arc<AtomicBool>,
    ) -> Op<Result<Vec<Message>, StoreError>> {
        let (engine, topic) = (self.clone(), topic.clone());
        Op::running(async move {
            loop {
                let messages = engine.take(&topic, limit, WAIT, &has_taken).await?;
                if !messages.is_empty() {
                    return Ok(messages);
                }
            }
        })
    }

    /// A pull is a lease that is acknowledged before anybody sees the message: it is taken at most once.
    async fn take(
        &self,
        topic: &TopicName,
        limit: BatchLimit,
        wait: Duration,
        has_taken: &AtomicBool,
    ) -> Result<Vec<Message>, StoreError> {
        has_taken.store(false, Relaxed);
        let fetch = Fetch { limit, lease: Duration::from_secs(30), wait, from: Begin::First };
        let Leases { epoch, messages: fetched, .. } = self.fetch(topic, None, fetch).await?;
        if fetched.is_empty() {
            return Ok(Vec::new());
        }
        has_taken.store(true, Relaxed);
        let taken = self.acknowledge(topic, fetched).await?;
        let info = self.info(topic, epoch);
        Ok(taken.into_iter().map(|kept| Message::recovered(&info, kept)).collect())
    }

    /// Acknowledges messages of plain pulls, and returns those that certainly were. It acknowledges each by itself: when
    /// some fail, the others are not lost with them.
    ///
    /// # Errors
    /// If no message was acknowledged: [`EngineError::Unknown`] if one may have been, or else the first error.
    async fn acknowledge(
        &self,
        topic: &TopicName,
        fetched: Vec<Fetched>,
    ) -> Result<Vec<RecoveredMessage>, EngineError> {
        /// How many acks are sent before their answers are awaited.
        const TOGETHER: usize = 64;
        let (mut taken, mut fetched) = (Vec::with_capacity(fetched.len()), fetched.into_iter());
        loop {
            let (messages, keys): (Vec<_>, Vec<_>) = fetched
                .by_ref()
                .take(TOGETHER)
                .map(|fetched| (fetched.message, fetched.key))
                .unzip();
            if messages.is_empty() {
                return Ok(taken);
            }
            let settle = |engine: &dyn Engine| -> Answer<_> {
                let acks = keys
                    .into_iter()
                    .map(|key| engine.settle(topic, None, vec![key], &Settlement::Ack));
                let acks = together(acks.collect());
                Box::pin(async { Ok(acks.await) })
            };
            let (answers, mut failure) = match self.call(settle).await {
                Ok(answers) => (answers, None),
                Err(error) => (Vec::new(), Some(error)),
            };
            for (message, ack) in messages.into_iter().zip(answers) {
                match ack {
                    Ok(settled) if settled.lost.is_empty() => taken.push(message),
                    Ok(_) => {}
                    // What may be gone is not "nothing was done".
                    Err(EngineError::Unknown) => failure = Some(EngineError::Unknown),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            match failure {
                None => {}
                Some(error) if taken.is_empty() => return Err(error),
                // The leases of the others end by time.
                Some(_) => return Ok(taken),
            }
        }
    }

    /// A fetch that waits does not count as in flight: others limit how many wait.
    async fn fetch(
        &self,
        topic: &TopicName,
        group: Option<&GroupName>,
        fetch: Fetch,
    ) -> Result<Leases, EngineError> {
        if fetch.wait > Duration::ZERO {
            self.usage.closing.check()?;
            let fetching = self.engine.fetch(topic, group, fetch);
            return self.usage.closing.unless_closed(fetching).await;
        }
        self.call(|engine| engine.fetch(topic, group, fetch)).await
    }

    pub(in crate::bus) fn lease(
        &self,
        map: &TopicMap,
        topic: &TopicName,
        group: &GroupName,
        options: LeaseOptions,
    ) -> Op<Result<Vec<Leased>, LeaseError>> {
        let (engine, map) = (self.clone(), Weak::clone(&map.own));
        let (topic, group) = (topic.clone(), group.clone());
        let (wait, has_taken) = (Duration::ZERO, AtomicBool::new(false));
        Op::running(async move {
            /// How often there may be nothing but dead letters.
            const MAX_ROUNDS: usize = 256;
            let graves = Graves::default();
            for _ in 0..MAX_ROUNDS {
                let lease = Lease { topic: &topic, group: &group, options: &options, wait };
                let leased = engine.lease_once(&map, lease, &graves, &has_taken).await?;
                if !leased.messages.is_empty() {
                    return Ok(leased.messages);
                }
                if !leased.has_dead {
                    break;
                }
            }
            graves.failure().map_or(Ok(Vec::new()), |error| Err(error.into()))
        })
    }

    /// As [`lease`](Self::lease), as soon as there are messages. `has_taken` becomes true when there are: if it is dropped
    /// after that, their leases end by time.
    pub(crate) fn lease_wait(
        &self,
        map: &TopicMap,
        topic: &TopicName,
        group: &GroupName,
        options: LeaseOptions,
        has_taken: Arc<AtomicBool>,
    ) -> Op<Result<Vec<Leased>, LeaseError>> {
        let (engine, map) = (self.clone(), Weak::clone(&map.own));
        let (topic, group) = (topic.clone(), group.clone());
        Op::running(async move {
            let graves = Graves::default();
            loop {
                let lease = Lease { topic: &topic, group: &group, options: &options, wait: WAIT };
                let leased = engine.lease_once(&map, lease, &graves, &has_taken).await?;
                if !leased.messages.is_empty() {
                    return Ok(leased.messages);
                }
            }
        })
    }

    /// Leases messages. Those that were delivered too often become dead letters.
    async fn lease_once(
        &self,
        map: &Weak<TopicMap>,
        lease: Lease<'_>,
        graves: &Graves,
        has_taken: &AtomicBool,
    ) -> Result<LeasedOnce, LeaseError> {
        has_taken.store(false, Relaxed);
        let Lease { topic, group, options, wait } = lease;
        let from = options.from.into();
        let fetch = Fetch { limit: options.limit, lease: options.lease, wait, from };
        let Leases { epoch, messages, settings } = self.fetch(topic, Some(group), fetch).await?;
        has_taken.store(!messages.is_empty(), Relaxed);
        let Some(map) = map.upgrade() else { return Err(LeaseError::Closed) };
        let (rule, info, arrived) =
            (Rule::new(topic, settings), self.info(topic, epoch), Utc::now());
        let lease = |fetched: Fetched| {
            let Fetched { message, deliveries, expires, key } = fetched;
            let last = rule.is_last(deliveries).then_some(deliveries);
            let token = LeaseToken::of_engine(&info, group, (message.id, last), key);
            Leased { token, message: Message::recovered(&info, message), deliveries, expires }
        };
        let leased = messages.into_iter().map(lease);
        let (dead, mut messages): (Vec<_>, Vec<_>) =
            leased.partition(|leased| rule.is_dead(leased));
        let has_dead = !dead.is_empty();
        if has_dead {
            messages.extend(self.bury_all(&map, &rule, graves, dead).await);
            // Somebody else may have what has run out meanwhile. (What seemed to have run out before is for a clock that goes
            // wrong.)
            let now = Utc::now();
            messages.retain(|leased| leased.expires > now || leased.expires <= arrived);
        }
        Ok(LeasedOnce { messages, has_dead })
    }

    pub(super) async fn settle(
        &self,
        topic: &TopicName,
        group: Option<&GroupName>,
        keys: Vec<LeaseKey>,
        settlement: &Settlement,
    ) -> Result<SettledBatch, StoreError> {
        Ok(self.call(|engine| engine.settle(topic, group, keys, settlement)).await?)
    }
}

pub(super) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Waits for all of them, at the same time.
pub(super) async fn together<T>(mut futures: Vec<Boxed<'_, T>>) -> Vec<T> {
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(cx)
            {
                *result = Some(ready);
            }
        }
        if results.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
}

/// What is leased.
#[derive(Clone, Copy)]
struct Lease<'a> {
    topic: &'a TopicName,
    group: &'a GroupName,
    options: &'a LeaseOptions,
    wait: Duration,
}

#[derive(Debug, Default)]
struct LeasedOnce {
    messages: Vec<Leased>,
    /// Whether there were others, which were delivered too often.
    has_dead: bool,
}

impl TopicMap {
    /// Settles leases of one topic and group of an engine, at least one. `None` if they are not of an engine.
    pub(in crate::bus) fn settle_in_engine(
        self: &Arc<Self>,
        tokens: &[LeaseToken],
        settlement: &Settlement,
    ) -> Option<Op<Result<SettledBatch, StoreError>>> {
        let scope = &tokens[0].scope;
        scope.engine.as_ref()?;
        let Some(engine) = self.engines().and_then(|engines| engines.find(&scope.topic)) else {
            let lost = (0..tokens.len()).collect();
            return Some(Op::ready(Ok(SettledBatch { lost, expires: None })));
        };
        let (engine, map, tokens) = (engine.clone(), Weak::clone(&self.own), tokens.to_vec());
        let settlement = settlement.clone();
        let (is_last, own) =
            (tokens.iter().any(|token| token.last_delivery().is_some()), Weak::clone(&map));
        let settling = async move { engine.settle_leases(&map, &tokens, &settlement).await };
        Some(if is_last {
            Op::running(Settling::new(own, settling))
        } else {
            Op::running(settling)
        })
    }
}
