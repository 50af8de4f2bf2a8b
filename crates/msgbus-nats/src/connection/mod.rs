//! The connection to NATS, and whether the stream can be used.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed},
        },
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions,
    connection::State,
    jetstream::{Context, context::ContextBuilder, stream::Info},
};
use msgbus_core::{
    TopicName,
    engine::{EngineError, Health},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

pub(crate) use self::stream::{Known, epoch};

use crate::{
    NatsOptions,
    consumers::Consumers,
    deliveries::Deliveries,
    error::request_error,
    leases::Settled,
    marks::Leftovers,
    publish::Publisher,
    refusals::{API, Refusals},
    services::Serving,
    subject::subject,
    turns::Turns,
};

mod events;
mod stream;

/// The maximum number of operations that are not answered, and as many publishes, whether or not somebody still waits for the
/// answers.
const MAX_OPERATIONS: u32 = 4096;

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
    pub(crate) publisher: Publisher,
    /// For each operation that may still begin.
    pub(crate) operations: Arc<Semaphore>,
    /// The same for publishes.
    pub(crate) publishes: Arc<Semaphore>,
    known: Mutex<Option<Arc<Known>>>,
    /// Held while the stream is looked for, so that one asks for all.
    finding: tokio::sync::Mutex<()>,
    is_denied: Arc<AtomicBool>,
    pub(crate) refusals: Arc<Refusals>,
    /// Since when the leader has had fewer messages than there were before.
    behind_since: Mutex<Option<Instant>>,
    /// Whether the stream has answered when it was asked last. Until then, nobody knows.
    answers: Mutex<Option<Result<(), EngineError>>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses may have a password.
        f.debug_struct("Connection").field("stream", &self.options.stream).finish_non_exhaustive()
    }
}

impl Connection {
    /// Begins to connect. Does not wait for the server. Returns the connection twice: with the stream of topics, and with that
    /// of dead letters.
    pub(crate) async fn begin(
        options: NatsOptions,
        connect: ConnectOptions,
    ) -> Result<[Arc<Self>; 2], async_nats::ConnectError> {
        let connect = connect
            .name("msgbus")
            .connection_timeout(options.timeout)
            .request_timeout(Some(options.timeout))
            .ping_interval(PING_INTERVAL);
        let is_denied = Arc::new(AtomicBool::new(false));
        let refusals = Arc::new(Refusals::default());
        let connected: [Arc<Notify>; 2] = Default::default();
        // Each address is tried once: it is no harm if there is no such connection.
        let to_publish = connect
            .clone()
            .max_reconnects(options.addresses().len())
            .event_callback(events::of_publishers(Arc::clone(&refusals)));
        let (denied, refused) = (Arc::clone(&is_denied), Arc::clone(&refusals));
        let heard = events::of_engine(denied, refused, options.places(), connected.clone());
        let connect = connect.retry_on_initial_connect().event_callback(heard);
        let client = connect.connect(options.addresses()).await?;
        let [of_topics, of_letters] = connected;
        let own = (Arc::clone(&is_denied), Arc::clone(&refusals));
        let for_letters = options.for_dead_letters();
        let topics = Self::with(client.clone(), options, own, of_topics).await;
        let letters = Self::with(client, for_letters, (is_denied, refusals), of_letters).await;
        for connection in [&topics, &letters] {
            Publisher::start(connection, &to_publish);
        }
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
            // More than are made at a time: some may be given up, and not forgotten there yet.
            .max_ack_inflight(4 * MAX_OPERATIONS as usize)
            .backpressure_on_inflight(false)
            .build(client.clone());
        let deliveries = Deliveries::new(client.new_inbox(), connected);
        // Only the end of the client, or a subject that is none, would be an error.
        let delivered = client.subscribe(deliveries.subject()).await;
        let publisher = Publisher::new(&options.publish_from);
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
            publisher,
            operations: Arc::new(Semaphore::new(MAX_OPERATIONS as usize)),
            publishes: Arc::new(Semaphore::new(MAX_OPERATIONS as usize)),
            known: Mutex::default(),
            finding: tokio::sync::Mutex::default(),
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
        match self.current() {
            Some(known) => Ok(known),
            // In a box, so that an operation that knows the stream takes little memory.
            None => Box::pin(self.search(check)).await,
        }
    }

    async fn search(
        &self,
        check: fn(&Self) -> Result<(), EngineError>,
    ) -> Result<Arc<Known>, EngineError> {
        let _finding = self.finding.lock().await;
        check(self)?;
        if let Some(known) = self.current() {
            return Ok(known);
        }
        let mut found = self.find(self.connects()).await.inspect_err(|error| {
            // Those who wait for it need not ask, too.
            *self.answers.lock() = Some(Err(*error));
        })?;
        let mut known = self.known.lock();
        match &*known {
            Some(known) if known.epoch == found.epoch => {
                known.highest.fetch_max(found.highest.load(Relaxed), Relaxed);
                // Publishes may still use the one before.
                found.highest = Arc::clone(&known.highest);
            }
            Some(_) => self.consumers.clear(),
            None => {}
        }
        Ok(Arc::clone(known.insert(Arc::new(found))))
    }

    /// The stream, if there has been no other connection since it was found.
    pub(crate) fn current(&self) -> Option<Arc<Known>> {
        let known = self.known.lock();
        known.as_ref().filter(|known| known.connects == self.connects()).map(Arc::clone)
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

    /// Ready when all that was published is answered.
    pub(crate) async fn published(&self) -> Result<(), EngineError> {
        let all = self.publishes.acquire_many(MAX_OPERATIONS).await;
        all.map(drop).map_err(|_| EngineError::Unknown)
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
            // They end their own connections.
            self.publisher.wake();
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

    /// Forgets the stream, if no other one is known meanwhile: it may be another one now.
    pub(crate) fn forget(&self, stream: &Arc<Known>) {
        let mut known = self.known.lock();
        if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, stream)) {
            *known = None;
            self.consumers.clear();
        }
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
                self.forget(&known);
                let known = self.look_up(check).await?;
                let info = known.stream.cached_info().clone();
                Ok((known, info))
            }
            Err(error) => {
                self.forget(&known);
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
}
