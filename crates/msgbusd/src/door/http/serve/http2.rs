//! Serves one HTTP/2 connection.

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    Method, Request, Response,
    body::{Body as _, Incoming},
    rt::Executor,
    server::conn::http2::{Builder, Connection as Http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    select,
    time::{sleep, timeout},
};

use super::{
    End, attend,
    bodies::{MAX_CHUNK, PacedBody},
    date, note_end,
};
use crate::{
    door::http::{activity::ConnectionActivity, router, transport::Transport},
    limits::inflight::Inflight,
    limits::quota::QuotaPermit,
    net::connection::Connection,
    net::peer::Peer,
    net::timeout_stream::Linger,
    worker::Worker,
};

/// The maximum number of concurrent requests, and thus subscriptions, on one connection.
const MAX_STREAMS: u32 = 32;
/// The flow control windows for one body and for all bodies of a connection, in bytes.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 64 << 10;
/// The maximum number of headers, as in HTTP/1.1.
const MAX_HEADERS: usize = 100;
/// How long a client has to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the close of an idle connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) async fn serve(
    worker: &Arc<Worker>,
    connection: Connection,
    activity: &ConnectionActivity,
    peer: Peer,
) {
    activity.multiplex();
    let io = Transport::new(connection, activity.clone());
    let service =
        service_fn(|request| respond(Arc::clone(worker), activity.clone(), peer, request));
    let header_size = u32::try_from(worker.config.max_header).unwrap_or(u32::MAX);
    let connection = Builder::new(Streams(Arc::clone(worker)))
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_CHUNK)
        .max_header_list_size(header_size)
        .keep_alive_interval(worker.config.timeouts.ping)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let stop = Http2::graceful_shutdown;
    // A graceful shutdown needs a reply, which a client may never send.
    let idle_while_draining = async {
        worker.tasks.stop.draining().await;
        loop {
            sleep(CLOSE_TIMEOUT).await;
            if activity.is_idle() {
                return;
            }
        }
    };
    let end = select! {
        end = attend(worker, activity, connection.as_mut(), stop, None) => end,
        () = idle_while_draining => End::Over(Ok(())),
    };
    if matches!(end, End::Overdue(_)) {
        // A request may be on its way. GOAWAY tells the client that it will not be processed.
        stop(connection.as_mut());
        let _ = timeout(CLOSE_TIMEOUT, connection).await;
    }
    note_end(worker, peer, end);
}

async fn respond(
    worker: Arc<Worker>,
    activity: ConnectionActivity,
    peer: Peer,
    mut request: Request<Incoming>,
) -> Result<Response<PacedBody>, Infallible> {
    let guard = activity.clone().begin();
    let counted = count(&worker.inflight, &request);
    let mut response = if counted.is_none() {
        router::no_memory_for_request(&worker)
    } else if request.headers().len() > MAX_HEADERS {
        router::too_many_headers(&worker)
    } else {
        router::handle(&worker, peer, &activity, &mut request).await
    };
    if counted.is_some() && !request.body().is_end_stream() {
        worker.tasks.spawn(linger(request.into_body()));
    }
    date::stamp(&mut response);
    Ok(response.map(|body| PacedBody::new(&worker, activity, guard, counted, body)))
}

/// Counts a request as in flight until its response is sent; `None` if there is not enough memory.
fn count(inflight: &Inflight, request: &Request<Incoming>) -> Option<QuotaPermit> {
    let is_read =
        request.body().is_end_stream() || matches!(*request.method(), Method::PUT | Method::POST);
    let unread = if is_read { 0 } else { STREAM_WINDOW as usize };
    let is_of_an_operator = matches!(request.uri().path(), "/metrics" | "/healthz");
    inflight.track_http2_request(unread, is_of_an_operator)
}

/// Reads a limited amount of an unwanted body, like the lingering close of a socket. If the stream is reset at once,
/// some clients do not read the response.
async fn linger(mut body: Incoming) {
    let reading = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > Linger::MAX_BYTES {
                return;
            }
        }
    };
    // A client that sends for longer may not see the response.
    let _ = timeout(Linger::TIMEOUT, reading).await;
}

/// Runs the streams of HTTP/2 as tracked tasks, so that the drain waits for them.
#[derive(Clone)]
struct Streams(Arc<Worker>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    /// Polls each stream once before the next head is read: a request that need not wait is answered at once, and one
    /// that has to wait has freed the memory of its head.
    fn execute(&self, stream: F) {
        let mut stream = Box::pin(stream);
        // The spawned task polls again, with its own waker.
        if stream.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        self.0.tasks.spawn(stream);
    }
}
