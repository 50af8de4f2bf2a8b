//! Reads request bodies within a size limit and a timeout.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::{
    Request,
    body::{Body as _, Frame, Incoming},
};
use tokio::time::timeout;

use super::{activity::DEADLINE_GRACE, error::ApiError, head::shed_head};
use crate::{
    limits::{inflight::Inflight, quota::QuotaPermit},
    state::App,
};

/// The limits of a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimit {
    /// The maximum size, in bytes.
    pub(super) size: usize,
    /// The maximum time until the next bytes arrive.
    pub(super) read_timeout: Duration,
    /// The size up to which a body does not count as in flight, in bytes.
    pub(super) small: usize,
}

/// The part of a body that arrived together with its head.
#[derive(Debug)]
pub(super) enum Begun {
    /// The whole body, which is small.
    Whole(Bytes),
    /// The first piece, which may be empty.
    Part(Bytes),
}

/// Reads what has arrived of a body, without waiting for more.
pub(super) fn begin(request: &mut Request<Incoming>, limit: BodyLimit) -> Result<Begun, ApiError> {
    let size = request.body().size_hint();
    if size.lower() > limit.size as u64 {
        return Err(ApiError::PayloadTooLarge { limit: limit.size });
    }
    let first = match request.body_mut().frame().now_or_never() {
        None => return Ok(Begun::Part(Bytes::new())),
        Some(None) => Bytes::new(),
        Some(Some(frame)) => frame.map_err(|_| ApiError::Body)?.into_data().unwrap_or_default(),
    };
    let is_whole = request.body().is_end_stream() && first.len() <= limit.small.min(limit.size);
    // A slice would keep the whole read buffer of the connection alive for as long as the message lives.
    Ok(if is_whole { Begun::Whole(Bytes::copy_from_slice(&first)) } else { Begun::Part(first) })
}

/// Receives a body of up to `size` bytes, with the permit that counts it as in flight.
pub(super) async fn receive(
    app: &App,
    request: &mut Request<Incoming>,
    size: usize,
) -> Result<(Bytes, Option<QuotaPermit>), ApiError> {
    let (read_timeout, small) = (app.config.timeouts.body, Inflight::small(request.version()));
    let limit = BodyLimit { size, read_timeout, small };
    match begin(request, limit)? {
        Begun::Whole(body) => Ok((body, None)),
        // Boxed, so that requests whose body has arrived need less memory.
        Begun::Part(first) => Box::pin(read(request, first, limit, &app.inflight)).await,
    }
}

/// Reads the rest of a body, and returns the whole body in a buffer of its exact size, together with the permit that
/// counts it as in flight. Drop the permit when the bus has the payload.
///
/// If the body is slow, the request's head is freed, see [`shed_head`].
pub(super) async fn read(
    request: &mut Request<Incoming>,
    begun: Bytes,
    limit: BodyLimit,
    inflight: &Inflight,
) -> Result<(Bytes, Option<QuotaPermit>), ApiError> {
    let announced = request.body().size_hint().exact().and_then(|size| usize::try_from(size).ok());
    let mut payload = PartialPayload {
        limit,
        whole: announced.map(|rest| rest.saturating_add(begun.len())),
        bytes: Vec::new(),
        permit: None,
    };
    payload.push(&begun, inflight)?;
    // So that hyper can use its read buffer again.
    drop(begun);
    while !request.body().is_end_stream() {
        let Some(frame) = next_frame(request, limit.read_timeout).await? else { break };
        let piece = frame.map_err(|_| ApiError::Body)?.into_data().unwrap_or_default();
        payload.push(&piece, inflight)?;
    }
    Ok(payload.finish())
}

/// A payload of which not all pieces have arrived. Its memory is at most four times what has arrived, or 256 KiB, however
/// large the announced length is.
struct PartialPayload {
    limit: BodyLimit,
    /// The announced length, in bytes.
    whole: Option<usize>,
    /// What has arrived.
    bytes: Vec<u8>,
    /// Counts the memory as in flight.
    permit: Option<QuotaPermit>,
}

impl PartialPayload {
    /// Up to this announced length, in bytes, all memory is reserved at once, so that nothing is copied twice.
    const AT_ONCE: usize = 256 << 10;

    /// The memory to reserve when `size` bytes have arrived.
    fn capacity_for(&self, size: usize) -> usize {
        match self.whole {
            Some(whole) => whole.min(Self::AT_ONCE.max(4 * size)).max(size),
            // The first piece is often the only one.
            None => (2 * self.bytes.capacity()).min(self.limit.size).max(size),
        }
    }

    fn push(&mut self, piece: &[u8], inflight: &Inflight) -> Result<(), ApiError> {
        let BodyLimit { size: limit, small, .. } = self.limit;
        if piece.len() > limit - self.bytes.len() {
            return Err(ApiError::PayloadTooLarge { limit });
        }
        let size = self.bytes.len() + piece.len();
        if size > self.bytes.capacity() {
            let capacity = self.capacity_for(size);
            if !inflight.reserve(&mut self.permit, capacity, small) {
                return Err(ApiError::InflightLimit);
            }
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn finish(self) -> (Bytes, Option<QuotaPermit>) {
        (self.bytes.into_boxed_slice().into(), self.permit)
    }
}

type NextFrame = Option<Result<Frame<Bytes>, hyper::Error>>;

/// The next piece, if it has arrived. Most bodies have arrived with their head, and hyper returns them at the second poll.
async fn at_hand(body: &mut Incoming) -> Option<NextFrame> {
    let mut is_second_look = false;
    poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(Some(frame)),
        Poll::Pending if is_second_look => Poll::Ready(None),
        Poll::Pending => {
            is_second_look = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

/// Reads what has arrived of a body that was refused, unless it is long. Returns whether that is the rest of it.
pub(super) async fn discard(body: &mut Incoming) -> bool {
    /// A client that sends without end, a byte in each chunk, costs no more.
    const MAX_PIECES: usize = 64;
    for _ in 0..MAX_PIECES {
        if body.is_end_stream() {
            return true;
        }
        match at_hand(body).await {
            Some(Some(Ok(_))) => {}
            Some(None) => return true,
            Some(Some(Err(_))) | None => return false,
        }
    }
    false
}

/// Waits for the next piece. A timer is set only if it has not arrived.
async fn next_frame(
    request: &mut Request<Incoming>,
    read_timeout: Duration,
) -> Result<NextFrame, ApiError> {
    match at_hand(request.body_mut()).await {
        Some(frame) => Ok(frame),
        None => {
            shed_head(request);
            // Boxed, so that requests without a timer need less memory.
            Box::pin(async {
                let body = request.body_mut();
                match timeout(read_timeout, body.frame()).await {
                    Err(_) => timeout(DEADLINE_GRACE, body.frame()).await,
                    in_time => in_time,
                }
            })
            .await
            .map_err(|_| ApiError::BodyTimeout(read_timeout))
        }
    }
}
