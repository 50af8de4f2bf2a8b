//! The consumers of groups, as this node has found them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::jetstream::{
    consumer::{AckPolicy, PullConsumer, pull},
    message::PublishMessage,
};
use msgbus_core::{
    GroupName, TopicName,
    engine::{Begin, EngineError},
};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};

use crate::{
    connection::{Connection, Known},
    error::{is_missing, request_error},
    history::{has_messages, policy},
};

/// How much longer the server waits for an ack than the worker is told.
pub(crate) const MARGIN: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);
/// The maximum number of live leases of a group.
const MAX_LEASES: i64 = 1024;

/// A consumer, as it was at some time.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) consumer: PullConsumer,
    at: Instant,
}

impl Found {
    pub(crate) fn name(&self) -> &str {
        &self.consumer.cached_info().name
    }

    /// Tells it from others that have had its name, for instance before a group was moved.
    pub(crate) fn created(&self) -> i64 {
        self.consumer.cached_info().created.timestamp_nanos_opt().unwrap_or_default()
    }

    /// How long leases last. It depends on the consumer and not on this node, whose options may be others than those
    /// with which the consumer was created.
    pub(crate) fn lease(&self) -> Duration {
        let wait = self.consumer.cached_info().config.ack_wait;
        // Others may have created it.
        wait.checked_sub(MARGIN).filter(|lease| !lease.is_zero()).unwrap_or(wait / 2)
    }
}

/// Consumers by their names.
#[derive(Debug, Default)]
pub(crate) struct Consumers(Mutex<HashMap<String, Arc<Found>>>);

impl Consumers {
    /// The maximum number of consumers that are remembered.
    const MAX: usize = 10_000;
    /// How long a consumer is taken for what it was.
    const FRESH: Duration = Duration::from_secs(5);

    fn get(&self, name: &str) -> Option<Arc<Found>> {
        let found = Arc::clone(self.0.lock().get(name)?);
        (found.at.elapsed() < Self::FRESH).then_some(found)
    }

    fn put(&self, name: &str, consumer: PullConsumer) -> Arc<Found> {
        let found = Arc::new(Found { consumer, at: Instant::now() });
        let mut consumers = self.0.lock();
        if consumers.len() >= Self::MAX {
            consumers.clear();
        }
        consumers.insert(name.to_owned(), Arc::clone(&found));
        found
    }

    pub(crate) fn remove(&self, name: &str) {
        self.0.lock().remove(name);
    }

    pub(crate) fn clear(&self) {
        self.0.lock().clear();
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
    from: Begin,
) -> pull::Config {
    let subject = connection.subject(topic);
    let inactive_threshold = match from {
        // Made again later, it would leave out what has come meanwhile.
        Begin::Next => Duration::ZERO,
        // The server removes it when all that it has passed has expired.
        _ => connection.options.max_age.map_or(Duration::ZERO, |age| age + HOUR),
    };
    pull::Config {
        durable_name: Some(consumer_name(&subject, group)),
        description: Some(format!("group {:?} of {topic}", group.map_or("", GroupName::as_str))),
        filter_subject: subject,
        deliver_policy: policy(from),
        ack_policy: AckPolicy::Explicit,
        ack_wait: connection.options.lease + MARGIN,
        max_ack_pending: MAX_LEASES,
        inactive_threshold,
        ..pull::Config::default()
    }
}

/// The consumer of a group. `None` if there is none. `is_urgent`: it must be the one that there is now.
pub(crate) async fn find(
    connection: &Connection,
    known: &Known,
    name: &str,
    is_urgent: bool,
) -> Result<Option<Arc<Found>>, EngineError> {
    if let Some(found) = connection.consumers.get(name)
        && !is_urgent
    {
        return Ok(Some(found));
    }
    match known.stream.get_consumer(name).await {
        Ok(consumer) => Ok(Some(connection.consumers.put(name, consumer))),
        Err(error) if is_missing(&*error) => {
            connection.consumers.remove(name);
            Ok(None)
        }
        Err(error) => Err(request_error(&*error)),
    }
}

/// The consumer of a group. Creates it if there is none. `None` if there is no need to, because a fetch that does not wait
/// would find nothing.
pub(crate) async fn find_or_create(
    connection: &Connection,
    known: &Known,
    topic: &TopicName,
    group: Option<&GroupName>,
    (from, wait): (Begin, Duration),
) -> Result<Option<Arc<Found>>, EngineError> {
    let subject = connection.subject(topic);
    let name = consumer_name(&subject, group);
    if let Some(found) = find(connection, known, &name, false).await? {
        return Ok(Some(found));
    }
    if wait.is_zero() && from == Begin::First && !has_messages(known, &subject).await? {
        return Ok(None);
    }
    let config = config(connection, topic, group, from);
    let consumer = create(connection, known, &name, config).await?;
    Ok(Some(connection.consumers.put(&name, consumer)))
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
