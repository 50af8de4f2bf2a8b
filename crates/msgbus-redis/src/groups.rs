//! Groups: consumer groups of a stream, whose pending messages are leases.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use msgbus_core::{
    GroupName, LeaseToken, SettledBatch, Settlement, TopicName,
    engine::{EngineError, EngineGroupSettings, Fetch, Fetched, LeaseKey, Leases, MAX_LEASE_KEY},
};
use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use crate::{
    asker::Asker,
    connection::{Connection, Shared},
    error::Request,
    history::begin,
    keys::{Keys, group_name},
    link::Link,
    message::{Answer as _, decode, next, time},
    options::millis,
    script::Script,
};

/// Who waits for messages of a group, does so in turn: one asks, the others wait for it.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// How many are remembered before those that are over are removed.
    const MANY: usize = 1024;

    fn of(&self, group: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock();
        if let Some(turn) = turns.get(&group).and_then(Weak::upgrade) {
            return turn;
        }
        if turns.len() >= Self::MANY {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::default();
        turns.insert(group, Arc::downgrade(&turn));
        turn
    }
}

/// A request for leases.
pub(crate) struct Fetching {
    pub(crate) shared: Arc<Shared>,
    pub(crate) topic: TopicName,
    pub(crate) group: Option<GroupName>,
    pub(crate) fetch: Fetch,
}

/// Who gets the leases.
type Worker = Asker<Leases>;

impl Fetching {
    /// Answers a worker. If it is gone, the leases are given back.
    pub(crate) async fn run(self, worker: oneshot::Sender<Result<Leases, EngineError>>) {
        let mut worker = Worker::new(worker, Request::Final);
        let answer = self.wait(&mut worker).await;
        let Err(Ok(unwanted)) = worker.answer(answer) else { return };
        let keys: Vec<LeaseKey> = unwanted.messages.into_iter().map(|lease| lease.key).collect();
        if !keys.is_empty() {
            let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
            // If it fails, they end by time.
            let _ = settle(&self.shared, &self.topic, self.group.as_ref(), &keys, &back).await;
        }
    }

    async fn wait(&self, worker: &mut Worker) -> Result<Leases, EngineError> {
        let end = Instant::now() + self.fetch.wait;
        let keys = self.shared.keys(&self.topic);
        let (leases, _) = self.take(&*self.shared.link()?, &keys).await?;
        if !leases.messages.is_empty() || self.fetch.wait.is_zero() {
            return Ok(leases);
        }
        let turn = self.shared.turns.of(keys.due(&group_name(self.group.as_ref())));
        let _turn = tokio::select! {
            turn = turn.lock() => turn,
            () = sleep_until(end) => return Ok(leases),
            () = worker.left() => return Ok(leases),
        };
        let mut listener = self.shared.channels.listen(keys.channel());
        loop {
            // What comes later is heard, also that the connection is another one.
            listener.mark_seen();
            let link = self.shared.link()?;
            self.shared.subscribe(&listener, &link).await?;
            let (leases, due) = self.take(&link, &keys).await?;
            if !leases.messages.is_empty() || Instant::now() >= end {
                return Ok(leases);
            }
            let until = due.map_or(end, |due| end.min(Instant::now() + due));
            tokio::select! {
                () = listener.wait() => {}
                () = sleep_until(until) => {}
                () = worker.left() => return Ok(leases),
            }
        }
    }

    /// Takes what there is. Also returns when there may be more although nothing is published.
    async fn take(
        &self,
        link: &Link,
        keys: &Keys,
    ) -> Result<(Leases, Option<Duration>), EngineError> {
        loop {
            let (leases, due, has_more) = self.take_some(link, keys).await?;
            // What was looked at has expired.
            if !has_more || !leases.messages.is_empty() {
                return Ok((leases, due));
            }
        }
    }

    /// As [`take`](Self::take). Looks at a limited number of messages, and returns whether there may be more.
    async fn take_some(
        &self,
        link: &Link,
        keys: &Keys,
    ) -> Result<(Leases, Option<Duration>, bool), EngineError> {
        /// The maximum number of messages that are leased at a time.
        const MAX_EVENTS: usize = 256;
        /// The maximum size of their payloads, in bytes, unless it is the first that exceeds it.
        const MAX_BYTES: usize = 1 << 20;
        let (shared, fetch) = (&self.shared, &self.fetch);
        let group = group_name(self.group.as_ref());
        let lease = fetch.lease.min(LeaseToken::MAX_TIME);
        let (lease_ms, max_age_ms) = (millis(lease).max(1), keys.max_age_ms(&shared.options));
        let arguments = |command: &mut Cmd| {
            command.arg(&*link.run).arg(&shared.secret).arg(&group).arg(random());
            begin(fetch.from, command);
            command
                .arg(lease_ms)
                .arg(fetch.limit.events.clamp(1, MAX_EVENTS))
                .arg(fetch.limit.bytes.clamp(1, MAX_BYTES))
                .arg(max_age_ms)
                .arg(shared.options.keep_ms());
        };
        let names = [keys.topic(), keys.stream(), keys.due(&group)];
        let _turn = shared.turn_to_read(link).await?;
        let answer = shared.run(link, Script::Fetch, &names, Request::Final, arguments).await?;
        let mut parts = answer.list()?.into_iter();
        let (now, epoch) = (next(&mut parts)?.number()?, next(&mut parts)?.number()?);
        let due = next(&mut parts)?.number().ok();
        let due = due.map(|due| Duration::from_millis(due.saturating_sub(now).max(1)));
        let mut messages = Vec::new();
        for leased_now in next(&mut parts)?.list()? {
            messages.push(leased(leased_now, now + lease_ms, max_age_ms)?);
        }
        let has_more = next(&mut parts)?.number()? == 1;
        let settings = settings(next(&mut parts)?)?;
        Ok((Leases { epoch, messages, settings }, due, has_more))
    }
}

fn leased(leased: Value, expires: u64, max_age_ms: u64) -> Result<Fetched, EngineError> {
    let mut parts = leased.list()?.into_iter();
    let (number, deliveries) = (next(&mut parts)?.number()?, next(&mut parts)?.number()?);
    let key = next(&mut parts)?.bytes()?.into();
    let message = decode(number, next(&mut parts)?, max_age_ms)?;
    let deliveries = u32::try_from(deliveries).unwrap_or(u32::MAX);
    Ok(Fetched { message, deliveries, expires: time(expires), key })
}

/// What a group has of its own, as scripts say it.
pub(crate) fn settings(own: Value) -> Result<EngineGroupSettings, EngineError> {
    let mut parts = own.list()?.into_iter();
    let (most, dead_letters) = (next(&mut parts)?.text()?, next(&mut parts)?.text()?);
    Ok(EngineGroupSettings {
        max_deliveries: most.parse().ok(),
        dead_letters: dead_letters.parse().ok(),
    })
}

/// A part of the secret of a group that is made.
pub(crate) fn random() -> String {
    let mut random = [0; 16];
    // Without it, the secret of the topic is still secret.
    let _ = getrandom::fill(&mut random);
    format!("{:032x}", u128::from_le_bytes(random))
}

pub(crate) async fn settle_all(
    connection: Arc<Connection>,
    topic: TopicName,
    group: Option<GroupName>,
    keys: Vec<LeaseKey>,
    settlement: Settlement,
) -> Result<SettledBatch, EngineError> {
    settle(&connection.shared, &topic, group.as_ref(), &keys, &settlement).await
}

async fn settle(
    shared: &Shared,
    topic: &TopicName,
    group: Option<&GroupName>,
    keys: &[LeaseKey],
    settlement: &Settlement,
) -> Result<SettledBatch, EngineError> {
    let (link, names) = (shared.link()?, shared.keys(topic));
    let group = group_name(group);
    let (name, duration) = match settlement {
        Settlement::Ack => ("ack", Duration::ZERO),
        Settlement::Nack { delay, .. } => ("nack", *delay),
        Settlement::Extend { lease } => ("extend", *lease),
    };
    let duration = millis(duration.min(LeaseToken::MAX_TIME));
    let arguments = |command: &mut Cmd| {
        command.arg(&group).arg(name).arg(duration).arg(names.channel());
        for key in keys {
            // What is longer is none of ours.
            command.arg(&key[..key.len().min(MAX_LEASE_KEY)]);
        }
    };
    let names = [names.topic(), names.stream(), names.due(&group)];
    let answer = shared.run(&link, Script::Settle, &names, Request::Final, arguments).await?;
    let mut parts = answer.list()?.into_iter();
    let now = next(&mut parts)?.number()?;
    let mut settled = SettledBatch::default();
    for index in next(&mut parts)?.list()? {
        let index = usize::try_from(index.number()?).map_err(|_| EngineError::Unknown)?;
        settled.lost.push(index);
    }
    if name == "extend" && settled.lost.len() < keys.len() {
        settled.expires = Some(time(now + duration));
    }
    Ok(settled)
}
