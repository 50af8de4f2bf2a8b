//! The server: it listens, accepts connections up to their limit, and shuts down in order.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use futures_util::future::select_all;
use msgbus_core::{MessageBus, format_duration};
use msgbus_store::OpenError;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Handle,
    select,
    sync::oneshot,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::rustls::ServerConfig;
use tracing::{debug, error, info, warn};

use crate::{
    auth::Keyring,
    config::{Config, DoorBind, Protocol},
    deadlines,
    door::{Door, Doors, http::serve},
    engines::{self, EngineStartError, EngineWatch},
    limits::connection_limit::{ConnectionLimiter, ConnectionPermit, LimitExceeded, PerAddress},
    logging::counted,
    net::listener::{Bind, Listener},
    net::peer::Peer,
    net::raw_stream::Accepted,
    net::timeout_stream::TimeoutStream,
    net::tls::{self, Certificate, CertificateError},
    net::workers::Workers,
    state::App,
    storage::{self, Opened, StoreWatch},
    worker::Worker,
};

/// The memory of an expired message is freed within this time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// The pause after the system failed to give a socket.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The minimum time between two warnings about that.
const WARN_INTERVAL: Duration = Duration::from_secs(5);
/// The maximum number of connections that get a 503 at a time; others are closed without one. It is at most half
/// of the connection limit, so that refusals do not use up the file descriptors.
const MAX_REFUSALS: usize = 64;
const MIN_REFUSALS: usize = 8;

/// A bound server, not yet serving.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<BoundListener>,
    endpoints: Vec<Bind>,
    doors: Vec<DoorBind>,
    certificate: Option<Arc<Certificate>>,
    app: Arc<App>,
    workers: Workers,
}

/// A listener and the TLS settings of its connections.
#[derive(Debug)]
struct BoundListener {
    listener: Listener,
    /// `None` for connections without TLS.
    tls: Option<Arc<ServerConfig>>,
    /// `None` for HTTP.
    door: Option<(Protocol, Door)>,
}

impl BoundListener {
    /// Whether a client that is refused understands a response of HTTP.
    fn speaks_http(&self) -> bool {
        self.door.as_ref().is_none_or(|(protocol, _)| protocol.begins_with_http())
    }
}

/// What a server listens on.
#[derive(Debug)]
struct Sockets {
    listeners: Vec<BoundListener>,
    endpoints: Vec<Bind>,
    doors: Vec<DoorBind>,
    certificate: Option<Arc<Certificate>>,
}

impl Sockets {
    fn bind(config: &Config) -> Result<Self, StartError> {
        let certificate =
            config.certificate.clone().map(Certificate::new).transpose()?.map(Arc::new);
        let tls = |protocols: &[&[u8]]| {
            certificate.as_ref().map(|certificate| tls::settings(certificate, protocols))
        };
        let (mut listeners, mut endpoints, mut doors) = (Vec::new(), Vec::new(), Vec::new());
        let of_http = tls(&serve::PROTOCOLS);
        for bind in &config.bind {
            let (listener, endpoint) = listen(bind, "--bind")?;
            listeners.push(BoundListener {
                listener,
                tls: encrypts(bind, of_http.as_ref()),
                door: None,
            });
            endpoints.push(endpoint);
        }
        let (state, of_doors) = (Doors::new(config), tls(&[]));
        for DoorBind { protocol, bind } in &config.doors {
            let (listener, endpoint) = listen(bind, protocol.flag())?;
            let door = Some((*protocol, state.of(*protocol)));
            listeners.push(BoundListener {
                listener,
                tls: encrypts(bind, of_doors.as_ref()),
                door,
            });
            doors.push(DoorBind { protocol: *protocol, bind: endpoint });
        }
        Ok(Self { listeners, endpoints, doors, certificate })
    }
}

fn listen(bind: &Bind, flag: &'static str) -> Result<(Listener, Bind), StartError> {
    let failed = |error| StartError::Listen { endpoint: bind.clone(), flag, error };
    let listener = Listener::new(bind).map_err(failed)?;
    let endpoint = listener.local_endpoint().map_err(failed)?;
    Ok((listener, endpoint))
}

/// A unix socket does not leave the machine, so it needs no encryption.
fn encrypts(bind: &Bind, tls: Option<&Arc<ServerConfig>>) -> Option<Arc<ServerConfig>> {
    tls.filter(|_| matches!(bind, Bind::Tcp(_))).cloned()
}

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The endpoint cannot be listened on.
    #[error("cannot listen on {endpoint}: {error}")]
    Listen {
        /// The endpoint as configured.
        endpoint: Bind,
        /// The flag that gives it.
        flag: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// The certificate is not usable.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The directory of `--data` is not usable.
    #[error("--data: {0}")]
    Data(OpenError),
    /// An engine of the configuration is not usable.
    #[error(transparent)]
    Engine(#[from] EngineStartError),
    /// The system gives no thread to read the directory.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The thread that read the directory panicked. The log says where.
    #[error("--data: reading it has panicked")]
    Panicked,
}

/// Its text contains that of the store's error, which is no source of it: the text would be printed twice.
impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        Self::Data(error)
    }
}

/// What a server cut off when it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections, HTTP/2 requests and websockets that were still active at the deadline.
    pub cut: usize,
}

impl Server {
    /// Listens on the configured endpoints, for connections that these threads will serve. With a directory of data it blocks
    /// until everything in it is read; connections wait meanwhile.
    ///
    /// # Errors
    /// When an endpoint cannot be listened on, a certificate file is not usable any more, or the directory of data or an
    /// engine is not usable.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub fn bind(config: Config, workers: Workers) -> Result<Self, StartError> {
        let sockets = Sockets::bind(&config)?;
        let opened = storage::open(&config, workers.runtimes())?;
        Ok(Self::new(config, sockets, opened, workers))
    }

    /// Like [`bind`](Self::bind), but reads the directory of data on a thread of its own and does not block.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind), and when the system gives no thread.
    ///
    /// # Cancel safety
    /// When dropped, it stops listening. The thread goes on reading, and uses the directory until it is done or the
    /// process ends, which harms nothing: the next start reads the directory again.
    pub async fn bind_async(config: Config, workers: Workers) -> Result<Self, StartError> {
        if config.data.is_none() {
            return Self::bind(config, workers);
        }
        let sockets = Sockets::bind(&config)?;
        // Not on a blocking thread of the runtime: the end of the runtime would wait for it.
        let (done, opened) = oneshot::channel();
        let thread = thread::Builder::new().name("open".to_owned()).spawn(move || {
            let opened = storage::open(&config, workers.runtimes());
            // Nobody may be waiting any more.
            let _ = done.send((config, opened, workers));
        });
        thread.map_err(StartError::Thread)?;
        let (config, opened, workers) = opened.await.map_err(|_| StartError::Panicked)?;
        Ok(Self::new(config, sockets, opened?, workers))
    }

    fn new(config: Config, sockets: Sockets, opened: Opened, workers: Workers) -> Self {
        engines::warn_of_patterns(&config, &opened.bus);
        let keyring = config.keys.clone().map(|file| Arc::new(Keyring::new(file)));
        let app = Arc::new(App::new(config, keyring, opened));
        let Sockets { listeners, endpoints, doors, certificate } = sockets;
        Self { listeners, endpoints, doors, certificate, app, workers }
    }

    /// The endpoints that the server listens on. Port 0 is replaced by the port that the system picked.
    pub fn local_endpoints(&self) -> &[Bind] {
        &self.endpoints
    }

    /// The endpoints of other protocols than HTTP, as [`local_endpoints`](Self::local_endpoints).
    pub fn door_endpoints(&self) -> &[DoorBind] {
        &self.doors
    }

    /// The URI by which a client reaches an endpoint.
    pub fn uri(&self, endpoint: &Bind) -> String {
        match endpoint {
            Bind::Tcp(address) if self.certificate.is_some() => format!("https://{address}"),
            Bind::Tcp(address) => format!("http://{address}"),
            Bind::Unix(_) => endpoint.to_string(),
        }
    }

    /// The first TCP address; `None` if the server listens on unix sockets only.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.endpoints.iter().find_map(|endpoint| match endpoint {
            Bind::Tcp(address) => Some(*address),
            Bind::Unix(_) => None,
        })
    }

    /// The certificate in force; `None` without TLS.
    pub fn certificate(&self) -> Option<&Arc<Certificate>> {
        self.certificate.as_ref()
    }

    /// The keys in force; `None` if the server has no keys and every client may do everything.
    pub fn keyring(&self) -> Option<&Arc<Keyring>> {
        self.app.keyring.as_ref()
    }

    /// The bus that the server serves.
    pub fn bus(&self) -> &MessageBus {
        &self.app.bus
    }

    /// Serves until `shutdown` is ready. Then it stops accepting connections, lets requests finish, closes
    /// websockets, and returns within the drain timeout.
    ///
    /// # Panics
    /// When the configuration has no endpoint.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Drained {
        let Self { listeners, app, workers, .. } = self;
        let sweeper = tokio::spawn(sweep(Arc::clone(&app)));
        let timer = tokio::spawn(deadlines::run(Arc::clone(&app)));
        let bus = app.bus.clone();
        let waking = tokio::spawn(async move { bus.drive_wakes().await });
        let acceptor = Acceptor::new(&app, &workers);
        let accepting = listeners.iter().map(|bound| Box::pin(acceptor.accept_loop(bound)));
        select! {
            (never, ..) = select_all(accepting) => match never {},
            () = shutdown => {}
        }
        drop(listeners);
        sweeper.abort();
        let drained = acceptor.drain(timer).await;
        waking.abort();
        drained
    }
}

/// Frees expired messages of all topics. The bus itself frees only those of topics that are in use. It runs on a
/// blocking thread, because many expired messages take a while.
async fn sweep(app: Arc<App>) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut watch, mut engine_watch) = (StoreWatch::default(), EngineWatch::default());
    loop {
        ticks.tick().await;
        if let Some(store) = &app.store {
            watch.check(store);
        }
        if let Some(engines) = &app.engines {
            engine_watch.check(engines);
        }
        let app = Arc::clone(&app);
        let freeing = spawn_blocking(move || {
            app.frames.clear();
            app.bus.purge_expired()
        });
        // If a sweep panics, the next one tries again.
        let purged = freeing.await.unwrap_or_default();
        if purged.topics > 0 {
            debug!(topics = purged.topics, messages = purged.messages, "Sweep");
        }
    }
}

/// Gives the connections of all listeners to the workers.
struct Acceptor<'a> {
    app: &'a App,
    /// The serving threads with their runtimes; connections go to each in turn.
    workers: Vec<(&'a Handle, Arc<Worker>)>,
    next: AtomicUsize,
    refusals: Arc<ConnectionLimiter>,
}

impl<'a> Acceptor<'a> {
    fn new(app: &'a Arc<App>, workers: &'a Workers) -> Self {
        let refusals = (app.config.max_connections / 2).clamp(MIN_REFUSALS, MAX_REFUSALS);
        let runtimes = workers.runtimes().iter();
        Self {
            app,
            workers: runtimes.map(|runtime| (runtime, Worker::new(app))).collect(),
            next: AtomicUsize::new(0),
            refusals: ConnectionLimiter::new(refusals, PerAddress::Unlimited),
        }
    }

    async fn accept_loop(&self, bound: &BoundListener) -> Infallible {
        let mut last_warned = None;
        loop {
            match bound.listener.accept().await {
                Ok((accepted, address)) => self.dispatch(bound, accepted, address),
                Err(error) if is_peer_error(&error) => {}
                Err(error) => {
                    if last_warned.is_none_or(|last: Instant| last.elapsed() >= WARN_INTERVAL) {
                        warn!(%error, "cannot accept connections for now");
                        last_warned = Some(Instant::now());
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn dispatch(&self, bound: &BoundListener, accepted: Accepted, address: Option<SocketAddr>) {
        let Self { app, workers, refusals, .. } = self;
        let (runtime, worker) = &workers[self.next.fetch_add(1, Relaxed) % workers.len()];
        app.metrics.connection();
        let peer = Peer { address, has_tls: bound.tls.is_some() };
        if let Some((protocol, _)) = bound.door {
            app.metrics.door_connection(protocol);
        }
        let exceeded = match app.connections.try_acquire(peer.ip()) {
            Ok(permit) => {
                let tls = bound.tls.clone();
                let of_task = Arc::clone(worker);
                // Two kinds of tasks, so that those of HTTP need no memory for others.
                if let Some((_, door)) = bound.door.clone() {
                    let serving = door.serve(of_task, accepted, permit, tls, peer);
                    worker.tasks.spawn_on(runtime, serving);
                } else {
                    let serving = serve::serve(of_task, accepted, permit, tls, peer);
                    worker.tasks.spawn_on(runtime, serving);
                }
                return;
            }
            Err(exceeded) => exceeded,
        };
        app.metrics.refused_connection(exceeded.code());
        // A TLS client could read the 503 only after a handshake, which costs more than a request.
        if peer.has_tls || !bound.speaks_http() {
            return;
        }
        if let Ok(permit) = refusals.try_acquire(None) {
            let refusing = refuse(accepted, app.config.timeouts.write, permit, exceeded);
            worker.tasks.spawn_on(runtime, refusing);
        }
    }

    /// Ends all connections, then the timer of groups, and closes the bus.
    async fn drain(&self, timer: JoinHandle<()>) -> Drained {
        let tasks = || self.workers.iter().map(|(_, worker)| &worker.tasks);
        let count = || tasks().map(|tasks| tasks.tracker.len()).sum();
        let all_ended = || async {
            for tasks in tasks() {
                tasks.tracker.wait().await;
            }
        };
        let limit = self.app.config.timeouts.drain;
        let connections: usize = count();
        let connections = counted(connections as u64, "connection");
        info!("draining {connections}, up to {}", format_duration(limit));
        for tasks in tasks() {
            tasks.tracker.close();
            tasks.stop.drain();
        }
        let left = if timeout(limit, all_ended()).await.is_ok() { 0 } else { count() };
        timer.abort();
        let bus = self.app.bus.clone();
        // Syncing may take a while. Its failure is counted, and the publishers are told.
        let closing = spawn_blocking(move || {
            // So that a dead letter that has been kept is not published again after a restart.
            bus.run_due();
            bus.close()
        });
        if let Ok(Err(error)) = closing.await {
            error!("not everything was kept: {error}");
        }
        if let Some(engines) = &self.app.engines {
            engines.finish().await;
        }
        tasks().for_each(|tasks| tasks.stop.cut());
        all_ended().await;
        if left > 0 {
            warn!(connections = left, "cut at the end of --drain-timeout");
        }
        Drained { cut: left }
    }
}

/// Whether the error concerns only the connection that was about to be accepted.
fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Refuses a connection with a 503. It first reads some of the request: some clients do not expect a response
/// before they have sent one.
async fn refuse(
    accepted: Accepted,
    write_timeout: Duration,
    permit: ConnectionPermit,
    exceeded: LimitExceeded,
) {
    const READ_TIMEOUT: Duration = Duration::from_secs(1);
    let text = exceeded.text();
    let length = text.len();
    let response = format!(
        "HTTP/1.1 503 Service Unavailable\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Retry-After: 1\r\nConnection: close\r\n\r\n{text}"
    );
    let Ok(mut stream) = TimeoutStream::new(accepted, write_timeout, permit) else { return };
    let mut request = [0; 1024];
    // Every request gets the same response, also one that does not arrive.
    let _ = timeout(READ_TIMEOUT, stream.read(&mut request)).await;
    if stream.write_all(response.as_bytes()).await.is_ok() {
        // If it fails, the client has already closed the connection.
        let _ = stream.shutdown().await;
    }
}
