//! Serving one connection of HTTP/2.

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
    bodies::{MOST_OFFERED, PacedBody},
    date, note_end,
};
use crate::{
    door::http::router,
    limits::inflight::Inflight,
    limits::quota::QuotaPermit,
    net::connection::{Connection, MOST_STREAMS},
    net::peer::Peer,
    net::timeout_stream::{ConnectionActivity, Linger},
    worker::Worker,
};

/// What a client of HTTP/2 may send of one body, and of all, before somebody has read it, in bytes.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 64 << 10;
/// As in HTTP/1.1.
const MOST_HEADERS: usize = 100;
/// How long a client of HTTP/2 has to answer a ping.
const PING_PATIENCE: Duration = Duration::from_secs(20);
/// How long the close of an idle connection of HTTP/2 may take.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) async fn serve(
    worker: &Arc<Worker>,
    connection: Connection,
    activity: &ConnectionActivity,
    peer: Peer,
) {
    activity.multiplex();
    let service =
        service_fn(|request| respond(Arc::clone(worker), activity.clone(), peer, request));
    let header_size = u32::try_from(worker.config.max_header).unwrap_or(u32::MAX);
    let connection = Builder::new(Streams(Arc::clone(worker)))
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(MOST_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MOST_OFFERED)
        .max_header_list_size(header_size)
        .keep_alive_interval(worker.config.timeouts.ping)
        .keep_alive_timeout(PING_PATIENCE)
        .serve_connection(TokioIo::new(connection), service);
    let mut connection = pin!(connection);
    let stop = Http2::graceful_shutdown;
    // It has to agree to its end, and may not answer any more.
    let quiet_at_the_end = async {
        worker.tasks.drain.cancelled().await;
        loop {
            sleep(FAREWELL).await;
            if activity.is_quiet() {
                return;
            }
        }
    };
    let end = select! {
        end = attend(worker, activity, connection.as_mut(), stop, None) => end,
        () = quiet_at_the_end => End::Over(Ok(())),
    };
    if matches!(end, End::Overdue(_)) {
        // A request may be on its way: its client is told that nobody will look at it.
        stop(connection.as_mut());
        let _ = timeout(FAREWELL, connection).await;
    }
    note_end(worker, peer, end);
}

async fn respond(
    worker: Arc<Worker>,
    activity: ConnectionActivity,
    peer: Peer,
    mut request: Request<Incoming>,
) -> Result<Response<PacedBody>, Infallible> {
    let exchange = activity.clone().begin();
    let counted = count(&worker.inflight, &request);
    let mut answer = if counted.is_none() {
        router::no_memory_for_request(&worker)
    } else if request.headers().len() > MOST_HEADERS {
        router::too_many_headers(&worker)
    } else {
        router::answer(&worker, peer, &activity, &mut request).await
    };
    if counted.is_some() && !request.body().is_end_stream() {
        worker.tasks.spawn(linger(request.into_body()));
    }
    date::stamp(&mut answer);
    Ok(answer.map(|body| PacedBody::new(&worker, activity, exchange, counted, body)))
}

/// What a request counts as in flight until its answer has been taken; `None` where there is no memory for it.
fn count(inflight: &Inflight, request: &Request<Incoming>) -> Option<QuotaPermit> {
    let is_read =
        request.body().is_end_stream() || matches!(*request.method(), Method::PUT | Method::POST);
    let unread = if is_read { 0 } else { STREAM_WINDOW as usize };
    let is_of_an_operator = matches!(request.uri().path(), "/metrics" | "/healthz");
    inflight.request_of_many(unread, is_of_an_operator)
}

/// Reads a little of what nobody wants, as a socket does when it is closed: reset at once, some clients
/// do not look at the answer.
async fn linger(mut body: Incoming) {
    let reading = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > Linger::BYTES {
                return;
            }
        }
    };
    // The answer is out: who is slower has to make do with it.
    let _ = timeout(Linger::TIME, reading).await;
}

/// Runs the exchanges of HTTP/2, so that the end of the server waits for each.
#[derive(Clone)]
struct Streams(Arc<Worker>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    /// Each is begun at once, before the next head is taken up: a request that can be answered is, and one that
    /// waits has given the memory of its head back.
    fn execute(&self, stream: F) {
        let mut stream = Box::pin(stream);
        // The task asks again, with a waker of its own.
        if stream.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        self.0.tasks.spawn(stream);
    }
}
