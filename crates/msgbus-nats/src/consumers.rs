//! The consumers of groups, as this node has found them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::jetstream::{
    consumer::{AckPolicy, FromConsumer as _, PullConsumer, pull},
    stream::{ConsumerError, ConsumerErrorKind},
};
use chrono::DateTime;
use futures_util::StreamExt as _;
use msgbus_core::{
    GroupName, GroupSettings, TopicName,
    engine::{Begin, EngineError, EngineGroupSettings},
};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};

use crate::{
    connection::{Connection, Known},
    error::{is_missing, request_error},
    history::{has_messages, policy},
    key::Key,
    marks::{self, Mark},
};

/// How much longer the server waits for an ack than the worker is told.
pub(crate) const MARGIN: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);
/// After so long without a request, the server removes a group that has had no message.
const IDLE: Duration = Duration::from_secs(60);
/// How long a fetch waits that is to create a group, also if there are no messages.
pub(crate) const CREATE: Duration = Duration::from_nanos(1);
/// For so long, whoever has claimed a group may take to create it.
const CLAIM: Duration = Duration::from_secs(2);
/// How long a claim is kept at least.
const KEEP: Duration = Duration::from_secs(60);
/// The text of a claim.
const CLAIMED: &str = "claimed";
/// The maximum number of live leases of a group.
const MAX_LEASES: i64 = 1024;
/// The maximum number of requests of all nodes that wait for messages of a group.
const MAX_WAITING: i64 = 4096;

/// A consumer, as it was at some time.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) consumer: PullConsumer,
    at: Instant,
    deliveries: AtomicU64,
}

impl Found {
    pub(crate) fn name(&self) -> &str {
        &self.consumer.cached_info().name
    }

    /// Tells it from others that have had its name, for instance before a group was moved.
    pub(crate) fn created(&self) -> i64 {
        self.consumer.cached_info().created.timestamp_nanos_opt().unwrap_or_default()
    }

    /// How many deliveries there have been, as far as this node knows.
    pub(crate) fn deliveries(&self) -> u64 {
        self.deliveries.load(Relaxed)
    }

    /// Notes the number of a delivery.
    pub(crate) fn see(&self, delivery: u64) {
        self.deliveries.fetch_max(delivery, Relaxed);
    }

    /// Whether it may have given a lease whose key names another consumer: it was there by then, has given the message, and as
    /// many.
    pub(crate) fn may_have_given(&self, key: &Key) -> bool {
        let info = self.consumer.cached_info();
        let end = DateTime::from_timestamp_millis(key.until);
        let is_since = end.is_some_and(|end| end + MARGIN >= info.created + self.lease());
        let delivered = &info.delivered;
        is_since
            && delivered.stream_sequence >= key.id
            && delivered.consumer_sequence >= key.delivery
    }

    /// Whether the server removes it soon if nobody uses it.
    fn is_idle(&self) -> bool {
        self.consumer.cached_info().config.inactive_threshold == IDLE
    }

    /// What the group has of its own.
    pub(crate) fn settings(&self) -> EngineGroupSettings {
        settings(self.consumer.cached_info().config.description.as_deref().unwrap_or_default())
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
pub(crate) struct Consumers {
    found: Mutex<HashMap<String, Arc<Found>>>,
    /// Claims of others, by the names of consumers: their sequences, and since when this node knows of them.
    claims: Mutex<HashMap<String, (u64, Instant)>>,
}

impl Consumers {
    /// The maximum number of consumers that are remembered.
    const MAX: usize = 10_000;
    /// How long a consumer is taken for what it was.
    const FRESH: Duration = Duration::from_secs(5);

    fn get(&self, name: &str) -> Option<Arc<Found>> {
        let found = Arc::clone(self.found.lock().get(name)?);
        (found.at.elapsed() < Self::FRESH).then_some(found)
    }

    fn put(&self, name: &str, consumer: PullConsumer) -> Arc<Found> {
        let deliveries = AtomicU64::new(consumer.cached_info().delivered.consumer_sequence);
        let found = Arc::new(Found { consumer, at: Instant::now(), deliveries });
        let mut consumers = self.found.lock();
        if consumers.len() >= Self::MAX {
            consumers.clear();
        }
        consumers.insert(name.to_owned(), Arc::clone(&found));
        found
    }

    pub(crate) fn remove(&self, name: &str) {
        self.found.lock().remove(name);
    }

    /// When a claim is over that has this sequence, unless it is ended before. Whoever waits for less comes again.
    fn claim_end(&self, name: &str, sequence: u64) -> Instant {
        let mut claims = self.claims.lock();
        if claims.len() >= Self::MAX {
            claims.clear();
        }
        let claim = claims.entry(name.to_owned()).or_insert_with(|| (sequence, Instant::now()));
        if claim.0 != sequence {
            *claim = (sequence, Instant::now());
        }
        claim.1 + CLAIM
    }

    pub(crate) fn clear(&self) {
        self.found.lock().clear();
    }
}

/// The name of the consumer of a group, the same on all nodes. Those of a topic begin alike.
pub(crate) fn consumer_name(subject: &str, group: Option<&GroupName>) -> String {
    let group = group.map_or("", GroupName::as_str);
    format!("{}{}", topic_name(subject), hex(&Sha256::digest(group)))
}

/// How the names of the consumers of a topic begin.
fn topic_name(subject: &str) -> String {
    format!("g-{}-", hex(&Sha256::digest(subject)))
}

fn hex(hash: &[u8]) -> String {
    hash[..12].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Refuses another group of a topic that has as many as it may have.
async fn check_count(known: &Known, subject: &str) -> Result<(), EngineError> {
    let limit = GroupSettings::MAX_GROUPS;
    let info = known.stream.get_info().await.map_err(|error| request_error(&error))?;
    // Mostly the topics of a stream have fewer together.
    if info.state.consumer_count < limit {
        return Ok(());
    }
    let (prefix, plain) = (topic_name(subject), consumer_name(subject, None));
    let (mut names, mut count) = (known.stream.consumer_names(), 0);
    while let Some(name) = names.next().await {
        let name = name.map_err(|error| request_error(&error))?;
        count += usize::from(name.starts_with(&prefix) && name != plain);
    }
    if count >= limit { Err(EngineError::TooManyGroups { limit }) } else { Ok(()) }
}

/// The consumer of a group that is new.
pub(crate) fn config(
    connection: &Connection,
    known: &Known,
    topic: &TopicName,
    group: Option<&GroupName>,
    from: Begin,
) -> pull::Config {
    let subject = connection.subject(topic);
    let inactive_threshold = match from {
        // Made again later, it would leave out what has come meanwhile.
        Begin::Next => Duration::ZERO,
        _ => long(known),
    };
    pull::Config {
        durable_name: Some(consumer_name(&subject, group)),
        description: Some(description(topic, group, &EngineGroupSettings::default())),
        filter_subject: subject,
        deliver_policy: policy(from),
        ack_policy: AckPolicy::Explicit,
        ack_wait: connection.options.lease + MARGIN,
        max_ack_pending: MAX_LEASES,
        max_waiting: MAX_WAITING,
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
    let is_empty = from == Begin::First && !has_messages(known, &subject).await?;
    if is_empty && wait.is_zero() {
        return Ok(None);
    }
    if group.is_some() {
        check_count(known, &subject).await?;
    }
    let mut config = config(connection, known, topic, group, from);
    if is_empty && wait != CREATE {
        // Any name may be asked for. Made again, it misses nothing, as it has had nothing.
        config.inactive_threshold = IDLE;
    }
    let consumer = create(connection, known, &name, config).await?;
    Ok(Some(connection.consumers.put(&name, consumer)))
}

/// Comes before the settings of a group in the description of its consumer. nats-server 2.9 keeps nothing else.
const SETTINGS: &str = "; settings ";

/// The description of a consumer. It has what the group has of its own.
pub(crate) fn description(
    topic: &TopicName,
    group: Option<&GroupName>,
    settings: &EngineGroupSettings,
) -> String {
    let group = group.map_or("", GroupName::as_str);
    let EngineGroupSettings { max_deliveries, dead_letters } = settings;
    let dead_letters = dead_letters.as_ref().map(TopicName::as_str);
    let own = serde_json::json!({"max_deliveries": max_deliveries, "dead_letters": dead_letters});
    format!("group {group:?} of {topic}{SETTINGS}{own}")
}

fn settings(description: &str) -> EngineGroupSettings {
    let own = description.rsplit_once(SETTINGS).map(|(_, own)| own).unwrap_or_default();
    let own: serde_json::Value = serde_json::from_str(own).unwrap_or_default();
    EngineGroupSettings {
        max_deliveries: own["max_deliveries"].as_u64().and_then(|most| most.try_into().ok()),
        dead_letters: own["dead_letters"].as_str().and_then(|name| name.parse().ok()),
    }
}

/// Changes what a consumer may have otherwise, and lets it stay although nobody uses it.
pub(crate) async fn change(
    connection: &Connection,
    known: &Known,
    found: &Found,
    change: impl FnOnce(&mut pull::Config),
) -> Result<(), ConsumerError> {
    let config = found.consumer.cached_info().config.clone();
    let unlike = |_| ConsumerError::new(ConsumerErrorKind::InvalidConsumerType);
    let mut config = pull::Config::try_from_consumer_config(config).map_err(unlike)?;
    change(&mut config);
    if config.inactive_threshold == IDLE {
        config.inactive_threshold = long(known);
    }
    connection.consumers.put(found.name(), known.stream.create_consumer(config).await?);
    Ok(())
}

/// Lets a group stay that has had messages, or that somebody has made.
pub(crate) async fn keep(
    connection: &Connection,
    known: &Known,
    found: &Found,
) -> Result<(), EngineError> {
    if !found.is_idle() {
        return Ok(());
    }
    // It may have been changed since it was found, for instance while a worker waited.
    let now = find(connection, known, found.name(), true).await?;
    let Some(now) = now.filter(|now| now.is_idle()) else { return Ok(()) };
    change(connection, known, &now, |_| {}).await.map_err(|error| request_error(&error))
}

/// The server removes a group that nobody uses when all that it has passed has expired.
fn long(known: &Known) -> Duration {
    known.max_age.map_or(Duration::ZERO, |age| age + HOUR)
}

/// Creates the consumer of a group that has none. No two nodes must do it at the same moment: a server may give both a
/// consumer then, and each message to both. So they claim it before. How old a claim is that they find, they cannot tell,
/// because clocks differ: it counts for [`CLAIM`] from then on, unless whoever has made it ends it.
async fn create(
    connection: &Connection,
    known: &Known,
    name: &str,
    config: pull::Config,
) -> Result<PullConsumer, EngineError> {
    const POLL: Duration = Duration::from_millis(20);
    let subject = claims(connection, name);
    loop {
        let found = marks::read(known, &subject).await?;
        let claim = found.as_ref().filter(|claim| claim.text == CLAIMED);
        let end = claim.map(|claim| connection.consumers.claim_end(name, claim.sequence));
        while end.is_some_and(|end| Instant::now() < end) {
            if let Some(found) = find(connection, known, name, true).await? {
                return Ok(found.consumer.clone());
            }
            sleep(POLL).await;
        }
        let text = CLAIMED.to_owned();
        let claim = marks::replace(connection, known, &subject, found.as_ref(), text, KEEP).await?;
        // If there is none, somebody else has just claimed it.
        if let Some(claim) = claim {
            let created = known.stream.create_consumer(config).await;
            end_claim(connection, known, name, Some(&claim)).await;
            return created.map_err(|error| request_error(&error));
        }
    }
}

/// Claims the group, whoever has claimed it before.
pub(crate) async fn claim(
    connection: &Connection,
    known: &Known,
    name: &str,
) -> Result<Mark, EngineError> {
    let subject = claims(connection, name);
    loop {
        let before = marks::read(known, &subject).await?;
        let text = CLAIMED.to_owned();
        let claim =
            marks::replace(connection, known, &subject, before.as_ref(), text, KEEP).await?;
        if let Some(claim) = claim {
            return Ok(claim);
        }
    }
}

/// Ends a claim, or any. If it fails, whoever makes the group again waits a moment.
pub(crate) async fn end_claim(
    connection: &Connection,
    known: &Known,
    name: &str,
    claim: Option<&Mark>,
) {
    let _ = marks::remove(known, &claims(connection, name), claim.map(|mark| mark.sequence)).await;
}

fn claims(connection: &Connection, name: &str) -> String {
    marks::subject(connection, "groups", name)
}
