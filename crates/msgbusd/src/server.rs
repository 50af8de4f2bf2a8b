//! The server: listening, accepting, the bound on connections, and an end that is in order.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpStream as StdTcpStream},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Request,
    body::{Body, Frame, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use msgbus_core::MessageBus;
use socket2::{Domain, Protocol, Socket as RawSocket, TcpKeepalive, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    config::Config,
    frames::Frames,
    http::{self, AnswerBody, App, Tasks},
    keys::Keyring,
    metrics::Metrics,
    socket::{Conversation, Socket},
    workers::Workers,
};

/// How often the memory of expired messages is freed at the latest.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long to wait when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many connections may be told at a time that there are too many; more are just closed.
const MOST_REFUSALS: usize = 64;
const BACKLOG: i32 = 1024;
/// Finds peers that have vanished without a word from connections on which nothing is said: a raw
/// stream of a silent topic has no other way to notice.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// A bound server, not yet serving.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    workers: Workers,
}

/// What the end of a server cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections and websockets that were still at work at the deadline.
    pub cut: usize,
}

impl Server {
    /// Listens on the configured address, with an empty bus.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub fn bind(config: Config) -> io::Result<Self> {
        let listener = listen(config.bind)?;
        let app = App {
            bus: MessageBus::new(config.bus.clone()),
            keyring: config.keys.clone().map(|file| Arc::new(Keyring::new(file))),
            config,
            metrics: Metrics::new(),
            frames: Frames::default(),
            tasks: Tasks::default(),
        };
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            app: Arc::new(app),
            workers: Workers::current(),
        })
    }

    /// Lets these threads serve the connections, instead of the runtime that accepts them.
    #[must_use]
    pub fn with_workers(self, workers: Workers) -> Self {
        Self { workers, ..self }
    }

    /// The address in use, with the port that was picked if none was given.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
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
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Drained {
        let Self { listener, app, workers, .. } = self;
        let sweeper = tokio::spawn(sweep(Arc::clone(&app)));
        select! {
            never = accept(&listener, &workers, &app) => match never {},
            () = shutdown => {}
        }
        drop(listener);
        sweeper.abort();
        drain(&app).await
    }
}

/// All interfaces means those of both protocols, where the system has both.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        match RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)) {
            Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
                return listen(SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, address.port())));
            }
            socket => socket?,
        };
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    // Accepted connections inherit it, so that it costs none of them a call.
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Frees what has expired. The bus does it by itself only where it is used.
async fn sweep(app: Arc<App>) {
    let mut ticks = interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        app.frames.clear();
        let purged = app.bus.purge_expired();
        if purged.topics > 0 {
            debug!(topics = purged.topics, messages = purged.messages, "Sweep");
        }
    }
}

async fn accept(listener: &TcpListener, workers: &Workers, app: &Arc<App>) -> Infallible {
    let permits = Arc::new(Semaphore::new(app.config.max_connections));
    let refusals = Arc::new(Semaphore::new(MOST_REFUSALS));
    loop {
        let (stream, peer) = match accept_one(listener).await {
            Ok(accepted) => accepted,
            Err(error) if is_the_peers(&error) => continue,
            Err(error) => {
                warn!(%error, "cannot accept connections for now");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        app.metrics.connection();
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            let task = serve(Arc::clone(app), stream, permit, peer);
            app.tasks.spawn_on(workers.next(), task);
            continue;
        }
        app.metrics.refused_connection();
        if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
            app.tasks.spawn_on(workers.next(), refuse(stream, app.config.timeouts.write, permit));
        }
    }
}

/// Not tied to a runtime yet: that is up to the one that will serve it.
async fn accept_one(listener: &TcpListener) -> io::Result<(StdTcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept().await?;
    Ok((stream.into_std()?, peer))
}

/// Whether only the connection that was about to be accepted has failed.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Serves one connection until it ends, or becomes a websocket.
async fn serve(
    app: Arc<App>,
    stream: StdTcpStream,
    permit: OwnedSemaphorePermit,
    peer: SocketAddr,
) {
    let socket = match Socket::new(stream, app.config.timeouts.write, permit) {
        Ok(socket) => socket,
        Err(error) => return warn!(%peer, %error, "cannot serve a connection"),
    };
    let waiting = socket.conversation();
    let conversation = waiting.clone();
    let service = service_fn(|mut request: Request<_>| {
        let (app, conversation) = (Arc::clone(&app), conversation.clone());
        async move {
            conversation.request_begins();
            let answer = http::answer(&app, peer, &mut request).await;
            Ok::<_, Infallible>(answer.map(|body| Watched { body, conversation }))
        }
    });
    let connection = http1::Builder::new()
        // The socket has deadlines of its own, which tell an idle connection from a slow head.
        .header_read_timeout(None)
        .max_header_size(app.config.max_header)
        .max_buf_size(app.config.max_header.max(MOST_BUFFERED))
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut draining = pin!(app.tasks.drain.cancelled());
    let mut overdue = pin!(waiting.overdue(&app.config.timeouts));
    let mut is_draining = false;
    loop {
        select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(%peer, %error, "connection ended");
                }
                return;
            }
            () = &mut overdue => return debug!(%peer, "connection closed: nothing came in time"),
            () = &mut draining, if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// A body that ends its request when it has been given to the connection.
struct Watched {
    body: AnswerBody,
    conversation: Conversation,
}

impl Body for Watched {
    type Data = <AnswerBody as Body>::Data;
    type Error = <AnswerBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.conversation.request_ends();
    }
}

/// The largest buffer of a connection, in bytes: for heads, and for what of a body is in flight.
const MOST_BUFFERED: usize = 64 << 10;

/// Tells a client that it is one too many, once it has asked for something: an answer before the
/// question confuses some.
async fn refuse(stream: StdTcpStream, write_timeout: Duration, permit: OwnedSemaphorePermit) {
    const PATIENCE: Duration = Duration::from_secs(1);
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
        Content-Type: text/plain; charset=utf-8\r\nContent-Length: 41\r\n\
        Retry-After: 1\r\nConnection: close\r\n\r\n\
        too many connections: try again in a bit\n";
    // One that cannot even be refused is just closed.
    let Ok(mut socket) = Socket::new(stream, write_timeout, permit) else { return };
    let mut question = [0; 1024];
    // What it asks for does not matter.
    let _ = timeout(PATIENCE, socket.read(&mut question)).await;
    if socket.write_all(ANSWER).await.is_ok() {
        // The client may be gone, which is what is wanted.
        let _ = socket.shutdown().await;
    }
}

async fn drain(app: &App) -> Drained {
    let Tasks { tracker, drain, cut } = &app.tasks;
    let patience = app.config.timeouts.drain;
    tracker.close();
    info!(connections = tracker.len(), ?patience, "draining");
    drain.cancel();
    let in_time = timeout(patience, tracker.wait()).await.is_ok();
    let left = if in_time { 0 } else { tracker.len() };
    app.bus.close();
    cut.cancel();
    tracker.wait().await;
    if left > 0 {
        warn!(connections = left, "cut at the end of --drain-timeout");
    }
    Drained { cut: left }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn accepted_connections_are_probed_when_they_are_silent() {
        for bind in ["127.0.0.1:0", "[::]:0"] {
            let listener = listen(bind.parse().unwrap()).unwrap();
            let port = listener.local_addr().unwrap().port();
            let _client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            let accepted = SockRef::from(&accepted);
            assert!(accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
            assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
            assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 4);
        }
    }
}
