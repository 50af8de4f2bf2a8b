//! Groups: durable consumers whose deliveries are leases.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    self, AckKind,
    consumer::{PullConsumer, pull::Batch},
};
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, future::join_all};
use msgbus_core::{
    GroupName, SettledBatch, Settlement, TopicName,
    engine::{self, EngineError, EngineGroupSettings, Fetch, Fetched, LeaseKey},
};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};

use crate::{
    connection::{Connection, Known},
    consumers::{Found, MARGIN, consumer_name, find, find_or_create, keep},
    error::{change_error, request_error},
    history::{MAX_BYTES, delivered},
    key::Key,
    leases::Lease,
};

/// Messages that were delivered, and when that has happened, or some time before. Those that are not taken out are given
/// back.
struct Taken {
    messages: Vec<(jetstream::Message, DateTime<Utc>)>,
    lease: Duration,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let messages = std::mem::take(&mut self.messages);
        if messages.is_empty() {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            let lease = self.lease;
            runtime.spawn(async move {
                for (message, since) in messages {
                    // After its end it would end the lease of somebody else. If it fails, the lease ends by time.
                    if Utc::now() < since + lease {
                        let _ = message.ack_with(AckKind::Nak(None)).await;
                    }
                }
            });
        }
    }
}

pub(crate) async fn fetch(
    connection: Arc<Connection>,
    topic: TopicName,
    group: Option<GroupName>,
    fetch: Fetch,
) -> Result<engine::Leases, EngineError> {
    let end = Instant::now() + fetch.wait;
    let mut known = connection.stream().await?;
    let mut has_failed = false;
    let (found, mut taken) = loop {
        let wait = end.saturating_duration_since(Instant::now());
        let (fetch, from) = (Fetch { wait, ..fetch }, (fetch.from, fetch.wait));
        let found = find_or_create(&connection, &known, &topic, group.as_ref(), from).await?;
        let Some(found) = found else {
            let (messages, settings) = (Vec::new(), EngineGroupSettings::default());
            return Ok(engine::Leases { epoch: known.epoch, messages, settings });
        };
        let mut taken = Taken { messages: Vec::new(), lease: found.lease() };
        let before = found.deliveries();
        let Err(error) = take(&connection, &found.consumer, &fetch, &mut taken).await else {
            break (giver(&connection, &known, found, before, &taken).await, taken);
        };
        // The consumer, or the stream, may be gone.
        connection.consumers.remove(found.name());
        (known, _) = connection.state().await?;
        if has_failed {
            return Err(error);
        }
        has_failed = true;
    };
    let (mut messages, now) = (Vec::new(), Utc::now());
    for (message, since) in &taken.messages {
        let expires = *since + found.lease();
        // Somebody else may have it by now.
        if expires > now {
            messages.push(leased(&known, &found, message, expires)?);
        }
    }
    let mut settings = found.settings();
    if !messages.is_empty() {
        keep(&connection, &known, &found).await?;
        // They may have been changed while the worker waited.
        if let Ok(Some(now)) = find(&connection, &known, found.name(), false).await {
            settings = now.settings();
        }
    }
    taken.messages.clear();
    Ok(engine::Leases { epoch: known.epoch, messages, settings })
}

/// The consumer that has given messages. If their numbers go back, it is not the one that was found: another node has moved
/// the group meanwhile. `before`: how many deliveries there had been before they were asked for.
async fn giver(
    connection: &Connection,
    known: &Known,
    found: Arc<Found>,
    before: u64,
    taken: &Taken,
) -> Arc<Found> {
    let infos = taken.messages.iter().filter_map(|(message, _)| message.info().ok());
    let numbers: Vec<u64> = infos.map(|info| info.consumer_sequence).collect();
    let giver = if numbers.iter().any(|number| *number <= before) {
        find(connection, known, found.name(), true).await.ok().flatten().unwrap_or(found)
    } else {
        found
    };
    giver.see(numbers.into_iter().max().unwrap_or(0));
    giver
}

/// A request for messages.
struct Requested {
    batch: Option<Batch>,
    /// Whether messages that come after it was dropped are given back.
    gives_back: bool,
}

impl Requested {
    async fn next(&mut self) -> Result<Option<jetstream::Message>, EngineError> {
        let Some(batch) = &mut self.batch else { return Ok(None) };
        let next = batch.next().await;
        if !matches!(next, Some(Ok(_))) {
            self.batch = None;
        }
        next.transpose().map_err(|error| match request_error(&*error) {
            // Nodes without number wait, each with all of its turns.
            EngineError::Unavailable if error.to_string().contains("MaxWaiting") => {
                EngineError::Busy
            }
            error => error,
        })
    }
}

impl Drop for Requested {
    fn drop(&mut self) {
        if !self.gives_back {
            return;
        }
        let (Some(mut batch), Ok(runtime)) = (self.batch.take(), Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            while let Some(Ok(message)) = batch.next().await {
                // If it fails, the lease ends by time.
                let _ = message.ack_with(AckKind::Nak(None)).await;
            }
        });
    }
}

/// Takes the first message, as soon as there is one.
async fn take_first(
    connection: &Connection,
    consumer: &PullConsumer,
    wait: Duration,
    taken: &mut Taken,
) -> Result<(), EngineError> {
    /// nats-server 2.9 gives messages that come again to requests of clients that are gone, which loses them until their
    /// leases end. So requests are short there, and are waited for when nobody else does.
    const SHORT: Duration = Duration::from_secs(1);
    let is_old = !connection.is_at_least(2, 10);
    let end = Instant::now() + wait;
    let name = &consumer.cached_info().name;
    // Who does not wait needs no turn.
    let _turn = if wait.is_zero() {
        None
    } else {
        let Some(turn) = connection.turns.wait(name, end).await else { return Ok(()) };
        Some(turn)
    };
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let time = if is_old { left.min(SHORT) } else { left };
        let batch = if wait.is_zero() {
            consumer.fetch().max_messages(1).messages().await
        } else {
            consumer.batch().max_messages(1).expires(time).messages().await
        };
        let batch = Some(batch.map_err(|error| request_error(&error))?);
        let mut requested = Requested { batch, gives_back: is_old && !wait.is_zero() };
        // The request is lost if the connection breaks.
        let give_up = Instant::now() + time + connection.options.timeout;
        taken.collect(&mut requested, give_up).await?;
        if !taken.messages.is_empty() || Instant::now() >= end {
            return Ok(());
        }
    }
}

impl Taken {
    async fn collect(
        &mut self,
        requested: &mut Requested,
        give_up: Instant,
    ) -> Result<(), EngineError> {
        /// How often it is noted that nothing has come.
        const TICK: Duration = Duration::from_secs(1);
        let mut nothing_at = Utc::now();
        loop {
            match timeout(TICK, requested.next()).await {
                Ok(message) => {
                    let Some(message) = message? else { return Ok(()) };
                    // It may have come long ago, if this process has stood still.
                    let since = Utc::now().min(nothing_at + MARGIN - TICK);
                    self.messages.push((message, since));
                }
                Err(_) if Instant::now() >= give_up => return Err(EngineError::Unavailable),
                Err(_) => nothing_at = Utc::now(),
            }
        }
    }
}

/// Waits for the first message, and takes the others that there are.
async fn take(
    connection: &Connection,
    consumer: &PullConsumer,
    fetch: &Fetch,
    taken: &mut Taken,
) -> Result<(), EngineError> {
    take_first(connection, consumer, fetch.wait, taken).await?;
    let Some((message, _)) = taken.messages.first() else { return Ok(()) };
    let most = fetch.limit.events.clamp(1, 1000) - 1;
    let bytes = fetch.limit.bytes.saturating_sub(message.payload.len());
    if most == 0 || bytes == 0 {
        return Ok(());
    }
    // The first one is leased already. If there is no answer, it must not wait for it.
    let limit = connection.options.timeout.min(taken.lease / 2);
    let _ = timeout(limit, take_rest(consumer, most, bytes.min(MAX_BYTES), taken)).await;
    Ok(())
}

async fn take_rest(consumer: &PullConsumer, most: usize, bytes: usize, taken: &mut Taken) {
    let since = Utc::now();
    let rest = consumer.fetch().max_messages(most).max_bytes(bytes).messages().await;
    let Ok(mut rest) = rest else { return };
    while let Some(Ok(message)) = rest.next().await {
        taken.messages.push((message, since));
    }
}

fn leased(
    known: &Known,
    found: &Found,
    message: &jetstream::Message,
    expires: DateTime<Utc>,
) -> Result<Fetched, EngineError> {
    let info = message.info().map_err(|_| EngineError::Unavailable)?;
    let deliveries = u32::try_from(info.delivered).unwrap_or(u32::MAX);
    let key = Key {
        created: found.created(),
        id: info.stream_sequence,
        delivery: info.consumer_sequence,
        deliveries,
        until: expires.timestamp_millis(),
    };
    let (kept, _) = delivered(message, known.max_age)?;
    Ok(Fetched { message: kept, deliveries, expires, key: key.seal(&known.secret, found.name()) })
}

pub(crate) async fn settle(
    connection: Arc<Connection>,
    topic: TopicName,
    group: Option<GroupName>,
    keys: Vec<LeaseKey>,
    settlement: Settlement,
) -> Result<SettledBatch, EngineError> {
    let known = connection.stream().await?;
    let name = consumer_name(&connection.subject(&topic), group.as_ref());
    // With the key of a group before it was moved, a nack would end the lease of somebody else.
    let is_urgent = settlement != Settlement::Ack;
    let Some(mut found) = find(&connection, &known, &name, is_urgent).await? else {
        return Ok(SettledBatch { lost: (0..keys.len()).collect(), expires: None });
    };
    let opened: Vec<_> = keys.iter().map(|key| Key::open(key, &known.secret, &name)).collect();
    let is_other = opened.iter().flatten().any(|key| key.created != found.created());
    if is_other && let Some(now) = find(&connection, &known, &name, true).await? {
        found = now;
    }
    // Another node may have given it just after the group was moved, and taken the consumer for the one before.
    let is_of =
        |key: &Key| key.created == found.created() || !is_urgent && found.may_have_given(key);
    let opened = opened.into_iter().map(|key| key.filter(is_of));
    let settling = opened.map(|key| settle_one(&connection, &known, &found, key, &settlement));
    let (mut settled, mut failure, mut is_some_done) = (SettledBatch::default(), None, false);
    for (index, outcome) in join_all(settling).await.into_iter().enumerate() {
        is_some_done |= matches!(outcome, Ok(Outcome::Done | Outcome::Extended(_)));
        match outcome {
            Ok(Outcome::Lost) => settled.lost.push(index),
            Ok(Outcome::Done) => {}
            Ok(Outcome::Extended(until)) => {
                settled.expires = settled.expires.into_iter().chain([until]).min();
            }
            Err(EngineError::Unknown) => failure = Some(EngineError::Unknown),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        None => Ok(settled),
        // Something was done.
        Some(_) if is_some_done => Err(EngineError::Unknown),
        Some(error) => Err(error),
    }
}

enum Outcome {
    Lost,
    Done,
    Extended(DateTime<Utc>),
}

async fn settle_one(
    connection: &Connection,
    known: &Known,
    found: &Found,
    key: Option<Key>,
    settlement: &Settlement,
) -> Result<Outcome, EngineError> {
    let Some(key) = key.filter(|key| !connection.settled.has(key)) else {
        return Ok(Outcome::Lost);
    };
    if *settlement == Settlement::Ack {
        // Another worker may have the message by now: only an ack does no harm.
        match send(connection, found, &key, AckKind::Ack).await {
            Err(EngineError::Unknown) if is_forgotten(found, &key).await => {
                return Ok(Outcome::Lost);
            }
            sent => sent?,
        }
        connection.settled.add(&key);
        return Ok(Outcome::Done);
    }
    let lease = Lease::find(connection, known, found, &key).await?;
    if !lease.is_live() {
        return Ok(Outcome::Lost);
    }
    // From here on something may have been done, whatever fails.
    let unknown = |_| EngineError::Unknown;
    if let Settlement::Nack { delay, .. } = settlement {
        if !lease.give_back().await? {
            return Ok(Outcome::Lost);
        }
        connection.settled.add(&key);
        let delay = (!delay.is_zero()).then_some(*delay);
        send(connection, found, &key, AckKind::Nak(delay)).await.map_err(unknown)?;
        return Ok(Outcome::Done);
    }
    let until = Utc::now() + found.lease();
    send(connection, found, &key, AckKind::Progress).await?;
    if !lease.extend(until.timestamp_millis()).await.map_err(unknown)? {
        return Ok(Outcome::Lost);
    }
    Ok(Outcome::Extended(until))
}

/// Whether the server has forgotten that it has given a message, because it was killed. It does not answer an ack then, but
/// gives the message again.
async fn is_forgotten(found: &Found, key: &Key) -> bool {
    let info = found.consumer.get_info().await;
    info.is_ok_and(|info| info.delivered.consumer_sequence < key.delivery)
}

/// Sends a settlement, and waits for the answer.
async fn send(
    connection: &Connection,
    found: &Found,
    key: &Key,
    kind: AckKind,
) -> Result<(), EngineError> {
    let Key { id, delivery, deliveries, .. } = key;
    let (stream, consumer) = (&connection.options.stream, found.name());
    let subject = format!("$JS.ACK.{stream}.{consumer}.{deliveries}.{id}.{delivery}.0.0");
    let began = Instant::now();
    let answer = connection.client.request(subject.clone(), kind.into()).await;
    let answer = answer.map(drop).map_err(|error| change_error(&error));
    answer.map_err(|error| connection.refusals.explain(error, &subject, began))
}
