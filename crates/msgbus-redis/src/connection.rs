//! The connection to Redis. One is shared by all operations of an engine, and made again when it is lost.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::{join_all, try_join_all};
use msgbus_core::{
    TopicName,
    engine::{EngineError, Health},
};
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo as _, ProtocolVersion,
    PushInfo, PushKind, RedisError, RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::{
    runtime::Handle,
    sync::{OnceCell, Semaphore, SemaphorePermit, watch},
    task::{AbortHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    Acknowledge, RedisOptions,
    channels::{Channels, Listener},
    error::{Request, request_error, should_reconnect},
    groups::Turns,
    keys::Keys,
    lanes::Lanes,
    link::{Link, answers, check_wait},
    publish::Publisher,
    script::{self, Script},
    server::{Failure, Server},
};

const MIN_DELAY: Duration = Duration::from_millis(50);
const MAX_DELAY: Duration = Duration::from_secs(2);
/// How often each connection is asked whether it is of use.
pub(crate) const PROBE: Duration = Duration::from_secs(1);
/// The maximum number of reads that are not answered. Each has an answer of about 1 MiB at most, unless one message is larger.
const MAX_READS: usize = 16;
/// The maximum number of operations that are not answered.
pub(crate) const MAX_OPERATIONS: u32 = 8192;

/// What all parts of an engine share.
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    /// Of publishes that wait for more than the server.
    pub(crate) publisher: Option<Publisher>,
    /// Of all others.
    pub(crate) lanes: Lanes,
    supervisor: AbortHandle,
}

/// What also the task has that connects.
pub(crate) struct Shared {
    pub(crate) options: RedisOptions,
    pub(crate) channels: Channels,
    pub(crate) turns: Turns,
    /// Makes the keys of leases unguessable in topics that this engine makes.
    pub(crate) secret: String,
    /// Of reads and fetches, whose answers may be large.
    reads: Semaphore,
    /// Of operations that are not answered, also when nobody waits for the answer any longer.
    pub(crate) permits: Arc<Semaphore>,
    state: watch::Sender<Result<Arc<Link>, EngineError>>,
    generation: AtomicU64,
    /// How often a connection was established.
    connects: AtomicU64,
    /// What the server may do to topics.
    warning: Mutex<Option<&'static str>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Connection {
    /// Begins to connect. Does not wait for the server.
    pub(crate) fn begin(options: RedisOptions) -> RedisResult<Self> {
        client(&options)?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| invalid("there is no randomness"))?;
        let publishes_wait = options.acknowledge != Acknowledge::Server;
        let shared = Arc::new(Shared {
            options,
            channels: Channels::default(),
            turns: Turns::default(),
            secret: format!("{:032x}", u128::from_le_bytes(random)),
            reads: Semaphore::new(MAX_READS),
            permits: Arc::new(Semaphore::new(MAX_OPERATIONS as usize)),
            state: watch::Sender::new(Err(EngineError::Unavailable)),
            generation: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            warning: Mutex::default(),
        });
        let lanes = Lanes::new(Handle::current(), &shared.options.publish_from);
        let publisher = publishes_wait.then(|| Publisher::start(&shared));
        let supervisor = tokio::spawn(supervise(Arc::clone(&shared))).abort_handle();
        Ok(Self { shared, publisher, lanes, supervisor })
    }
}

fn invalid(why: &'static str) -> RedisError {
    (ErrorKind::InvalidClientConfig, why).into()
}

/// What knows the address and the credentials.
pub(crate) fn client(options: &RedisOptions) -> RedisResult<Client> {
    if options.prefix.is_empty() || options.prefix.contains(['{', '}']) {
        return Err(invalid("the prefix must not be empty or have braces"));
    }
    let info = options.url.as_str().into_connection_info()?;
    let mut settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    if let Some(user) = &options.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &options.password {
        settings = settings.set_password(password);
    }
    // A request does not wait for the answers to those before it.
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    // The system forgets a connection that this has given up, too.
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(options.timeout * 2);
    let info = info.set_redis_settings(settings).set_tcp_settings(tcp);
    match &options.tls {
        Some(tls) => Client::build_with_tls(info, tls.clone()),
        None => Client::open(info),
    }
}

impl Shared {
    pub(crate) fn keys(&self, topic: &TopicName) -> Keys {
        Keys::new(&self.options.prefix, topic)
    }

    /// The connection, or why there is none.
    pub(crate) fn link(&self) -> Result<Arc<Link>, EngineError> {
        self.state.borrow().clone()
    }

    pub(crate) fn health(&self) -> Health {
        let connects = self.connects.load(Relaxed);
        let problem = self.state.borrow().as_ref().err().copied();
        Health { problem, reconnects: connects.saturating_sub(1), warning: *self.warning.lock() }
    }

    /// Waits for a connection, for at most so long.
    pub(crate) async fn connected(&self, at_most: Duration) {
        let mut state = self.state.subscribe();
        let _ = timeout(at_most, state.wait_for(Result::is_ok)).await;
    }

    /// Lets a listener hear what is said from now on.
    pub(crate) async fn subscribe(
        &self,
        listener: &Listener,
        link: &Link,
    ) -> Result<(), EngineError> {
        let mut connection = link.news.clone();
        let subscribing = self.channels.subscribe(listener, link.generation, &mut connection);
        // The server has a limit of its own. This one is for those that subscribe or unsubscribe before it.
        match timeout(self.options.timeout, subscribing).await {
            Ok(subscribed) => {
                subscribed.map_err(|error| self.failed(link, &error, Request::Harmless))
            }
            Err(_) => {
                self.lose(link.generation);
                Err(EngineError::Unavailable)
            }
        }
    }

    /// The turn of a read, whose answer may be large. It waits for as long as an answer, at most.
    pub(crate) async fn turn_to_read(
        &self,
        link: &Link,
    ) -> Result<SemaphorePermit<'_>, EngineError> {
        let turn = timeout(self.options.timeout, self.reads.acquire()).await;
        let permit = turn.map_err(|_| EngineError::Busy)?.map_err(|_| EngineError::Closed)?;
        // Those who have waited do not ask a connection that is lost.
        self.check(link)?;
        Ok(permit)
    }

    /// Refuses a connection that is lost.
    pub(crate) fn check(&self, link: &Link) -> Result<(), EngineError> {
        match &*self.state.borrow() {
            Ok(now) if now.generation == link.generation => Ok(()),
            Ok(_) => Err(EngineError::Unavailable),
            Err(why) => Err(*why),
        }
    }

    /// Runs a script.
    pub(crate) async fn run(
        &self,
        link: &Link,
        script: Script,
        keys: &[String],
        request: Request,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value, EngineError> {
        let start = Instant::now();
        let command = link.command(script, keys, arguments);
        let mut connection = self.connection(link).await?;
        let mut answer = command.query_async::<Value>(&mut connection).await;
        let rest = self.options.timeout.saturating_sub(start.elapsed());
        if script::is_missing(&answer) && !rest.is_zero() {
            let mut commands = redis::pipe();
            commands.add_command(script.load()).add_command(command).ignore_errors();
            connection.set_response_timeout(rest);
            let answers = commands.query_async(&mut connection).await;
            answer = answers.and_then(|[_, answer]: [RedisResult<Value>; 2]| answer);
        }
        answer.map_err(|error| self.failed(link, &error, request))
    }

    /// The connection of the current runtime. It is opened when something is sent from there for the first time.
    pub(crate) async fn connection(
        &self,
        link: &Link,
    ) -> Result<MultiplexedConnection, EngineError> {
        let here = Arc::clone(link.by_runtime.lock().entry(Handle::current().id()).or_default());
        if let Some(connection) = here.get() {
            return Ok(connection.clone());
        }
        let connection = here.get_or_try_init(|| self.open(link)).await?.clone();
        // That may have taken a while.
        self.check(link)?;
        Ok(connection)
    }

    /// Opens one more connection to the same server. If there may be no more, it is the first one.
    async fn open(&self, link: &Link) -> Result<MultiplexedConnection, EngineError> {
        // Of many that wait for it, the first may have found that it is lost.
        self.check(link)?;
        let opening = async {
            let client = self.client().await?;
            client.get_multiplexed_async_connection_with_config(&link.config).await
        };
        let limit = self.options.timeout.min(PROBE);
        let mut connection = match timeout(limit, opening).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                debug!("no other connection to Redis: {error}");
                return Ok(link.connection.clone());
            }
            Err(_) => return Ok(link.connection.clone()),
        };
        if link.server.check_same(&mut connection).await.is_err() {
            self.lose(link.generation);
            return Err(EngineError::Unavailable);
        }
        Ok(connection)
    }

    /// What an error means for the operation, and for the connection.
    pub(crate) fn failed(&self, link: &Link, error: &RedisError, request: Request) -> EngineError {
        if should_reconnect(error) {
            self.lose(link.generation);
        }
        request_error(error, request)
    }

    /// A connection is of no use any longer. Those before it do not matter.
    fn lose(&self, generation: u64) {
        let is_it = |link: &Arc<Link>| link.generation == generation;
        let is_news = self.state.send_if_modified(|state| {
            let is_lost = state.as_ref().is_ok_and(is_it);
            if is_lost {
                *state = Err(EngineError::Unavailable);
            }
            is_lost
        });
        if is_news {
            self.channels.wake_all();
        }
    }

    /// What knows the address, and the credentials as they are now.
    async fn client(&self) -> RedisResult<Client> {
        let Some(find) = self.options.find_password.clone() else { return client(&self.options) };
        let found = spawn_blocking(move || find()).await.ok().flatten();
        let password = found.or_else(|| self.options.password.clone());
        client(&RedisOptions { password, ..self.options.clone() })
    }

    async fn connect(self: &Arc<Self>) -> Result<Link, Failure> {
        let (shared, timeout) = (Arc::downgrade(self), self.options.timeout);
        let generation = self.generation.fetch_add(1, Relaxed) + 1;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_pipeline_buffer_size(1024)
            .set_push_sender(move |push: PushInfo| -> Result<(), redis::aio::SendError> {
                let shared = shared.upgrade().ok_or(redis::aio::SendError)?;
                if push.kind == PushKind::Disconnection {
                    shared.lose(generation);
                }
                shared.channels.hear(push, generation);
                Ok(())
            });
        let client = self.client().await?;
        let open = async || client.get_multiplexed_async_connection_with_config(&config).await;
        let (mut connection, mut news) = (open().await?, open().await?);
        let server = Server::of(&mut connection).await?;
        let waiting = match self.options.acknowledge {
            Acknowledge::Server => None,
            Acknowledge::Replicas(_) | Acknowledge::Synced { .. } => {
                let mut other = open().await?;
                // Its answers come when the wait is over, which has a limit of its own.
                other.set_response_timeout(timeout + PROBE);
                check_wait(self.options.acknowledge, &mut other).await?;
                server.check_same(&mut other).await?;
                Some(other)
            }
        };
        server.check_same(&mut news).await?;
        let loading = Script::ALL.map(|script| {
            let mut connection = connection.clone();
            async move { script.load().query_async::<String>(&mut connection).await }
        });
        let hashes: Arc<[String]> = try_join_all(loading).await?.into();
        let own = (Handle::current().id(), Arc::new(OnceCell::new_with(Some(connection.clone()))));
        let by_runtime = HashMap::from([own]).into();
        let run = "".into();
        let mut link =
            Link { connection, by_runtime, config, news, waiting, generation, run, server, hashes };
        link.run = self.arrive(&link, &link.server).await?;
        self.warn(&link.server);
        Ok(link)
    }

    /// Notes what the server may do to topics, and says so when it begins.
    fn warn(&self, server: &Server) {
        let before = std::mem::replace(&mut *self.warning.lock(), server.warning);
        if let Some(warning) = server.warning.filter(|_| before.is_none()) {
            warn!("Redis may lose topics: {warning}");
        }
    }

    /// Notes which server it is, and what it promises now. Returns its run.
    async fn arrive(&self, link: &Link, server: &Server) -> RedisResult<Arc<str>> {
        if server.identity.is_empty() {
            return Ok("".into());
        }
        let keys = [Keys::of_server(&self.options.prefix)];
        let arrive = link.command(Script::Arrive, &keys, |command| {
            command.arg(&*server.identity).arg(u8::from(server.is_safe));
        });
        let run: String = arrive.query_async(&mut link.connection.clone()).await?;
        Ok(run.into())
    }

    fn set(&self, state: Result<Arc<Link>, EngineError>) {
        let _ = self.state.send_replace(state);
        self.channels.wake_all();
    }

    /// Ready when the connection is lost. What was sent on each of its parts must be answered in time, or it is.
    async fn watch(&self, link: &Link) {
        let mut state = self.state.subscribe();
        let probing = async {
            let mut is_safe = link.server.is_safe;
            loop {
                sleep(self.options.timeout.min(PROBE)).await;
                if !self.probe(link, &mut is_safe).await {
                    return;
                }
            }
        };
        tokio::select! {
            _ = state.wait_for(Result::is_err) => {}
            () = probing => self.lose(link.generation),
        }
    }

    /// Whether all connections lead to the same server as ever, and it answers.
    async fn probe(&self, link: &Link, is_safe: &mut bool) -> bool {
        let is_same = async {
            if link.server.identity.is_empty() {
                return answers(&link.connection).await;
            }
            let Ok(server) = Server::of(&mut link.connection.clone()).await else { return false };
            self.warn(&server);
            let may_lose = *is_safe && !server.is_safe;
            *is_safe &= server.is_safe;
            server.identity == link.server.identity
                && (!may_lose || self.arrive(link, &server).await.is_ok())
        };
        let hears = async {
            let unused = self.channels.unsubscribe_unused(&mut link.news.clone()).await;
            unused.is_ok() && answers(&link.news).await
        };
        let waits = async {
            match &link.waiting {
                Some(waiting) => answers(waiting).await,
                None => true,
            }
        };
        let publishers = link.publishers();
        let publish =
            async { join_all(publishers.iter().map(answers)).await.iter().all(|does| *does) };
        // The first that does not work ends it.
        tokio::try_join!(must(is_same), must(hears), must(waits), must(publish)).is_ok()
    }
}

async fn must(works: impl Future<Output = bool>) -> Result<(), ()> {
    works.await.then_some(()).ok_or(())
}

/// Connects, again and again, until the engine is dropped.
async fn supervise(shared: Arc<Shared>) {
    let (mut delay, mut said) = (MIN_DELAY, None);
    loop {
        let started = Instant::now();
        match timeout(shared.options.timeout * 3, shared.connect()).await {
            Ok(Ok(link)) => {
                info!("connected to Redis");
                shared.connects.fetch_add(1, Relaxed);
                said = None;
                let link = Arc::new(link);
                shared.set(Ok(Arc::clone(&link)));
                shared.watch(&link).await;
                warn!("the connection to Redis is lost");
            }
            Ok(Err(Failure { why, details })) => {
                if said != Some(why) {
                    warn!(details, "Redis cannot be used");
                    said = Some(why);
                }
                shared.set(Err(why));
            }
            Err(_) => shared.set(Err(EngineError::Unavailable)),
        }
        if started.elapsed() > MAX_DELAY {
            delay = MIN_DELAY;
        }
        sleep(delay).await;
        delay = (delay * 2).min(MAX_DELAY);
    }
}
