//! The connection to NATS, and the stream.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
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
use tokio::{sync::Semaphore, time::sleep};
use tracing::{debug, info, warn};

use crate::{
    NatsOptions, consumers::Consumers, error::request_error, leases::Leases, subject::subject,
};

/// The maximum number of messages whose acknowledgements are awaited.
const MAX_UNACKNOWLEDGED: usize = 4096;
/// The maximum number of operations that are not answered, whether or not somebody still waits for the answers.
const MAX_OPERATIONS: usize = 4096;

/// What all parts of an engine share.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) context: Context,
    pub(crate) options: NatsOptions,
    pub(crate) consumers: Consumers,
    pub(crate) leases: Leases,
    /// For each message whose acknowledgement is not awaited. In async-nats, who has sent a message and does not await its
    /// acknowledgement yet keeps others from publishing.
    pub(crate) unacknowledged: Arc<Semaphore>,
    /// For each operation that may still begin.
    pub(crate) operations: Arc<Semaphore>,
    known: tokio::sync::Mutex<Option<Arc<Known>>>,
    is_denied: Arc<AtomicBool>,
    /// Whether the stream is known.
    has_stream: AtomicBool,
}

/// The stream, as it was found.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) stream: Stream,
    pub(crate) epoch: u64,
    /// The highest sequence that was acknowledged.
    pub(crate) highest: AtomicU64,
    /// How often there had been a connection. After another one, it may be another stream.
    connects: u64,
    /// Makes the keys of leases.
    pub(crate) secret: String,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses may have a password.
        f.debug_struct("Connection").field("stream", &self.options.stream).finish_non_exhaustive()
    }
}

impl Connection {
    /// Begins to connect. Does not wait for the server.
    pub(crate) async fn begin(
        options: NatsOptions,
        connect: ConnectOptions,
    ) -> Result<Self, async_nats::ConnectError> {
        let is_denied = Arc::new(AtomicBool::new(false));
        let denied = Arc::clone(&is_denied);
        let connect = connect
            .name("msgbus")
            .retry_on_initial_connect()
            .connection_timeout(options.timeout)
            .request_timeout(Some(options.timeout))
            .event_callback(move |event| {
                if matches!(event, Event::Connected) {
                    denied.store(false, Release);
                } else if is_refusal(&event) {
                    denied.store(true, Release);
                }
                match event {
                    // Each attempt to connect fails with one.
                    Event::ClientError(error) => debug!("NATS: {error}"),
                    event => info!("NATS: {event}"),
                }
                std::future::ready(())
            });
        let servers: Vec<&str> = options.servers.split(',').map(str::trim).collect();
        let client = connect.connect(servers).await?;
        let context = ContextBuilder::new()
            .timeout(options.timeout)
            .ack_timeout(options.timeout)
            // More than are sent at a time: some may be given up, and not forgotten there yet.
            .max_ack_inflight(4 * MAX_UNACKNOWLEDGED)
            .backpressure_on_inflight(false)
            .build(client.clone());
        Ok(Self {
            client,
            context,
            options,
            consumers: Consumers::default(),
            leases: Leases::default(),
            unacknowledged: Arc::new(Semaphore::new(MAX_UNACKNOWLEDGED)),
            operations: Arc::new(Semaphore::new(MAX_OPERATIONS)),
            known: tokio::sync::Mutex::default(),
            is_denied,
            has_stream: AtomicBool::new(false),
        })
    }

    pub(crate) fn subject(&self, topic: &TopicName) -> String {
        subject(&self.options.prefix, topic)
    }

    /// The size of the largest message with all that is sent with it, in bytes.
    pub(crate) fn max_message(&self) -> usize {
        self.client.max_payload() + (64 << 10)
    }

    /// Refuses at once while there is no connection.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            _ if self.is_denied.load(Acquire) => Err(EngineError::Denied),
            _ => Err(EngineError::Unavailable),
        }
    }

    /// The stream. Creates it if there is none. After each connect it is looked for again.
    pub(crate) async fn stream(&self) -> Result<Arc<Known>, EngineError> {
        self.check()?;
        let mut known = self.known.lock().await;
        let connects = self.connects();
        if let Some(known) = &*known
            && known.connects == connects
        {
            return Ok(Arc::clone(known));
        }
        let mut found = self.find(connects).await?;
        match &*known {
            Some(known) if known.epoch == found.epoch => {
                *found.highest.get_mut() = known.highest.load(Relaxed);
            }
            Some(_) => self.consumers.clear(),
            None => {}
        }
        let found = Arc::new(found);
        *known = Some(Arc::clone(&found));
        self.has_stream.store(true, Release);
        Ok(found)
    }

    /// How often there was a connection.
    fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Relaxed)
    }

    /// Whether a stream is certainly still the same.
    pub(crate) async fn is_same(&self, known: &Known) -> bool {
        known.connects == self.connects()
            || self.stream().await.is_ok_and(|now| now.epoch == known.epoch)
    }

    pub(crate) fn health(&self) -> Health {
        let is_up = self.check().is_ok() && self.has_stream.load(Acquire);
        Health { is_up, reconnects: self.connects().saturating_sub(1) }
    }

    /// Looks for the stream as long as it is not known, so that somebody knows that the engine serves topics.
    pub(crate) async fn look_for_stream(connection: Weak<Self>) {
        const INTERVAL: Duration = Duration::from_millis(500);
        while let Some(connection) = connection.upgrade() {
            if !connection.has_stream.load(Acquire) && connection.check().is_ok() {
                // If it fails, that was logged, and the next try may succeed.
                let _ = connection.stream().await;
            }
            drop(connection);
            sleep(INTERVAL).await;
        }
    }

    /// Forgets the stream: it may be another one now.
    pub(crate) async fn forget(&self) {
        let mut known = self.known.lock().await;
        *known = None;
        self.has_stream.store(false, Release);
        drop(known);
        self.consumers.clear();
    }

    /// The stream and its state now, as its leader knows it.
    pub(crate) async fn state(&self) -> Result<(Arc<Known>, Info), EngineError> {
        let known = self.stream().await?;
        match known.stream.get_info().await {
            Ok(info) if epoch(&info) == known.epoch => Ok((known, info)),
            Ok(_) => {
                self.forget().await;
                let known = self.stream().await?;
                let info = known.stream.cached_info().clone();
                Ok((known, info))
            }
            Err(error) => {
                self.forget().await;
                Err(request_error(&error))
            }
        }
    }

    async fn find(&self, connects: u64) -> Result<Known, EngineError> {
        let name = &self.options.stream;
        let stream = match self.context.get_stream(name).await {
            Ok(stream) => stream,
            Err(_) => match self.context.create_stream(self.config()).await {
                Ok(stream) => stream,
                // Another node may have created it meanwhile.
                Err(_) => {
                    let found = self.context.get_stream(name).await;
                    found.map_err(|error| request_error(&error))?
                }
            },
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
        let (secret, highest) = (format!("{secret} {epoch}"), AtomicU64::new(0));
        Ok(Known { stream, epoch, highest, connects, secret })
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
            allow_message_ttl: self.client.is_server_compatible(2, 11, 0),
            ..Config::default()
        }
    }

    /// Says what is different from the options.
    fn compare(&self, found: &Config) {
        let wanted = self.config();
        let differs = [
            ("max_age", found.max_age != wanted.max_age),
            ("max_bytes", found.max_bytes != wanted.max_bytes),
            ("replicas", found.num_replicas != wanted.num_replicas),
            (
                "max_messages_per_topic",
                found.max_messages_per_subject != wanted.max_messages_per_subject,
            ),
            ("duplicate_window", found.duplicate_window != wanted.duplicate_window),
        ];
        for (setting, _) in differs.iter().filter(|(_, differs)| *differs) {
            warn!(stream = found.name, setting, "the stream has another value than the options");
        }
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
