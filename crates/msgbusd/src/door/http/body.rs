//! Reads request bodies within a size limit and a timeout.

use std::{future::poll_fn, mem, pin::Pin, task::Poll, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::{
    Request,
    body::{Body as _, Frame, Incoming},
};
use tokio::time::timeout;

use super::{activity::DEADLINE_GRACE, error::ApiError, head::shed_head};
use crate::{limits::inflight::Inflight, limits::quota::QuotaPermit};

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
    Ok(if is_whole { Begun::Whole(copy(&first)) } else { Begun::Part(first) })
}

/// Copies a payload. A slice would keep the whole read buffer of the connection alive for as long as the message lives.
fn copy(slice: &Bytes) -> Bytes {
    Bytes::copy_from_slice(slice)
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
        max: announced.map_or(limit.size, |size| size.saturating_add(begun.len())),
        first: Bytes::new(),
        rest: Vec::new(),
        permit: None,
    };
    payload.push(begun, inflight)?;
    while !request.body().is_end_stream() {
        let Some(frame) = next_frame(request, limit.read_timeout).await? else { break };
        let piece = frame.map_err(|_| ApiError::Body)?.into_data().unwrap_or_default();
        payload.push(piece, inflight)?;
    }
    Ok(payload.finish())
}

/// A payload of which not all pieces have arrived. Memory is reserved for bytes that have arrived, not for an announced
/// length.
struct PartialPayload {
    limit: BodyLimit,
    /// The maximum size that the payload can still reach, in bytes.
    max: usize,
    /// The only piece so far. Most payloads arrive in one.
    first: Bytes,
    /// All pieces, if there are several.
    rest: Vec<u8>,
    /// Counts the reserved memory as in flight.
    permit: Option<QuotaPermit>,
}

impl PartialPayload {
    fn push(&mut self, piece: Bytes, inflight: &Inflight) -> Result<(), ApiError> {
        let read = self.first.len() + self.rest.len();
        let BodyLimit { size: limit, small, .. } = self.limit;
        if piece.len() > limit - read {
            return Err(ApiError::PayloadTooLarge { limit });
        }
        if piece.is_empty() {
            return Ok(());
        }
        if read == 0 {
            if !inflight.reserve(&mut self.permit, piece.len(), small) {
                return Err(ApiError::InflightLimit);
            }
            self.first = piece;
            return Ok(());
        }
        let size = read + piece.len();
        if size > self.rest.capacity() {
            let capacity = (2 * self.rest.capacity()).min(self.max).max(size);
            if !inflight.reserve(&mut self.permit, capacity, small) {
                return Err(ApiError::InflightLimit);
            }
            self.rest.reserve_exact(capacity - self.rest.len());
        }
        self.rest.extend_from_slice(&mem::take(&mut self.first));
        self.rest.extend_from_slice(&piece);
        Ok(())
    }

    fn finish(self) -> (Bytes, Option<QuotaPermit>) {
        let Self { first, rest, permit, .. } = self;
        let payload = if rest.is_empty() { copy(&first) } else { rest.into_boxed_slice().into() };
        (payload, permit)
    }
}

type NextFrame = Option<Result<Frame<Bytes>, hyper::Error>>;

/// Waits for the next piece. Most bodies have arrived with their head, and hyper returns them at the second poll. A
/// timer is set only after that.
async fn next_frame(
    request: &mut Request<Incoming>,
    read_timeout: Duration,
) -> Result<NextFrame, ApiError> {
    let mut is_second_look = false;
    let at_hand = poll_fn(|cx| match Pin::new(request.body_mut()).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(Some(frame)),
        Poll::Pending if is_second_look => Poll::Ready(None),
        Poll::Pending => {
            is_second_look = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    });
    match at_hand.await {
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
