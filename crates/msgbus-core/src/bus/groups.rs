//! The operations on groups.

use std::{future::poll_fn, sync::Arc};

use chrono::{DateTime, Utc};

use super::{
    MessageBus,
    burials::OwnBurials,
    clock,
    map::{SharedTopic, TopicMap},
    op::Op,
    topic_ref::{TopicRef, read_and_take},
};
use crate::{
    error::{GroupError, LeaseError, SettleError},
    model::{
        GroupName, LeaseKey, LeaseToken, Leased, Peek, SettledBatch, Settlement, TokenScope,
        TopicName,
    },
    options::{BatchLimit, GroupConfig, LeaseOptions},
    stats::{GroupStats, LeaseStats},
    store::StoreError,
    topic::{Commit, Page, SetGroup, Settled, TakeError, Taken, Topic},
};

impl MessageBus {
    /// Leases messages to a worker of a group: those that were delivered before and not acknowledged, then new ones. Each
    /// goes to one worker, and is delivered again when its lease ends without an [ack](Settlement::Ack). Empty if there
    /// are none. The first pull creates the group.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn lease(
        &self,
        topic: &TopicName,
        group: &GroupName,
        options: LeaseOptions,
    ) -> Op<Result<Vec<Leased>, LeaseError>> {
        self.topic_ref(topic, &mut None).lease(group, options)
    }

    /// The size of the payload that a group gets next, in bytes. `None` if there is none.
    pub fn next_lease_size(&self, topic: &TopicName, group: &GroupName) -> Option<usize> {
        let size = |topic: &mut Topic| topic.next_size_for(group, clock::monotonic());
        self.topic_ref(topic, &mut None).with_existing(size)?
    }

    /// Settles a lease. Returns when it ends now, if it was extended. A [nack](Settlement::Nack) that makes a dead letter is
    /// done when that was published, or refused.
    ///
    /// # Errors
    /// When the lease is over, or the store does not keep the ack. The lease goes on then.
    pub fn settle(
        &self,
        token: &LeaseToken,
        settlement: &Settlement,
    ) -> Op<Result<Option<DateTime<Utc>>, SettleError>> {
        if let Some(settling) = self.0.settle_in_engine(std::slice::from_ref(token), settlement) {
            return settling.map(|settled| match settled? {
                SettledBatch { lost, expires } if lost.is_empty() => Ok(expires),
                _ => Err(SettleError::Lost),
            });
        }
        match self.0.settle(&token.scope, token.group, &[token.key], settlement) {
            Ok((_, Settled { lost, .. }, _)) if !lost.is_empty() => {
                Op::ready(Err(SettleError::Lost))
            }
            Ok((Some(topic), Settled { commit, expires, .. }, burials)) => {
                let settled = Op::after(commit, &topic, expires.map(DateTime::from));
                match burials {
                    None => settled,
                    Some(burials) => Op::running(async move {
                        burials.await;
                        settled.await
                    }),
                }
            }
            Ok((None, ..)) => Op::ready(Err(SettleError::Lost)),
            Err(error) => Op::ready(Err(error.into())),
        }
    }

    /// Settles many leases in the same way. It takes least time if those of a topic and group follow each other.
    ///
    /// # Errors
    /// When a store does not keep an ack. It is unknown then which leases are settled.
    pub fn settle_all(
        &self,
        tokens: &[LeaseToken],
        settlement: &Settlement,
    ) -> Op<Result<SettledBatch, StoreError>> {
        let mut batch = SettledBatch::default();
        let mut commits = Vec::new();
        let mut in_engines = Vec::new();
        let mut all_burials = Vec::new();
        let mut first = 0;
        let is_same = |a: &LeaseToken, b: &LeaseToken| {
            (a.group, &a.scope) == (b.group, &b.scope) || a.has_engine_group_of(b)
        };
        for run in tokens.chunk_by(is_same) {
            if let Some(settling) = self.0.settle_in_engine(run, settlement) {
                in_engines.push((first, settling));
                first += run.len();
                continue;
            }
            let keys: Vec<LeaseKey> = run.iter().map(|token| token.key).collect();
            let LeaseToken { scope, group, .. } = &run[0];
            match self.0.settle(scope, *group, &keys, settlement) {
                Ok((topic, Settled { lost, expires, commit, .. }, burials)) => {
                    batch.lost.extend(lost.into_iter().map(|index| first + index));
                    let expires = expires.map(DateTime::from);
                    batch.expires = batch.expires.into_iter().chain(expires).min();
                    commits.extend(commit.zip(topic));
                    all_burials.extend(burials);
                }
                Err(error) => return Op::ready(Err(error)),
            }
            first += run.len();
        }
        if commits.is_empty() && in_engines.is_empty() && all_burials.is_empty() {
            return Op::ready(Ok(batch));
        }
        Op::running(async move {
            for burials in all_burials {
                burials.await;
            }
            finish_all(commits, in_engines, batch).await
        })
    }

    /// Returns the messages that a group has not settled, without taking them: first those that it was given, then new
    /// ones. `None` if there is no such topic. There may be fewer than the limit allows, and more after them.
    ///
    /// # Errors
    /// When messages cannot be read from the store.
    pub fn peek_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        limit: BatchLimit,
    ) -> Op<Result<Option<Peek>, StoreError>> {
        self.topic_ref(topic, &mut None).peek_group(group, limit)
    }

    /// Creates a group, moves it, or changes its settings. Creates the topic if there is none. Returns whether the group
    /// is new.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn set_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        config: &GroupConfig,
    ) -> Op<Result<bool, GroupError>> {
        self.topic_ref(topic, &mut None).set_group(group, config)
    }

    /// Removes a group. Its leases are lost. Returns whether there was one.
    ///
    /// # Errors
    /// When the store does not keep the removal.
    pub fn remove_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
    ) -> Op<Result<bool, StoreError>> {
        self.topic_ref(topic, &mut None).remove_group(group)
    }

    /// The groups of a topic. Empty if there is no such topic.
    pub fn groups(&self, topic: &TopicName) -> Vec<GroupStats> {
        let groups = |topic: &mut Topic| topic.groups(clock::now());
        self.topic_ref(topic, &mut None).with_expired_removed(groups).unwrap_or_default()
    }

    /// A group, and its leases of the oldest messages, at most `max_leases`. `None` if there is no such group.
    pub fn group_stats(
        &self,
        topic: &TopicName,
        group: &GroupName,
        max_leases: usize,
    ) -> Option<(GroupStats, Vec<LeaseStats>)> {
        let stats = |topic: &mut Topic| topic.group_stats(group, max_leases, clock::now());
        self.topic_ref(topic, &mut None).with_expired_removed(stats)?
    }
}

async fn finish_all(
    commits: Vec<(Arc<Commit>, Arc<SharedTopic>)>,
    in_engines: Vec<(usize, Op<Result<SettledBatch, StoreError>>)>,
    mut batch: SettledBatch,
) -> Result<SettledBatch, StoreError> {
    for (commit, _topic) in commits {
        poll_fn(|cx| commit.poll(cx)).await?;
    }
    for (first, settling) in in_engines {
        let SettledBatch { lost, expires } = settling.await?;
        batch.lost.extend(lost.into_iter().map(|index| first + index));
        batch.expires = batch.expires.into_iter().chain(expires).min();
    }
    batch.lost.sort_unstable();
    Ok(batch)
}

/// What was settled, the topic in which it was, and dead letters that have to be waited for.
type SettledIn = (Option<Arc<SharedTopic>>, Settled, Option<OwnBurials>);

impl TopicMap {
    /// Settles leases of one group of a topic. Also returns the topic, if it is still there, and the dead letters that this
    /// has made, unless they are published.
    fn settle(
        &self,
        scope: &TokenScope,
        group: u8,
        keys: &[LeaseKey],
        settlement: &Settlement,
    ) -> Result<SettledIn, StoreError> {
        let all_lost = || Settled { lost: (0..keys.len()).collect(), ..Settled::default() };
        let Some(topic) = self.find(&scope.topic) else { return Ok((None, all_lost(), None)) };
        let mut locked = topic.lock();
        if locked.is_deleted() || locked.info().epoch != scope.epoch {
            return Ok((None, all_lost(), None));
        }
        let mut settled = locked.settle(group, keys, settlement, clock::now())?;
        let (waker, dying) = (settled.waker.take(), locked.take_dying(group));
        topic.unlock_and_register(locked);
        if let Some(waker) = waker {
            waker.wake();
        }
        let burials = (!dying.is_empty()).then(|| OwnBurials::of(self, &topic, dying));
        // In memory, nobody has to wait for them.
        let burials = burials.and_then(OwnBurials::begin);
        Ok((Some(topic), settled, burials))
    }
}

impl TopicRef<'_> {
    fn lease(
        &mut self,
        group: &GroupName,
        options: LeaseOptions,
    ) -> Op<Result<Vec<Leased>, LeaseError>> {
        if let Some(engine) = self.engine() {
            return engine.lease(self.map(), self.name(), group, options);
        }
        let options = LeaseOptions { from: self.map().resume(options.from), ..options };
        let lease = |topic: &mut Topic| {
            let now = clock::now();
            // Expired messages are removed slice by slice.
            (!topic.expire(now.monotonic)).then(|| {
                let taken = topic.lease(group, &options, now, &mut Page::default());
                (taken, topic.next_registration(now.monotonic))
            })
        };
        let leased = loop {
            match self.with_existing(lease) {
                Some(None) => {}
                leased => break leased.flatten(),
            }
        };
        let (Some((taken, registration)), Some(topic)) = (leased, self.location()) else {
            return Op::ready(Ok(Vec::new()));
        };
        topic.register(registration);
        match taken {
            Ok(Taken { messages, commit }) => Op::after(commit, topic, messages),
            Err(TakeError::Over(error)) => Op::ready(Err(error)),
            Err(TakeError::Unread(_)) => {
                Op::running(lease_cold(Arc::clone(topic), group.clone(), options))
            }
        }
    }

    fn peek_group(
        &mut self,
        group: &GroupName,
        limit: BatchLimit,
    ) -> Op<Result<Option<Peek>, StoreError>> {
        if let Some(engine) = self.engine() {
            return engine.peek_group(self.name(), group, limit);
        }
        let peek = self.with_existing(|topic| {
            topic.peek_group(group, limit, clock::now(), &mut Page::default())
        });
        match (peek, self.location()) {
            (Some(Err(_)), Some(topic)) => {
                let (topic, group) = (Arc::clone(topic), group.clone());
                Op::running(async move {
                    let peek = |topic: &mut Topic, page: &mut Page| {
                        let peek = topic.peek_group(&group, limit, clock::now(), page)?;
                        Ok::<_, TakeError<StoreError>>(peek)
                    };
                    read_and_take(&topic, peek).await.map(Some)
                })
            }
            (peek, _) => Op::ready(Ok(peek.and_then(Result::ok))),
        }
    }

    fn set_group(
        &mut self,
        group: &GroupName,
        config: &GroupConfig,
    ) -> Op<Result<bool, GroupError>> {
        if let Some(engine) = self.engine() {
            return engine.set_group(self.name(), group, config);
        }
        let map = self.map();
        let from = config.from.map(|from| map.resume(from));
        let config = GroupConfig { from, ..config.clone() };
        let set = self.with_or_create(|shared, topic| {
            let mut is_admitted = false;
            let set = topic.set_group(group, &config, clock::now(), |topic| {
                map.admit_topic()?;
                is_admitted = true;
                map.keep(shared, topic)
            });
            if set.is_err() && is_admitted {
                map.dismiss_topic();
            }
            set
        });
        match set {
            Ok((topic, SetGroup { is_new, commit, waker })) => {
                if let Some(waker) = waker {
                    waker.wake();
                }
                Op::after(commit, topic, is_new)
            }
            Err(error) => Op::ready(Err(error)),
        }
    }

    fn remove_group(&mut self, group: &GroupName) -> Op<Result<bool, StoreError>> {
        if let Some(engine) = self.engine() {
            return engine.remove_group(self.name(), group);
        }
        let removed = self.with_existing(|topic| topic.remove_group(group));
        match (removed, self.location()) {
            (Some(Ok((is_removed, commit))), Some(topic)) => Op::after(commit, topic, is_removed),
            (Some(Err(error)), _) => Op::ready(Err(error)),
            _ => Op::ready(Ok(false)),
        }
    }
}

/// Reads the next messages, and leases them.
async fn lease_cold(
    topic: Arc<SharedTopic>,
    group: GroupName,
    options: LeaseOptions,
) -> Result<Vec<Leased>, LeaseError> {
    let take =
        |topic: &mut Topic, page: &mut Page| topic.lease(&group, &options, clock::now(), page);
    let Taken { messages, commit } = read_and_take(&topic, take).await?;
    topic.unlock_and_register(topic.lock());
    if let Some(commit) = commit {
        poll_fn(|cx| commit.poll(cx)).await?;
    }
    Ok(messages)
}
