//! Groups: durable consumers whose deliveries are leases.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::jetstream::{
    self, AckKind,
    consumer::{
        AckPolicy, PullConsumer,
        pull::{self, Batch},
    },
    message::PublishMessage,
};
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, future::join_all};
use msgbus_core::{
    GroupName, SettledBatch, Settlement, TopicName,
    engine::{self, EngineError, Fetch, Fetched, LeaseKey},
};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use crate::{
    connection::{Connection, Known},
    error::request_error,
    history::{MAX_BYTES, delivered, policy},
    key::Key,
};

/// How much longer the server waits for an ack than the worker is told.
const MARGIN: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);
/// The maximum number of live leases of a group.
const MAX_LEASES: i64 = 1024;
/// The maximum number of consumers that are remembered.
const MAX_CONSUMERS: usize = 10_000;

/// What this node knows of leases beyond their keys.
#[derive(Debug, Default)]
pub(crate) struct Leases(Mutex<HashMap<(String, u64, u64), Fate>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It lasts until then, in milliseconds since 1970.
    Extended(i64),
    /// It is over. This is known until then.
    Over(i64),
}

impl Leases {
    const MAX: usize = 100_000;

    /// When a lease ends. `None` if it is over.
    fn end(&self, consumer: &str, key: &Key) -> Option<i64> {
        match self.0.lock().get(&(consumer.to_owned(), key.id, key.delivery)) {
            None => Some(key.until),
            Some(Fate::Extended(until)) => Some(*until),
            Some(Fate::Over(_)) => None,
        }
    }

    fn set(&self, consumer: &str, key: &Key, fate: Fate) {
        let mut leases = self.0.lock();
        if leases.len() >= Self::MAX {
            let now = Utc::now().timestamp_millis();
            leases.retain(|_, (Fate::Extended(until) | Fate::Over(until))| *until > now);
        }
        if leases.len() < Self::MAX {
            leases.insert((consumer.to_owned(), key.id, key.delivery), fate);
        }
    }
}

/// The name of the consumer of a group, the same on all nodes.
pub(crate) fn consumer_name(subject: &str, group: Option<&GroupName>) -> String {
    let group = group.map_or("", GroupName::as_str);
    let hash = Sha256::new().chain_update(subject).chain_update([0]).chain_update(group).finalize();
    hash[..16].iter().fold("g-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// The consumer of a group that is new.
pub(crate) fn config(
    connection: &Connection,
    topic: &TopicName,
    group: Option<&GroupName>,
    from: engine::Begin,
) -> pull::Config {
    let subject = connection.subject(topic);
    pull::Config {
        durable_name: Some(consumer_name(&subject, group)),
        description: Some(format!("group {:?} of {topic}", group.map_or("", GroupName::as_str))),
        filter_subject: subject,
        deliver_policy: policy(from),
        ack_policy: AckPolicy::Explicit,
        ack_wait: connection.options.lease + MARGIN,
        max_ack_pending: MAX_LEASES,
        // The server removes it when all that it has passed has expired.
        inactive_threshold: connection.options.max_age.map_or(Duration::ZERO, |age| age + HOUR),
        ..pull::Config::default()
    }
}

/// The consumer of a group. Creates it if there is none.
async fn consumer(
    connection: &Connection,
    known: &Known,
    topic: &TopicName,
    group: Option<&GroupName>,
    from: engine::Begin,
) -> Result<PullConsumer, EngineError> {
    let name = consumer_name(&connection.subject(topic), group);
    if let Some(consumer) = connection.consumers.lock().get(&name) {
        return Ok(consumer.clone());
    }
    let config = config(connection, topic, group, from);
    let consumer = match known.stream.get_consumer(&name).await {
        Ok(consumer) => consumer,
        Err(_) => create(connection, known, &name, config).await?,
    };
    let mut consumers = connection.consumers.lock();
    if consumers.len() >= MAX_CONSUMERS {
        consumers.clear();
    }
    consumers.insert(name, consumer.clone());
    Ok(consumer)
}

/// Creates a consumer, unless another node does. Two nodes must not do it at the same moment: a server may give both a
/// consumer then, and each message to both.
async fn create(
    connection: &Connection,
    known: &Known,
    name: &str,
    config: pull::Config,
) -> Result<PullConsumer, EngineError> {
    const POLL: Duration = Duration::from_millis(20);
    // The group may have been removed lately. Then its claim is still known, and nobody creates it.
    const MAX_WAIT: Duration = Duration::from_secs(2);
    // A topic has no such subject, because its "$" would be escaped.
    let subject = format!("{}.$groups.{name}", connection.options.prefix);
    let claim = PublishMessage::build().message_id(format!("$groups {name}"));
    let claimed = connection.context.send_publish(subject, claim).await;
    let claimed = match claimed {
        Ok(claimed) => claimed.await,
        Err(error) => Err(error),
    };
    let claimed = claimed.map_err(|error| request_error(&error))?;
    let give_up = Instant::now() + MAX_WAIT.min(connection.options.timeout);
    while claimed.duplicate && Instant::now() < give_up {
        if let Ok(consumer) = known.stream.get_consumer(name).await {
            return Ok(consumer);
        }
        sleep(POLL).await;
    }
    known.stream.create_consumer(config).await.map_err(|error| request_error(&error))
}

/// Messages that were delivered, and a time at which that had not happened long before. Those that are not taken out are
/// given back.
struct Taken(Vec<(jetstream::Message, DateTime<Utc>)>);

impl Drop for Taken {
    fn drop(&mut self) {
        let messages = std::mem::take(&mut self.0);
        if messages.is_empty() {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                for (message, _) in messages {
                    // If it fails, the lease ends by time.
                    let _ = message.ack_with(AckKind::Nak(None)).await;
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
    let mut known = connection.stream().await?;
    let mut has_failed = false;
    let (consumer, mut taken) = loop {
        let consumer = consumer(&connection, &known, &topic, group.as_ref(), fetch.from).await?;
        let mut taken = Taken(Vec::new());
        let Err(error) = take(&connection, &consumer, &fetch, &mut taken).await else {
            break (consumer, taken);
        };
        // The consumer, or the stream, may be gone.
        connection.consumers.lock().remove(&consumer.cached_info().name);
        (known, _) = connection.state().await?;
        if has_failed {
            return Err(error);
        }
        has_failed = true;
    };
    let name = &consumer.cached_info().name;
    let mut messages = Vec::new();
    for (message, since) in &taken.0 {
        let expires = *since + connection.options.lease;
        messages.push(leased(&connection, &known, name, message, expires)?);
    }
    taken.0.clear();
    Ok(engine::Leases { epoch: known.epoch, messages })
}

/// A request for messages. If it is dropped while the server keeps it, messages that still come are given back.
struct Requested(Option<Batch>);

impl Requested {
    async fn next(&mut self) -> Result<Option<jetstream::Message>, EngineError> {
        let Some(batch) = &mut self.0 else { return Ok(None) };
        let next = batch.next().await;
        if !matches!(next, Some(Ok(_))) {
            self.0 = None;
        }
        next.transpose().map_err(|error| request_error(&*error))
    }
}

impl Drop for Requested {
    fn drop(&mut self) {
        let (Some(mut batch), Ok(runtime)) = (self.0.take(), Handle::try_current()) else { return };
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
    let is_old = !connection.client.is_server_compatible(2, 10, 0);
    let end = Instant::now() + wait;
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let time = if is_old { left.min(SHORT) } else { left };
        let batch = consumer.batch().max_messages(1).expires(time).messages().await;
        let batch = batch.map_err(|error| request_error(&error))?;
        if is_old {
            let mut requested = Requested(Some(batch));
            while let Some(message) = requested.next().await? {
                taken.0.push((message, Utc::now()));
            }
        } else {
            taken.collect(batch).await?;
        }
        if !taken.0.is_empty() || Instant::now() >= end {
            return Ok(());
        }
    }
}

impl Taken {
    async fn collect(&mut self, mut batch: Batch) -> Result<(), EngineError> {
        while let Some(message) = batch.next().await {
            self.0.push((message.map_err(|error| request_error(&*error))?, Utc::now()));
        }
        Ok(())
    }
}

/// Waits for the first message, and takes the others that there are.
async fn take(
    connection: &Connection,
    consumer: &PullConsumer,
    fetch: &Fetch,
    taken: &mut Taken,
) -> Result<(), EngineError> {
    if fetch.wait > Duration::ZERO {
        take_first(connection, consumer, fetch.wait, taken).await?;
    } else {
        let batch = consumer.fetch().max_messages(1).messages().await;
        taken.collect(batch.map_err(|error| request_error(&error))?).await?;
    }
    let Some((message, _)) = taken.0.first() else { return Ok(()) };
    let most = fetch.limit.events.clamp(1, 1000) - 1;
    let bytes = fetch.limit.bytes.saturating_sub(message.payload.len());
    if most == 0 || bytes == 0 {
        return Ok(());
    }
    let since = Utc::now();
    let rest = consumer.fetch().max_messages(most).max_bytes(bytes.min(MAX_BYTES)).messages().await;
    let Ok(mut rest) = rest else { return Ok(()) };
    while let Some(Ok(message)) = rest.next().await {
        taken.0.push((message, since));
    }
    Ok(())
}

fn leased(
    connection: &Connection,
    known: &Known,
    consumer: &str,
    message: &jetstream::Message,
    expires: DateTime<Utc>,
) -> Result<Fetched, EngineError> {
    let info = message.info().map_err(|_| EngineError::Unavailable)?;
    let deliveries = u32::try_from(info.delivered).unwrap_or(u32::MAX);
    let key = Key {
        id: info.stream_sequence,
        delivery: info.consumer_sequence,
        deliveries,
        until: expires.timestamp_millis(),
    };
    let (kept, _) = delivered(message, connection.options.max_age)?;
    Ok(Fetched { message: kept, deliveries, expires, key: key.seal(&known.secret, consumer) })
}

pub(crate) async fn settle(
    connection: Arc<Connection>,
    topic: TopicName,
    group: Option<GroupName>,
    keys: Vec<LeaseKey>,
    settlement: Settlement,
) -> Result<SettledBatch, EngineError> {
    let known = connection.stream().await?;
    let consumer = consumer_name(&connection.subject(&topic), group.as_ref());
    let opened = keys.iter().map(|key| Key::open(key, &known.secret, &consumer));
    let settling = opened.map(|key| settle_one(&connection, &consumer, key, &settlement));
    let mut settled = SettledBatch::default();
    for (index, outcome) in join_all(settling).await.into_iter().enumerate() {
        match outcome? {
            Outcome::Lost => settled.lost.push(index),
            Outcome::Done => {}
            Outcome::Extended(until) => {
                settled.expires = settled.expires.into_iter().chain([until]).min();
            }
        }
    }
    Ok(settled)
}

enum Outcome {
    Lost,
    Done,
    Extended(DateTime<Utc>),
}

async fn settle_one(
    connection: &Connection,
    consumer: &str,
    key: Option<Key>,
    settlement: &Settlement,
) -> Result<Outcome, EngineError> {
    let Some(key) = key else { return Ok(Outcome::Lost) };
    let Some(end) = connection.leases.end(consumer, &key) else { return Ok(Outcome::Lost) };
    let now = Utc::now();
    // Another worker may have the message by now: only an ack does no harm.
    if end <= now.timestamp_millis() && *settlement != Settlement::Ack {
        return Ok(Outcome::Lost);
    }
    let kind = match settlement {
        Settlement::Ack => AckKind::Ack,
        Settlement::Nack { delay, .. } if delay.is_zero() => AckKind::Nak(None),
        Settlement::Nack { delay, .. } => AckKind::Nak(Some(*delay)),
        Settlement::Extend { .. } => AckKind::Progress,
    };
    let Key { id, delivery, deliveries, .. } = key;
    let stream = &connection.options.stream;
    let subject = format!("$JS.ACK.{stream}.{consumer}.{deliveries}.{id}.{delivery}.0.0");
    let answer = connection.client.request(subject, kind.into()).await;
    answer.map_err(|error| match error.kind() {
        async_nats::RequestErrorKind::TimedOut => EngineError::Unknown,
        _ => request_error(&error),
    })?;
    let lease = connection.options.lease;
    let fate = match settlement {
        Settlement::Extend { .. } => Fate::Extended((now + lease).timestamp_millis()),
        _ => Fate::Over(end.max(now.timestamp_millis())),
    };
    connection.leases.set(consumer, &key, fate);
    Ok(match settlement {
        Settlement::Extend { .. } => Outcome::Extended(now + lease),
        _ => Outcome::Done,
    })
}
