//! Response bodies of HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Either};
use hyper::body::{Body, Frame, SizeHint};

use crate::{
    door::http::{
        activity::{ConnectionActivity, RequestGuard, UnsentChunk},
        response::ResponseBody,
    },
    limits::quota::QuotaPermit,
    state::App,
};

/// The maximum size of a chunk that is passed to the HTTP/2 connection, in bytes.
pub(super) const MAX_CHUNK: usize = 16 << 10;

/// A response body for HTTP/2. Its request ends when the body is dropped. It is passed on in chunks, which are tracked
/// until they are sent: a whole body could stay in the connection's buffers for ever.
pub(super) struct PacedBody {
    body: ResponseBody,
    /// Bytes received from the inner body and not yet passed on.
    rest: Bytes,
    activity: ConnectionActivity,
    /// Set while the next chunk waits for flow control.
    unsent: Option<UnsentChunk>,
    _guard: RequestGuard,
    _counted: Option<QuotaPermit>,
}

impl PacedBody {
    pub(super) fn new(
        app: &App,
        activity: ConnectionActivity,
        guard: RequestGuard,
        counted: Option<QuotaPermit>,
        mut body: ResponseBody,
    ) -> Self {
        let mut rest = Bytes::new();
        if let Either::Left(whole) = &mut body {
            let data = whole.frame().now_or_never().flatten();
            let data = data.and_then(|frame| frame.ok()?.into_data().ok());
            rest = app.inflight.track_http2_response(data.unwrap_or_default());
        }
        let unsent = (!rest.is_empty()).then(|| activity.track_chunk());
        Self { body, rest, activity, unsent, _guard: guard, _counted: counted }
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = <ResponseBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        this.unsent = None;
        while this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
                end => return Poll::Ready(end),
            }
        }
        let bytes = this.rest.split_to(this.rest.len().min(MAX_CHUNK));
        let chunk = Chunk { bytes, _unsent: this.activity.track_chunk() };
        if !this.is_end_stream() {
            this.unsent = Some(this.activity.track_chunk());
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(chunk)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Either::Left(_) => SizeHint::with_exact(self.rest.len() as u64),
            Either::Right(live) => live.size_hint(),
        }
    }
}

struct Chunk {
    bytes: Bytes,
    _unsent: UnsentChunk,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
