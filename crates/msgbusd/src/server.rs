//! The server: it listens, accepts connections up to their limit, and shuts down in order.

mod acceptor;
mod sockets;

use std::{io, net::SocketAddr, sync::Arc, thread, time::Duration};

use futures_util::future::select_all;
use msgbus_core::MessageBus;
use msgbus_store::OpenError;
use thiserror::Error;
use tokio::{
    select,
    sync::oneshot,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::debug;

use self::{
    acceptor::Acceptor,
    sockets::{BoundListener, Sockets},
};
use crate::{
    auth::Keyring,
    config::{Config, DoorBind},
    deadlines,
    engines::{self, EngineStartError, EngineWatch},
    net::{
        listener::Bind,
        tls::{Certificate, CertificateError},
        workers::Workers,
    },
    state::App,
    storage::{self, Opened, StoreWatch},
};

/// The memory of an expired message is freed within this time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

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
