//! Gives connections to the threads that serve them, up to their limit, and ends them when the server stops.

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

use msgbus_core::format_duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Handle,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use tracing::{error, info, warn};

use super::{Drained, sockets::BoundListener};
use crate::{
    door::http::serve,
    limits::connection_limit::{ConnectionLimiter, ConnectionPermit, LimitExceeded, PerAddress},
    logging::counted,
    net::{peer::Peer, raw_stream::Accepted, timeout_stream::TimeoutStream, workers::Workers},
    state::App,
    worker::Worker,
};

/// The pause after the system failed to give a socket.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The minimum time between two warnings about that.
const WARN_INTERVAL: Duration = Duration::from_secs(5);
/// The maximum number of connections that get a 503 at a time; others are closed without one. It is at most half
/// of the connection limit, so that refusals do not use up the file descriptors.
const MAX_REFUSALS: usize = 64;
const MIN_REFUSALS: usize = 8;

/// Gives the connections of all listeners to the workers.
pub(super) struct Acceptor<'a> {
    app: &'a App,
    /// The serving threads with their runtimes; connections go to each in turn.
    workers: Vec<(&'a Handle, Arc<Worker>)>,
    next: AtomicUsize,
    refusals: Arc<ConnectionLimiter>,
}

impl<'a> Acceptor<'a> {
    pub(super) fn new(app: &'a Arc<App>, workers: &'a Workers) -> Self {
        let refusals = (app.config.max_connections / 2).clamp(MIN_REFUSALS, MAX_REFUSALS);
        let runtimes = workers.runtimes().iter();
        Self {
            app,
            workers: runtimes.map(|runtime| (runtime, Worker::new(app))).collect(),
            next: AtomicUsize::new(0),
            refusals: ConnectionLimiter::new(refusals, PerAddress::Unlimited),
        }
    }

    pub(super) async fn accept_loop(&self, bound: &BoundListener) -> Infallible {
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
    pub(super) async fn drain(&self, timer: JoinHandle<()>) -> Drained {
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
