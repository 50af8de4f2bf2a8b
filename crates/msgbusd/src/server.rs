//! The server: listening, accepting, the bound on connections, and an end that is in order.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::select_all;
use msgbus_core::{MessageBus, format_duration};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Handle,
    select,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::rustls::ServerConfig;
use tracing::{debug, info, warn};

use crate::{
    auth::Keyring,
    config::Config,
    door::http::serve,
    limits::connection_limit::{ConnectionLimiter, ConnectionPermit, LimitExceeded, PerAddress},
    net::listener::{Bind, Listener},
    net::peer::Peer,
    net::raw_stream::Accepted,
    net::timeout_stream::TimeoutStream,
    net::tls::{self, Certificate, CertificateError},
    net::workers::Workers,
    state::App,
    worker::Worker,
};

/// How often the memory of expired messages is freed at the latest.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long to wait when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often the log says so.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How many connections may be told at a time that there are too many; more are just closed. Half as many
/// as may be served: where files are few, these do not take all the others.
const MOST_REFUSALS: usize = 64;
const FEWEST_REFUSALS: usize = 8;

/// A bound server, not yet serving.
#[derive(Debug)]
pub struct Server {
    doors: Vec<Door>,
    places: Vec<Bind>,
    certificate: Option<Arc<Certificate>>,
    app: Arc<App>,
    workers: Workers,
}

/// Where connections come in, and what is spoken there.
#[derive(Debug)]
struct Door {
    listener: Listener,
    /// How TLS is spoken, where it is.
    tls: Option<Arc<ServerConfig>>,
}

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// It cannot listen there.
    #[error("cannot listen on {place}: {error}")]
    Listen {
        /// Where.
        place: Bind,
        /// What the system says.
        error: io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// What the end of a server cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections, requests of HTTP/2 and websockets that were still at work at the deadline.
    pub cut: usize,
}

impl Server {
    /// Listens on the configured places, with an empty bus.
    ///
    /// # Errors
    /// The place that cannot be listened on, or the file of the certificate that is wrong by now.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let certificate =
            config.certificate.clone().map(Certificate::new).transpose()?.map(Arc::new);
        let tls = certificate.as_ref().map(tls::settings);
        let mut doors = Vec::new();
        let mut places = Vec::new();
        for bind in &config.bind {
            let failed = |error| StartError::Listen { place: bind.clone(), error };
            let listener = Listener::new(bind).map_err(failed)?;
            places.push(listener.place().map_err(failed)?);
            // Nobody can read along on a unix socket.
            let tls = tls.clone().filter(|_| matches!(bind, Bind::Tcp(_)));
            doors.push(Door { listener, tls });
        }
        let keyring = config.keys.clone().map(|file| Arc::new(Keyring::new(file)));
        let app = Arc::new(App::new(config, keyring));
        Ok(Self { doors, places, certificate, app, workers: Workers::current() })
    }

    /// Lets these threads serve the connections, instead of the runtime that accepts them.
    #[must_use]
    pub fn with_workers(self, workers: Workers) -> Self {
        Self { workers, ..self }
    }

    /// Where it listens, with the ports that were picked if none were given.
    pub fn places(&self) -> &[Bind] {
        &self.places
    }

    /// How a client names one of the places.
    pub fn uri(&self, place: &Bind) -> String {
        match place {
            Bind::Tcp(address) if self.certificate.is_some() => format!("https://{address}"),
            Bind::Tcp(address) => format!("http://{address}"),
            Bind::Unix(_) => place.to_string(),
        }
    }

    /// The first of the addresses; `None` where there are unix sockets only.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.places.iter().find_map(|place| match place {
            Bind::Tcp(address) => Some(*address),
            Bind::Unix(_) => None,
        })
    }

    /// The certificate in force; `None` where nobody speaks TLS.
    pub fn certificate(&self) -> Option<&Arc<Certificate>> {
        self.certificate.as_ref()
    }

    /// The keys in force; `None` where everybody may do everything.
    pub fn keyring(&self) -> Option<&Arc<Keyring>> {
        self.app.keyring.as_ref()
    }

    /// The bus behind the doors.
    pub fn bus(&self) -> &MessageBus {
        &self.app.bus
    }

    /// Serves until `shutdown` is ready, then stops accepting, lets requests finish, closes
    /// websockets, and ends within the drain timeout.
    ///
    /// # Panics
    /// When there is no place to listen on.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Drained {
        let Self { doors, app, workers, .. } = self;
        let sweeper = tokio::spawn(sweep(Arc::clone(&app)));
        let bus = app.bus.clone();
        let waking = tokio::spawn(async move { bus.drive_wakes().await });
        let entrance = Entrance::new(&app, &workers);
        let accepting = doors.iter().map(|door| Box::pin(entrance.open(door)));
        select! {
            (never, ..) = select_all(accepting) => match never {},
            () = shutdown => {}
        }
        drop(doors);
        sweeper.abort();
        let drained = entrance.drain().await;
        waking.abort();
        drained
    }
}

/// Frees what has expired, on a thread that serves nobody: where much has, it takes a while. The bus does
/// it by itself only where it is used.
async fn sweep(app: Arc<App>) {
    let mut ticks = interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let app = Arc::clone(&app);
        let freeing = spawn_blocking(move || {
            app.frames.clear();
            app.bus.purge_expired()
        });
        // It does not panic; if it did, the next one would try again.
        let purged = freeing.await.unwrap_or_default();
        if purged.topics > 0 {
            debug!(topics = purged.topics, messages = purged.messages, "Sweep");
        }
    }
}

/// What all doors have in common.
struct Entrance<'a> {
    app: &'a App,
    /// The threads, each with its runtime; connections take turns.
    workers: Vec<(&'a Handle, Arc<Worker>)>,
    next: AtomicUsize,
    refusals: Arc<ConnectionLimiter>,
}

impl<'a> Entrance<'a> {
    fn new(app: &'a Arc<App>, workers: &'a Workers) -> Self {
        let refusals = (app.config.max_connections / 2).clamp(FEWEST_REFUSALS, MOST_REFUSALS);
        let runtimes = workers.runtimes().iter();
        Self {
            app,
            workers: runtimes.map(|runtime| (runtime, Worker::new(app))).collect(),
            next: AtomicUsize::new(0),
            refusals: ConnectionLimiter::new(refusals, PerAddress::Unlimited),
        }
    }

    async fn open(&self, door: &Door) -> Infallible {
        let mut told = None;
        loop {
            match door.listener.accept().await {
                Ok((accepted, address)) => self.admit(door, accepted, address),
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    if told.is_none_or(|told: Instant| told.elapsed() >= TELL_EVERY) {
                        warn!(%error, "cannot accept connections for now");
                        told = Some(Instant::now());
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, door: &Door, accepted: Accepted, address: Option<SocketAddr>) {
        let Self { app, workers, refusals, .. } = self;
        let (runtime, worker) = &workers[self.next.fetch_add(1, Relaxed) % workers.len()];
        app.metrics.connection();
        let peer = Peer { address, has_tls: door.tls.is_some() };
        let why = match app.connections.try_acquire(peer.ip()) {
            Ok(permit) => {
                let tls = door.tls.clone();
                let serving = serve::serve(Arc::clone(worker), accepted, permit, tls, peer);
                worker.tasks.spawn_on(runtime, serving);
                return;
            }
            Err(why) => why,
        };
        app.metrics.refused_connection(why.code());
        // In TLS it would take a handshake to say so, which costs more than a request does.
        if peer.has_tls {
            return;
        }
        if let Ok(permit) = refusals.try_acquire(None) {
            let refusing = refuse(accepted, app.config.timeouts.write, permit, why);
            worker.tasks.spawn_on(runtime, refusing);
        }
    }

    async fn drain(&self) -> Drained {
        let tasks = || self.workers.iter().map(|(_, worker)| &worker.tasks);
        let count = || tasks().map(|tasks| tasks.tracker.len()).sum();
        let all_ended = || async {
            for tasks in tasks() {
                tasks.tracker.wait().await;
            }
        };
        let limit = self.app.config.timeouts.drain;
        let connections: usize = count();
        let plural = if connections == 1 { "" } else { "s" };
        info!("draining {connections} connection{plural}, up to {}", format_duration(limit));
        for tasks in tasks() {
            tasks.tracker.close();
            tasks.drain.cancel();
        }
        let left = if timeout(limit, all_ended()).await.is_ok() { 0 } else { count() };
        self.app.bus.close();
        tasks().for_each(|tasks| tasks.cut.cancel());
        all_ended().await;
        if left > 0 {
            warn!(connections = left, "cut at the end of --drain-timeout");
        }
        Drained { cut: left }
    }
}

/// Whether only the connection that was about to be accepted has failed.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Tells a client that it is one too many, once it has asked for something: an answer before the
/// question confuses some.
async fn refuse(
    accepted: Accepted,
    write_timeout: Duration,
    permit: ConnectionPermit,
    why: LimitExceeded,
) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let text = why.text();
    let length = text.len();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Retry-After: 1\r\nConnection: close\r\n\r\n{text}"
    );
    // One that cannot even be refused is just closed.
    let Ok(mut socket) = TimeoutStream::new(accepted, write_timeout, permit) else { return };
    let mut question = [0; 1024];
    // What it asks for does not matter.
    let _ = timeout(PATIENCE, socket.read(&mut question)).await;
    if socket.write_all(answer.as_bytes()).await.is_ok() {
        // The client may be gone, which is what is wanted.
        let _ = socket.shutdown().await;
    }
}
