//! Serves one HTTP/1.1 connection.

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
    sync::{Arc, OnceLock},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Request, Response,
    body::{Body as _, Incoming},
    header::{self, HeaderValue},
    server::conn::http1::{Builder, Parts, UpgradeableConnection},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt as _, select};

use super::{End, attend, date, note_end, streaming};
use crate::{
    door::http::{
        activity::ConnectionActivity, body, router, stream::StreamingBody, transport::Transport,
    },
    net::connection::Connection,
    net::peer::Peer,
    worker::Worker,
};

/// The maximum size of hyper's read buffer, in bytes, unless heads may be larger.
const MAX_BUFFER: usize = 64 << 10;
/// The idle time after which a connection frees hyper's buffers, which are 16 KiB. It is noticed at the next check of the
/// deadlines, which is up to 10 s after the last response.
const KEEP_BUFFERS: Duration = Duration::from_secs(1);

/// What happens with a connection that hyper no longer serves.
enum Next {
    /// It waits for the next request, whose first bytes may have arrived.
    Request(Transport),
    /// It becomes a stream.
    Stream(Transport, Response<Box<StreamingBody>>),
}

/// Serves until the connection ends or becomes a websocket. An idle connection holds no state of hyper.
pub(super) async fn serve(
    worker: &Arc<Worker>,
    connection: Connection,
    activity: &ConnectionActivity,
    peer: Peer,
) {
    activity.hold_responses();
    let mut io = Transport::new(connection, activity.clone());
    let end = loop {
        io = match serve_until_idle(worker, io, activity, peer).await {
            Ok(Next::Request(io)) => io,
            // Boxed, so that other connections need less memory.
            Ok(Next::Stream(io, response)) => {
                break End::Stream(match Box::pin(io.into_connection()).await {
                    Ok(connection) => Box::pin(streaming::serve(connection, response)).await,
                    Err(error) => Err(error),
                });
            }
            Err(end) => break end,
        };
        if io.has_unread() {
            // A part of the next head arrived together with the last request.
            activity.expect_rest_of_head();
        } else if let Some(end) = wait_for_more(worker, activity, &mut io).await {
            break end;
        }
    };
    note_end(worker, peer, end);
}

/// Answers requests until the connection is idle or becomes a stream. Otherwise returns how it ended.
async fn serve_until_idle(
    worker: &Arc<Worker>,
    io: Transport,
    activity: &ConnectionActivity,
    peer: Peer,
) -> Result<Next, End> {
    let stream = OnceLock::new();
    let (mut io, unread) = serve_by_hyper(worker, io, activity, peer, &stream).await?;
    if let Some(response) = stream.into_inner() {
        return Ok(Next::Stream(io, response));
    }
    let is_a_head = !unread.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
    if is_a_head {
        io.unread(unread);
    }
    Ok(Next::Request(io))
}

/// Like [`serve_until_idle`], but returns the connection with the bytes that hyper has read and not used. A response
/// that is a stream is left in `stream`.
async fn serve_by_hyper(
    worker: &Arc<Worker>,
    io: Transport,
    activity: &ConnectionActivity,
    peer: Peer,
    stream: &OnceLock<Response<Box<StreamingBody>>>,
) -> Result<(Transport, Bytes), End> {
    let service = service_fn(|request| respond(worker, activity, peer, stream, request));
    // Boxed, so that its memory is freed while the connection is idle.
    let mut connection = Box::new(
        Builder::new()
            // `ConnectionActivity` has its own deadlines, which distinguish an idle connection from a slow head.
            .header_read_timeout(None)
            // Complete requests are answered after the client has closed its side. See docs/protocol.md, 1.7.
            .half_close(true)
            .max_header_size(worker.config.max_header)
            .max_buf_size(worker.config.max_header.max(MAX_BUFFER))
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades(),
    );
    let stop = UpgradeableConnection::graceful_shutdown;
    // hyper writes all responses before it waits, unless the peer accepts no more bytes.
    let has_stream = || stream.get().is_some() && !activity.is_writing();
    let end = select! {
        biased;
        end = attend(worker, activity, Pin::new(&mut *connection), stop, Some(KEEP_BUFFERS)) => end,
        // Needs no waker: whatever makes it true has woken the branch above.
        () = poll_fn(|_| if has_stream() { Poll::Ready(()) } else { Poll::Pending }) => End::Idle,
    };
    if !matches!(end, End::Idle) {
        return Err(end);
    }
    match connection.into_parts() {
        Some(Parts { io, read_buf, .. }) => Ok((io.into_inner(), read_buf)),
        None => Err(End::Over(Ok(()))),
    }
}

/// Answers one request. A stream is not answered here: it is left in `stream`, and hyper waits until the connection is
/// taken from it.
///
/// HTTP/2 has its own: a function for both would copy the request more often.
async fn respond(
    worker: &Arc<Worker>,
    activity: &ConnectionActivity,
    peer: Peer,
    stream: &OnceLock<Response<Box<StreamingBody>>>,
    mut request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    activity.begin_only();
    if request.extensions().get::<OnUpgrade>().is_some() {
        // hyper hands over the connection without flushing it, also if the response refuses the upgrade.
        activity.hold_nothing();
    }
    let response = router::handle(worker, peer, activity, &mut request).await;
    let (head, body) = response.into_parts();
    match body {
        Either::Left(whole) => {
            let mut response = Response::from_parts(head, whole);
            let is_read =
                request.body().is_end_stream() || discard(&mut request, &mut response).await;
            // Otherwise the rest of the request is still to come, and is not another one.
            activity.is_between_requests(is_read);
            // hyper takes the whole response now.
            activity.end_only();
            date::correct(&mut response);
            Ok(response)
        }
        Either::Right(live) => {
            let mut response = Response::from_parts(head, live);
            date::stamp(&mut response);
            // It cannot be set already: hyper reads no other request before this one is answered.
            let _ = stream.set(response);
            pending().await
        }
    }
}

/// Discards the body of a request that was answered without it. Unless all of it has arrived, hyper closes the connection
/// after the response, which therefore says so.
async fn discard(request: &mut Request<Incoming>, response: &mut Response<Full<Bytes>>) -> bool {
    // Reading it would ask a client for a body that it still withholds.
    let is_withheld = request.headers().contains_key(header::EXPECT);
    let is_read = !is_withheld && body::discard(request.body_mut()).await;
    if !is_read {
        response
            .headers_mut()
            .entry(header::CONNECTION)
            .or_insert(const { HeaderValue::from_static("close") });
    }
    is_read
}

/// Waits until an idle connection has bytes to read. Returns how it ended, if it did.
async fn wait_for_more(
    worker: &Worker,
    activity: &ConnectionActivity,
    io: &mut Transport,
) -> Option<End> {
    select! {
        () = activity.readable() => None,
        deadline = activity.deadline_exceeded(&worker.config.timeouts) => Some(End::Overdue(deadline)),
        () = worker.tasks.stop.draining() => {
            // If it fails, the connection is closed already.
            let _ = io.shutdown().await;
            Some(End::Over(Ok(())))
        }
    }
}
