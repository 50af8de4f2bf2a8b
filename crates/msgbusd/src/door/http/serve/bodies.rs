//! Answers on their way to a connection of HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Either};
use hyper::body::{Body, Frame, SizeHint};

use crate::{
    door::http::response::AnswerBody,
    limits::quota::QuotaPermit,
    net::timeout_stream::{ConnectionActivity, RequestGuard, UnsentChunk},
    state::App,
};

/// What of an answer is given to a connection of HTTP/2 at a time, in bytes.
pub(super) const MOST_OFFERED: usize = 16 << 10;

/// A body for HTTP/2, which ends its exchange when it ends. It is given out in parts, and watched until the peer
/// has taken the last of them: a whole one could lie in the connection's buffers for ever.
pub(super) struct PacedBody {
    body: AnswerBody,
    /// What the body has given, and this has not.
    rest: Bytes,
    activity: ConnectionActivity,
    /// While the next part waits until the peer has room for it.
    untaken: Option<UnsentChunk>,
    _exchange: RequestGuard,
    _counted: Option<QuotaPermit>,
}

impl PacedBody {
    pub(super) fn new(
        app: &App,
        activity: ConnectionActivity,
        exchange: RequestGuard,
        counted: Option<QuotaPermit>,
        mut body: AnswerBody,
    ) -> Self {
        let mut rest = Bytes::new();
        if let Either::Left(whole) = &mut body {
            let data = whole.frame().now_or_never().flatten();
            let data = data.and_then(|frame| frame.ok()?.into_data().ok());
            rest = app.inflight.track_one_of_many(data.unwrap_or_default());
        }
        let untaken = (!rest.is_empty()).then(|| activity.offer());
        Self { body, rest, activity, untaken, _exchange: exchange, _counted: counted }
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = <AnswerBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        this.untaken = None;
        while this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
                end => return Poll::Ready(end),
            }
        }
        let bytes = this.rest.split_to(this.rest.len().min(MOST_OFFERED));
        let part = Part { bytes, _untaken: this.activity.offer() };
        if !this.is_end_stream() {
            this.untaken = Some(this.activity.offer());
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(part)))))
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

struct Part {
    bytes: Bytes,
    _untaken: UnsentChunk,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
