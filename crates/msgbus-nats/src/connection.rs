//! The connection to NATS, and the stream.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use async_nats::{
    Client, ClientError, ConnectErrorKind, ConnectOptions, Event, ServerError,
    connection::State,
    jetstream::{
        Context,
        context::ContextBuilder,
        stream::{Config, DiscardPolicy, Info, StorageType, Stream},
    },
};
use msgbus_core::{
    TopicName,
    engine::{EngineError, Health},
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    NatsOptions,
    consumers::Consumers,
    deliveries::Deliveries,
    error::{has_no_responder, is_stream_missing, request_error},
    leases::Settled,
    marks::Leftovers,
    refusals::{API, Refusals},
    services::Serving,
    subject::subject,
    turns::Turns,
};

/// The maximum number of messages whose acknowledgements are awaited.
const MAX_UNACKNOWLEDGED: usize = 4096;
/// The maximum number of operations that are not answered, whether or not somebody still waits for the answers.
const MAX_OPERATIONS: usize = 4096;

/// How often the client pings. A server that has not answered two pings counts as lost at the third.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// What all parts of an engine share.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) context: Context,
    pub(crate) options: NatsOptions,
    pub(crate) consumers: Consumers,
    pub(crate) deliveries: Deliveries,
    pub(crate) settled: Settled,
    pub(crate) turns: Turns,
    pub(crate) serving: Serving,
    pub(crate) leftovers: Leftovers,
    /// For each message whose acknowledgement is not awaited. In async-nats, who has sent a message and does not await its
    /// acknowledgement yet keeps others from publishing.
    pub(crate) unacknowledged: Arc<Semaphore>,
    /// For each operation that may still begin.
    pub(crate) operations: Arc<Semaphore>,
    known: tokio::sync::Mutex<Option<Arc<Known>>>,
    is_denied: Arc<AtomicBool>,
    pub(crate) refusals: Arc<Refusals>,
    /// Since when the leader has had fewer messages than there were before.
    behind_since: Mutex<Option<Instant>>,
    /// Whether the stream has answered when it was asked last. Until then, nobody knows.
    answers: Mutex<Option<Result<(), EngineError>>>,
}

/// The stream, as it was found.
pub(crate) struct Known {
    pub(crate) stream: Stream,
    pub(crate) epoch: u64,
    /// How long it keeps messages, whatever the options say.
    pub(crate) max_age: Option<Duration>,
    /// The highest sequence that is known.
    pub(crate) highest: AtomicU64,
    /// How often there had been a connection. After another one, it may be another stream.
    pub(crate) connects: u64,
    /// Makes the keys of leases.
    pub(crate) secret: String,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses may have a password.
        f.debug_struct("Connection").field("stream", &self.options.stream).finish_non_exhaustive()
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The description of the stream has the secret, too.
        f.debug_struct("Known").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Known {
    /// Whether the server forgets marks by itself.
    pub(crate) fn forgets_marks(&self) -> bool {
        self.stream.cached_info().config.allow_message_ttl
    }
}

impl Connection {
    /// Begins to connect. Does not wait for the server. Returns the connection twice: with the stream of topics, and with that
    /// of dead letters.
    pub(crate) async fn begin(
        options: NatsOptions,
        connect: ConnectOptions,
    ) -> Result<[Arc<Self>; 2], async_nats::ConnectError> {
        let is_denied = Arc::new(AtomicBool::new(false));
        let refusals = Arc::new(Refusals::default());
        let connected: [Arc<Notify>; 2] = Default::default();
        let (denied, refused) = (Arc::clone(&is_denied), Arc::clone(&refusals));
        let heard = connected.clone();
        let connect = connect
            .name("msgbus")
            .retry_on_initial_connect()
            .connection_timeout(options.timeout)
            .request_timeout(Some(options.timeout))
            .ping_interval(PING_INTERVAL)
            .event_callback(move |event| {
                if matches!(event, Event::Connected) {
                    for connected in &heard {
                        connected.notify_one();
                    }
                }
                hear(&event, &denied, &refused);
                std::future::ready(())
            });
        let servers: Vec<&str> = options.servers.split(',').map(str::trim).collect();
        let client = connect.connect(servers).await?;
        let [of_topics, of_letters] = connected;
        let own = (Arc::clone(&is_denied), Arc::clone(&refusals));
        let for_letters = options.for_dead_letters();
        let topics = Self::with(client.clone(), options, own, of_topics).await;
        let letters = Self::with(client, for_letters, (is_denied, refusals), of_letters).await;
        Ok([topics, letters])
    }

    async fn with(
        client: Client,
        options: NatsOptions,
        (is_denied, refusals): (Arc<AtomicBool>, Arc<Refusals>),
        connected: Arc<Notify>,
    ) -> Arc<Self> {
        let context = ContextBuilder::new()
            .timeout(options.timeout)
            .ack_timeout(options.timeout)
            // More than are sent at a time: some may be given up, and not forgotten there yet.
            .max_ack_inflight(4 * MAX_UNACKNOWLEDGED)
            .backpressure_on_inflight(false)
            .build(client.clone());
        let deliveries = Deliveries::new(client.new_inbox(), connected);
        // Only the end of the client, or a subject that is none, would be an error.
        let delivered = client.subscribe(deliveries.subject()).await;
        let connection = Arc::new(Self {
            client,
            context,
            options,
            consumers: Consumers::default(),
            deliveries,
            settled: Settled::default(),
            turns: Turns::default(),
            serving: Serving::default(),
            leftovers: Leftovers::default(),
            unacknowledged: Arc::new(Semaphore::new(MAX_UNACKNOWLEDGED)),
            operations: Arc::new(Semaphore::new(MAX_OPERATIONS)),
            known: tokio::sync::Mutex::default(),
            is_denied,
            refusals,
            behind_since: Mutex::default(),
            answers: Mutex::default(),
        });
        let weak = Arc::downgrade(&connection);
        tokio::spawn(Self::watch(Weak::clone(&weak)));
        if let Ok(delivered) = delivered {
            tokio::spawn(Deliveries::run(weak, delivered));
        }
        connection
    }

    pub(crate) fn subject(&self, topic: &TopicName) -> String {
        subject(&self.options.prefix, topic)
    }

    /// The size of the largest message with all that is sent with it, in bytes.
    pub(crate) fn max_message(&self) -> usize {
        self.client.max_payload() + (64 << 10)
    }

    /// Refuses at once while there is no connection, or while the stream does not answer.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        self.check_connected()?;
        self.answers.lock().unwrap_or(Ok(()))
    }

    fn check_connected(&self) -> Result<(), EngineError> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            _ if self.is_denied.load(Acquire) => Err(EngineError::Denied),
            _ => Err(EngineError::Unavailable),
        }
    }

    /// The stream. Creates it if there is none. After each connect it is looked for again.
    pub(crate) async fn stream(&self) -> Result<Arc<Known>, EngineError> {
        self.check()?;
        self.look_up(Self::check).await
    }

    /// `check` is asked again after others have looked for it.
    async fn look_up(
        &self,
        check: fn(&Self) -> Result<(), EngineError>,
    ) -> Result<Arc<Known>, EngineError> {
        let mut known = self.known.lock().await;
        check(self)?;
        let connects = self.connects();
        if let Some(known) = &*known
            && known.connects == connects
        {
            return Ok(Arc::clone(known));
        }
        let found = self.find(connects).await.inspect_err(|error| {
            // Those who wait for it need not ask, too.
            *self.answers.lock() = Some(Err(*error));
        })?;
        match &*known {
            Some(known) if known.epoch == found.epoch => {
                let highest = known.highest.load(Relaxed);
                found.highest.fetch_max(highest, Relaxed);
            }
            Some(_) => self.consumers.clear(),
            None => {}
        }
        let found = Arc::new(found);
        *known = Some(Arc::clone(&found));
        Ok(found)
    }

    /// How often there was a connection.
    pub(crate) fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Relaxed)
    }

    /// Whether a stream is certainly still the same.
    pub(crate) async fn is_same(&self, known: &Known) -> bool {
        known.connects == self.connects()
            || self.stream().await.is_ok_and(|now| now.epoch == known.epoch)
    }

    pub(crate) fn health(&self) -> Health {
        let answers = self.answers.lock().unwrap_or(Err(EngineError::Unavailable));
        let problem = self.check_connected().and(answers).err();
        Health { problem, reconnects: self.connects().saturating_sub(1), warning: None }
    }

    /// Asks for the stream, again and again: a server may be silent, or may not serve it, although there is a connection.
    pub(crate) async fn watch(connection: Weak<Self>) {
        const INTERVAL: Duration = Duration::from_secs(2);
        const SOON: Duration = Duration::from_millis(500);
        while let Some(connection) = connection.upgrade() {
            connection.probe().await;
            let pause = if connection.health().is_up() { INTERVAL } else { SOON };
            drop(connection);
            sleep(pause).await;
        }
    }

    async fn probe(&self) {
        /// A server that has not answered for so long is silent, whatever others are ready to wait.
        const LIMIT: Duration = Duration::from_secs(5);
        if self.check_connected().is_err() {
            return;
        }
        let began = Instant::now();
        let asked = timeout(self.options.timeout.min(LIMIT), self.ask(Self::check_connected)).await;
        let asked = asked.unwrap_or(Err(EngineError::Unavailable));
        let answers = asked.as_ref().map(drop);
        let answers = answers.map_err(|error| self.refusals.explain(*error, API, began));
        let before = self.answers.lock().replace(answers);
        if let Ok((known, _)) = &asked {
            self.leftovers.remove(known).await;
        }
        match answers {
            Err(error) if before != Some(answers) => {
                warn!(stream = self.options.stream, "NATS does not serve topics: {error}");
            }
            Ok(()) if before.is_some_and(|before| before.is_err()) => {
                info!(stream = self.options.stream, "NATS serves topics");
            }
            _ => {}
        }
    }

    /// Forgets the stream: it may be another one now.
    pub(crate) async fn forget(&self) {
        let mut known = self.known.lock().await;
        *known = None;
        drop(known);
        self.consumers.clear();
    }

    /// The stream and its state now, as its leader knows it.
    pub(crate) async fn state(&self) -> Result<(Arc<Known>, Info), EngineError> {
        self.check()?;
        self.ask(Self::check).await
    }

    async fn ask(
        &self,
        check: fn(&Self) -> Result<(), EngineError>,
    ) -> Result<(Arc<Known>, Info), EngineError> {
        let known = self.look_up(check).await?;
        let highest = known.highest.load(Relaxed);
        match known.stream.get_info().await {
            Ok(info) if epoch(&info) == known.epoch => {
                self.check_not_behind(&known, &info, highest)?;
                Ok((known, info))
            }
            Ok(_) => {
                self.forget().await;
                let known = self.look_up(check).await?;
                let info = known.stream.cached_info().clone();
                Ok((known, info))
            }
            Err(error) => {
                self.forget().await;
                Err(request_error(&error))
            }
        }
    }

    /// Refuses what a new leader says as long as it lacks messages that were there before it was asked. It may have them soon.
    fn check_not_behind(
        &self,
        known: &Known,
        info: &Info,
        highest: u64,
    ) -> Result<(), EngineError> {
        const LIMIT: Duration = Duration::from_secs(10);
        let (last, mut since) = (info.state.last_sequence, self.behind_since.lock());
        if last >= highest || info.config.num_replicas <= 1 {
            *since = None;
            return Ok(());
        }
        if since.get_or_insert_with(Instant::now).elapsed() < LIMIT {
            return Err(EngineError::Unavailable);
        }
        // They are lost.
        *since = None;
        known.highest.store(last, Relaxed);
        Ok(())
    }

    async fn find(&self, connects: u64) -> Result<Known, EngineError> {
        let name = &self.options.stream;
        let stream = match self.context.get_stream(name).await {
            Ok(stream) => self.allow_ttl(stream).await,
            Err(error) if is_stream_missing(&error) => self.create().await?,
            Err(error) => return Err(self.unserved(&error)),
        };
        let info = stream.cached_info();
        let secret = self.options.secret.clone().or_else(|| {
            let description = info.config.description.as_deref()?;
            Some(description.split_once(SECRET)?.1.to_owned())
        });
        let Some(secret) = secret else {
            warn!(stream = name, "the stream was not created by msgbus: set a secret");
            return Err(EngineError::Denied);
        };
        self.compare(&info.config);
        let epoch = epoch(info);
        // A key is of no use in another stream.
        let secret = format!("{secret} {epoch}");
        let highest = AtomicU64::new(info.state.last_sequence);
        let max_age = Some(info.config.max_age).filter(|age| !age.is_zero());
        Ok(Known { stream, epoch, max_age, highest, connects, secret })
    }

    /// Lets messages of a stream have TTLs that was made by msgbus on an older server.
    async fn allow_ttl(&self, stream: Stream) -> Stream {
        let config = &stream.cached_info().config;
        let is_own = config.description.as_deref().is_some_and(|text| text.contains(SECRET));
        if config.allow_message_ttl || !is_own || !self.is_at_least(2, 11) {
            return stream;
        }
        let name = &self.options.stream;
        let allow = async {
            // As JSON, so that nothing is left out that this client does not know.
            let info: Value =
                self.context.request(format!("STREAM.INFO.{name}"), &()).await.ok()?;
            let mut config = info["config"].clone();
            config["allow_msg_ttl"] = true.into();
            let update = format!("STREAM.UPDATE.{name}");
            let updated: Value = self.context.request(update, &config).await.ok()?;
            updated.get("error").is_none().then_some(())?;
            self.context.get_stream(name).await.ok()
        };
        let allowed = allow.await;
        if allowed.is_none() {
            warn!(stream = name, "the stream cannot be changed to allow TTLs of messages");
        }
        allowed.unwrap_or(stream)
    }

    async fn create(&self) -> Result<Stream, EngineError> {
        let created = self.context.create_stream(self.config()).await;
        match created {
            Ok(stream) => Ok(stream),
            // Another node may have created it meanwhile.
            Err(error) => match self.context.get_stream(&self.options.stream).await {
                Ok(stream) => Ok(stream),
                Err(_) => Err(self.unserved(&error)),
            },
        }
    }

    /// Why there is no stream.
    fn unserved(&self, error: &(dyn std::error::Error + 'static)) -> EngineError {
        let is_known = matches!(*self.answers.lock(), Some(Err(_)));
        if !is_known {
            warn!(stream = self.options.stream, "NATS does not serve the stream: {error}");
        }
        if has_no_responder(error) && !self.client.server_info().jetstream {
            let operation = "keep topics: the server runs without JetStream";
            return EngineError::NotSupported { engine: "nats", operation };
        }
        request_error(error)
    }

    fn config(&self) -> Config {
        let options = &self.options;
        let mut random = [0; 16];
        // Without randomness the stream has no secret, and is refused.
        let secret = getrandom::fill(&mut random).map(|()| u128::from_le_bytes(random));
        let description = secret.map(|secret| format!("topics of msgbus{SECRET}{secret:032x}"));
        let limit = |limit: Option<i64>| limit.unwrap_or(-1);
        Config {
            name: options.stream.clone(),
            subjects: vec![format!("{}.>", options.prefix)],
            description: description.ok(),
            max_age: options.max_age.unwrap_or_default(),
            max_messages_per_subject: limit(options.max_messages_per_topic.map(i64::from)),
            max_bytes: limit(options.max_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(-1))),
            max_messages: -1,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            num_replicas: options.replicas,
            duplicate_window: match options.max_age {
                Some(age) => options.duplicate_window.min(age),
                None => options.duplicate_window,
            },
            // Otherwise newer servers allow 1,000.
            max_consumers: 100_000,
            allow_direct: true,
            allow_message_ttl: self.is_at_least(2, 11),
            ..Config::default()
        }
    }

    /// Whether the server has this version or a later one. The client could tell too, with regular expressions, which take
    /// a megabyte of the binary.
    pub(crate) fn is_at_least(&self, major: u32, minor: u32) -> bool {
        version(&self.client.server_info().version) >= (major, minor)
    }

    /// Says what is different from the options.
    fn compare(&self, found: &Config) {
        let wanted = self.config();
        let value = |value: &dyn fmt::Debug| format!("{value:?}");
        let per_topic = |config: &Config| value(&config.max_messages_per_subject);
        let differs = [
            ("max_age", value(&found.max_age), value(&wanted.max_age)),
            ("max_bytes", value(&found.max_bytes), value(&wanted.max_bytes)),
            ("replicas", value(&found.num_replicas), value(&wanted.num_replicas)),
            ("max_messages_per_topic", per_topic(found), per_topic(&wanted)),
            ("duplicate_window", value(&found.duplicate_window), value(&wanted.duplicate_window)),
        ];
        for (setting, found_value, wanted) in differs {
            if found_value != wanted {
                let why = "the stream has another value than the options";
                warn!(stream = found.name, setting, has = found_value, options = wanted, "{why}");
            }
        }
    }
}

/// Notes what has happened to the connection.
fn hear(event: &Event, is_denied: &AtomicBool, refusals: &Refusals) {
    if matches!(event, Event::Connected) {
        is_denied.store(false, Release);
    } else if is_refusal(event) && !is_denied.swap(true, AcqRel) {
        // Each attempt to connect fails with it.
        warn!("NATS refuses the credentials of this server");
    }
    match event {
        // Each attempt to connect fails with one.
        Event::ClientError(error) => debug!("NATS: {error}"),
        // One for each message. Its reader begins again.
        Event::SlowConsumer(_) => debug!("NATS: {event}"),
        Event::ServerError(error) if refusals.hear(error) => {}
        Event::Connected => info!("connected to NATS"),
        Event::Disconnected => warn!("the connection to NATS is lost"),
        event => info!("NATS: {event}"),
    }
}

/// Whether the server refuses the credentials. Of a failed attempt to connect, the client only gives the text.
fn is_refusal(event: &Event) -> bool {
    match event {
        Event::ServerError(ServerError::AuthorizationViolation) => true,
        Event::ClientError(ClientError::Other(text)) => {
            let refusals =
                [ConnectErrorKind::AuthorizationViolation, ConnectErrorKind::Authentication];
            refusals.iter().any(|kind| *text == kind.to_string())
        }
        _ => false,
    }
}

/// Comes before the secret in the description of the stream.
const SECRET: &str = "; secret ";

fn epoch(info: &Info) -> u64 {
    let created = info.created.timestamp_nanos_opt().unwrap_or_default();
    u64::try_from(created).unwrap_or_default().max(1)
}

/// The major and the minor number of a version such as `2.10.1-beta`.
fn version(text: &str) -> (u32, u32) {
    let mut numbers =
        text.trim_start_matches('v').split(['.', '-']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("2.9.10"), (2, 9));
        assert_eq!(version("2.11.0-preview.1"), (2, 11));
        assert_eq!(version("v2.14"), (2, 14));
        assert!(version("2.9.10") < (2, 10) && version("2.10.0") >= (2, 10));
        assert_eq!(version(""), (0, 0), "an unknown server counts as old");
    }
}
