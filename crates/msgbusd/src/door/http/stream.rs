//! `GET` of a topic or a pattern as a stream: server-sent events, JSON lines or raw lines. docs/protocol.md,
//! sections 6.10 to 6.14.
//!
//! The response body is the subscription. The connection polls for more when the last piece is written, so a slow
//! reader holds only its position in the topic.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Either;
use hyper::{
    Request, Response,
    body::{Body, Frame},
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use msgbus_core::{Position, RecvError};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    activity::ConnectionActivity, error::ApiError, negotiate::accepts, negotiate::items, position,
    query::Query, response, response::HttpResponse,
};
use crate::{
    auth::Target,
    encode::format::FrameFormat,
    service::{
        Call,
        follower::{End, FollowOptions, Follower, Item},
    },
    worker::Worker,
};

/// The maximum time without bytes in a format that has a keep-alive, if `--ping-interval` is not shorter.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A comment without an empty line after it, because some parsers treat every empty line as an event.
const SSE_KEEP_ALIVE: &[u8] = b":\n";
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The format that the request asks for; `None` if it does not ask for a stream.
pub(super) fn wanted(query: &Query, headers: &HeaderMap) -> Result<Option<FrameFormat>, ApiError> {
    if let Some(format) = query.get("stream")? {
        return match format {
            "sse" => Ok(Some(FrameFormat::Sse)),
            "ndjson" => Ok(Some(FrameFormat::JsonLine)),
            "raw" => Ok(Some(FrameFormat::RawLine)),
            _ => Err(ApiError::parameter("stream", "use sse, ndjson or raw")),
        };
    }
    Ok(if accepts(headers, "text/event-stream") {
        Some(FrameFormat::Sse)
    } else if accepts(headers, "application/x-ndjson") {
        Some(FrameFormat::JsonLine)
    } else {
        None
    })
}

/// Subscribes, and then answers, so that no message is lost in between.
pub(super) async fn stream<B>(
    call: Call<'_>,
    activity: &ConnectionActivity,
    target: &Target,
    request: &Request<B>,
    query: Query,
    format: FrameFormat,
) -> Result<HttpResponse, ApiError> {
    let query = query.only(&["stream", "since", "index", "lag", "ticket"])?;
    let (from, note) = match position::requested(&query, request.headers()) {
        // An error status would not help: a browser would send the same header again. It gets a comment instead.
        Err(ApiError::Header { .. }) if format == FrameFormat::Sse => {
            let note = ": Last-Event-ID is not from this server; ignored\n";
            (position::by_query(&query)?, note)
        }
        position => (position?, ""),
    };
    let options =
        FollowOptions { from: from.unwrap_or_default(), lag: position::lag(&query)?, format };
    let follower = call.follow_target(target, options).await?;

    let content_type = match format {
        FrameFormat::Sse => "text/event-stream",
        FrameFormat::JsonLine => "application/x-ndjson",
        _ => "application/octet-stream",
    };
    let subscription = follower.subscription();
    let (epoch, start) = (subscription.epoch(), subscription.start());
    let mut live = StreamingBody::new(follower, activity, format, note);
    if format == FrameFormat::Sse && is_event_source(request.headers()) {
        live.push_start_position();
    }
    let mut response = Response::new(Either::Right(Box::new(live)));
    *response.version_mut() = request.version();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Tells nginx not to buffer the stream.
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response::set_position_headers(headers, epoch, start);
    Ok(response)
}

fn keep_alive(worker: &Worker) -> Duration {
    KEEP_ALIVE.min(worker.config.timeouts.ping)
}

/// Whether the client is an `EventSource`. It fetches with the cache mode `no-store`, for which the Fetch standard adds
/// this header. Other SSE clients would treat the block with the start position as an empty event, and do not need it.
fn is_event_source(headers: &HeaderMap) -> bool {
    items(headers, &header::CACHE_CONTROL).any(|item| item.eq_ignore_ascii_case("no-cache"))
}

/// A body that ends with the subscription, the client or the server.
#[derive(Debug)]
pub(crate) struct StreamingBody {
    follower: Follower,
    activity: ConnectionActivity,
    format: FrameFormat,
    /// The pieces that are ready to be written.
    pieces: VecDeque<Bytes>,
    keep_alive: Pin<Box<Sleep>>,
    over: bool,
}

impl StreamingBody {
    fn new(
        follower: Follower,
        activity: &ConnectionActivity,
        format: FrameFormat,
        note: &'static str,
    ) -> Self {
        let worker = follower.worker();
        let mut live = Self {
            keep_alive: Box::pin(sleep(keep_alive(worker))),
            activity: activity.clone(),
            format,
            pieces: VecDeque::new(),
            over: false,
            follower,
        };
        if !note.is_empty() {
            live.pieces.push_back(Bytes::from_static(note.as_bytes()));
        }
        let subscription = live.follower.subscription();
        if subscription.start().restarted {
            let epoch = subscription.epoch();
            live.push_event("restart", &format!("\"epoch\":\"{epoch}\""));
        }
        live
    }

    /// Sends the start position to a browser. If the connection breaks before the first message, the browser resumes
    /// there, and not at the then current end of the topic. An id without data is not an event.
    fn push_start_position(&mut self) {
        let position = self.follower.position();
        self.pieces.push_back(format!("id: {position}\n\n").into());
    }

    /// Queues an event that is not a message, if the format has such events.
    fn push_event(&mut self, event: &str, fields: &str) {
        self.pieces.extend(event_text(self.format, event, fields, None));
    }

    fn end(&mut self, end: &End) {
        match end {
            End::Revoked => self.push_event("revoked", ""),
            End::Over(RecvError::Deleted) => self.push_event("deleted", ""),
            End::Over(RecvError::Lagged { missed }) => {
                self.push_event("lagged", &format!("\"missed\":{missed}"));
            }
            End::Over(_) => {}
        }
        self.over = true;
    }

    /// The pieces that wait to be written, in order.
    pub(crate) fn pieces(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.pieces
    }

    /// Whether no more pieces will come.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Ready when the keys no longer allow the stream.
    pub(crate) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.follower.poll_revoked(cx)
    }

    /// Waits for more pieces, or for the end.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.follower.worker().tasks.stop.is_draining() {
            self.over = true;
            return Poll::Ready(());
        }
        let Self { follower, pieces, format, .. } = self;
        let (format, epoch) = (*format, follower.subscription().epoch());
        let received = follower.poll_batch(cx, |item, next_id| match item {
            Item::Frame(frame) => {
                pieces.extend(frame.into_pieces().into_iter().filter(|piece| !piece.is_empty()));
            }
            Item::Missed(count) => {
                // With this position, a client that resumes does not get the gap again.
                let position = Position::before(epoch, next_id);
                let fields = format!("\"missed\":{count}");
                pieces.extend(event_text(format, "gap", &fields, Some(position)));
            }
            Item::Feed(feed) => pieces.extend(event_text(format, feed.word(), "", None)),
        });
        if let Poll::Ready(received) = received {
            if let Err(end) = received {
                self.end(&end);
            }
            self.reset_keep_alive();
            return Poll::Ready(());
        }
        // The client has everything. Check that it is still connected before taking more messages for it.
        if self.activity.poll_peer_left(cx).is_ready() {
            self.over = true;
            return Poll::Ready(());
        }
        ready!(self.keep_alive.as_mut().poll(cx));
        self.reset_keep_alive();
        // The timer was reset, and has to be polled to register the waker.
        let _ = self.keep_alive.as_mut().poll(cx);
        if matches!(self.format, FrameFormat::Sse | FrameFormat::JsonLine)
            && let Some(feed) = self.follower.feed()
        {
            self.push_event(feed.word(), "");
            return Poll::Ready(());
        }
        match self.format {
            FrameFormat::Sse => self.pieces.push_back(Bytes::from_static(SSE_KEEP_ALIVE)),
            FrameFormat::JsonLine => self.pieces.push_back(Bytes::from_static(b"\n")),
            _ => return Poll::Pending,
        }
        Poll::Ready(())
    }

    fn reset_keep_alive(&mut self) {
        let deadline = Instant::now() + keep_alive(self.follower.worker());
        self.keep_alive.as_mut().reset(deadline);
    }
}

/// An event that is not a message; `None` if the format has none. In SSE it also carries the position after it.
fn event_text(
    format: FrameFormat,
    event: &str,
    fields: &str,
    after: Option<Position>,
) -> Option<Bytes> {
    let text = match (format, after) {
        (FrameFormat::Sse, None) => format!("event: {event}\ndata: {{{fields}}}\n\n"),
        (FrameFormat::Sse, Some(after)) => {
            format!("event: {event}\ndata: {{{fields}}}\nid: {after}\n\n")
        }
        (FrameFormat::JsonLine, _) if fields.is_empty() => format!("{{\"event\":\"{event}\"}}\n"),
        (FrameFormat::JsonLine, _) => format!("{{\"event\":\"{event}\",{fields}}}\n"),
        _ => return None,
    };
    Some(text.into())
}

impl Body for StreamingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.over {
                return Poll::Ready(None);
            }
            ready!(self.poll_more(cx));
        }
    }
}

impl Drop for StreamingBody {
    fn drop(&mut self) {
        self.follower.log_end(&"stream");
    }
}
