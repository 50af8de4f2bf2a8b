//! Serves one connection, with or without TLS, HTTP/1.1 or HTTP/2.

mod bodies;
mod date;
mod http1;
mod http2;
mod streaming;

use std::{
    error::Error,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, select};
use tokio_rustls::{rustls::ServerConfig, server::TlsStream};
use tokio_util::either::Either;
use tracing::{debug, warn};

use super::activity::ConnectionActivity;
use crate::{
    code::Code,
    limits::connection_limit::ConnectionPermit,
    metrics::Deadline,
    net::connection::{self, Connection},
    net::peer::Peer,
    net::raw_stream::Accepted,
    net::timeout_stream::TimeoutStream,
    net::tls,
    worker::Worker,
};

/// The application protocols (ALPN) that the server offers, the preferred one first.
pub(crate) const PROTOCOLS: [&[u8]; 2] = [HTTP_2, b"http/1.1"];
/// RFC 9113, section 3.1.
const HTTP_2: &[u8] = b"h2";

/// Serves one connection until it ends, or becomes a websocket.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    accepted: Accepted,
    permit: ConnectionPermit,
    tls: Option<Arc<ServerConfig>>,
    peer: Peer,
) {
    let stream = match TimeoutStream::new(accepted, worker.config.timeouts.write, permit) {
        Ok(stream) => stream,
        Err(error) => return warn!(%peer, %error, "cannot serve a connection"),
    };
    let activity = ConnectionActivity::new(Arc::clone(stream.socket()));
    let connection = match tls {
        None => Either::Left(stream),
        // Boxed, like everything that most connections do not need, to save memory.
        Some(settings) => match Box::pin(encrypt(&worker, settings, stream, &activity)).await {
            Ok(connection) => connection,
            Err(error) => return debug!(%peer, %error, "no TLS"),
        },
    };
    if connection::protocol(&connection) == Some(HTTP_2) {
        Box::pin(http2::serve(&worker, connection, &activity, peer)).await;
    } else {
        http1::serve(&worker, connection, &activity, peer).await;
    }
}

async fn encrypt(
    worker: &Worker,
    settings: Arc<ServerConfig>,
    stream: TimeoutStream,
    activity: &ConnectionActivity,
) -> io::Result<Connection> {
    select! {
        encrypted = accept_tls(settings, stream) => Ok(Either::Right(Box::new(encrypted?))),
        deadline = activity.deadline_exceeded(&worker.config.timeouts) => {
            worker.metrics.timeout(deadline);
            Err(io::ErrorKind::TimedOut.into())
        }
        () = worker.tasks.stop.draining() => Err(io::Error::other("the server is stopping")),
    }
}

/// Accepts a TLS handshake. A client that speaks plain HTTP gets a plain HTTP response that says so, because browsers and
/// curl would not explain the failure.
async fn accept_tls(
    settings: Arc<ServerConfig>,
    mut stream: TimeoutStream,
) -> io::Result<TlsStream<TimeoutStream>> {
    const ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
        Content-Type: text/plain; charset=utf-8\r\nContent-Length: 38\r\n\
        Connection: close\r\n\r\n\
        this port speaks TLS: use https://...\n";
    // A TLS handshake starts with the byte 22, an HTTP request with a letter.
    if stream.socket().first_byte().await?.is_some_and(|byte| byte.is_ascii_alphabetic()) {
        stream.write_all(ANSWER).await?;
        stream.shutdown().await?;
        return Err(io::Error::other("the client does not speak TLS"));
    }
    tls::accept(settings, stream).await
}

/// Why a connection is no longer served.
enum End {
    /// hyper finished serving it.
    Over(hyper::Result<()>),
    /// The peer exceeded a deadline.
    Overdue(Deadline),
    /// It became a stream, which ended.
    Stream(io::Result<()>),
    /// It is still open, but hyper has nothing to do.
    Idle,
}

fn note_end(worker: &Worker, peer: Peer, end: End) {
    match end {
        End::Over(Ok(())) | End::Stream(Ok(())) | End::Idle => {}
        End::Over(Err(error)) => {
            // hyper has sent the response.
            if error.is_parse_too_large() {
                worker.metrics.refusal(Code::HeaderTooLarge);
            } else if error.is_parse() {
                worker.metrics.refusal(Code::BadHttp);
            } else if is_timeout(&error) {
                worker.metrics.timeout(Deadline::Write);
            }
            debug!(%peer, %error, "connection ended");
        }
        End::Stream(Err(error)) => {
            if error.kind() == io::ErrorKind::TimedOut {
                worker.metrics.timeout(Deadline::Write);
            }
            debug!(%peer, %error, "stream ended");
        }
        End::Overdue(deadline) => {
            worker.metrics.timeout(deadline);
            debug!(%peer, ?deadline, "connection closed: nothing came in time");
        }
    }
}

/// Whether the write deadline was exceeded, see [`TimeoutStream`].
fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    let is_one = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
    error.downcast_ref().is_some_and(is_one) || error.source().is_some_and(is_timeout)
}

/// Polls a connection until nothing is left to do. If responses are held back, another poll writes them.
fn poll_through<C: Future>(
    activity: &ConnectionActivity,
    mut connection: Pin<&mut C>,
    cx: &mut Context<'_>,
) -> Poll<C::Output> {
    loop {
        date::update();
        let polled = connection.as_mut().poll(cx);
        if polled.is_ready() || !activity.holds_responses() {
            return polled;
        }
    }
}

/// Drives a connection until it ends, exceeds a deadline, or has been idle for `idle`. Calls `stop` when the server
/// drains.
async fn attend<C: Future<Output = hyper::Result<()>>>(
    worker: &Worker,
    activity: &ConnectionActivity,
    mut connection: Pin<&mut C>,
    stop: impl Fn(Pin<&mut C>),
    idle: Option<Duration>,
) -> End {
    let mut overdue = pin!(activity.deadline_exceeded_or_idle(&worker.config.timeouts, idle));
    let mut is_draining = false;
    loop {
        select! {
            biased;
            ended = poll_fn(|cx| poll_through(activity, connection.as_mut(), cx)) => {
                return End::Over(ended);
            }
            overdue = &mut overdue => return overdue.map_or(End::Idle, End::Overdue),
            () = worker.tasks.stop.draining(), if !is_draining => {
                is_draining = true;
                stop(connection.as_mut());
            }
        }
    }
}
