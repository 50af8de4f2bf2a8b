//! Reading a payload: never more of it than is allowed, never longer than the peer sends.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::{
    Request,
    body::{Body as _, Frame, Incoming},
};
use tokio::time::timeout;

use super::{error::ApiError, head::shed_head};
use crate::{
    limits::inflight::Inflight, limits::quota::QuotaPermit, net::timeout_stream::SECOND_LOOK,
};

/// The bounds of a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimit {
    /// In bytes, inclusive.
    pub(super) size: usize,
    /// How long the next bytes may take.
    pub(super) patience: Duration,
    /// Up to what it is not counted as in flight, in bytes.
    pub(super) small: usize,
}

/// What has come of a body together with its head.
#[derive(Debug)]
pub(super) enum Begun {
    /// All of it, and it is small.
    Whole(Bytes),
    /// Its first piece, which may be empty.
    Part(Bytes),
}

/// Looks at what has come of a body, without waiting for more.
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

/// A slice of the connection's read buffer would keep all of that alive for as long as the message lives.
fn copy(slice: &Bytes) -> Bytes {
    Bytes::copy_from_slice(slice)
}

/// Reads the rest of a body, and gives all of it in a buffer of its exact size.
///
/// The head of a request whose body keeps it waiting is given up, see [`shed_head`].
///
/// Beside it there is what it counts as in flight, to be dropped when the bus has it.
pub(super) async fn read(
    request: &mut Request<Incoming>,
    begun: Bytes,
    limit: BodyLimit,
    inflight: &Inflight,
) -> Result<(Bytes, Option<QuotaPermit>), ApiError> {
    let mut piece = begun;
    let mut first: Option<Bytes> = None;
    let mut rest: Vec<u8> = Vec::new();
    let mut hold = None;
    // What is announced is not yet there: room is taken as it comes.
    let most = request.body().size_hint().exact().and_then(|size| usize::try_from(size).ok());
    let most = most.map_or(limit.size, |size| size.saturating_add(piece.len()));
    loop {
        let read = first.as_ref().map_or(rest.len(), Bytes::len);
        if piece.len() > limit.size - read {
            return Err(ApiError::PayloadTooLarge { limit: limit.size });
        }
        // Most payloads come in one piece.
        if read == 0 {
            if !inflight.make_room(&mut hold, piece.len(), limit.small) {
                return Err(ApiError::NoRoomForPayload);
            }
            first = Some(piece);
        } else if !piece.is_empty() {
            let size = read + piece.len();
            if size > rest.capacity() {
                let capacity = (2 * rest.capacity()).min(most).max(size);
                if !inflight.make_room(&mut hold, capacity, limit.small) {
                    return Err(ApiError::NoRoomForPayload);
                }
                rest.reserve_exact(capacity - rest.len());
            }
            if let Some(first) = first.take() {
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&piece);
        }
        if request.body().is_end_stream() {
            break;
        }
        piece = match next_frame(request, limit.patience).await? {
            Some(frame) => frame.map_err(|_| ApiError::Body)?.into_data().unwrap_or_default(),
            None => break,
        };
    }
    let payload = match first {
        Some(only) => copy(&only),
        None => rest.into_boxed_slice().into(),
    };
    Ok((payload, hold))
}

type NextFrame = Option<Result<Frame<Bytes>, hyper::Error>>;

/// Waits for the next piece. Most bodies have come with their head, and hyper hands them out when it
/// is asked a second time: only then it is worth to set a timer.
async fn next_frame(
    request: &mut Request<Incoming>,
    patience: Duration,
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
            // Boxed, so that requests that need no timer are not larger for it.
            Box::pin(async {
                let body = request.body_mut();
                match timeout(patience, body.frame()).await {
                    Err(_) => timeout(SECOND_LOOK, body.frame()).await,
                    in_time => in_time,
                }
            })
            .await
            .map_err(|_| ApiError::BodyTimeout(patience))
        }
    }
}
