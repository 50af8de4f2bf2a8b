//! Memory in flight: request bodies while they are received, responses and frames until their last byte is written,
//! and HTTP/2 requests. The bus counts the messages that it retains.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Version;

use crate::limits::quota::{Quota, QuotaPermit};

/// Counts the bytes in flight of all connections.
#[derive(Debug)]
pub(crate) struct Inflight(Arc<Quota>);

impl Inflight {
    /// Frames to subscribers up to this size, in bytes, are not counted; they are bounded by
    /// `--max-subscriptions`.
    pub(crate) const SMALL_FRAME: usize = 64 << 10;
    /// HTTP/1.1 bodies and responses up to this size, in bytes, are not counted; they are bounded by
    /// `--max-connections`.
    pub(crate) const SMALL: usize = 8 << 10;
    /// HTTP/2 bodies and responses up to this size, in bytes, are not counted separately;
    /// [`HTTP2_REQUEST`](Self::HTTP2_REQUEST) includes them.
    const SMALL_HTTP2: usize = 2 << 10;
    /// What an active HTTP/2 request counts, in bytes: its task, the rest of its head while it waits, a small body and
    /// a small response.
    pub(crate) const HTTP2_REQUEST: usize = 8 << 10;
    /// How far beyond the limit `/metrics` and `/healthz` are served in HTTP/2, in bytes.
    const RESERVE: usize = 1 << 20;

    /// The size up to which bodies and responses of this protocol are not counted, in bytes.
    pub(crate) fn small(version: Version) -> usize {
        if version == Version::HTTP_2 { Self::SMALL_HTTP2 } else { Self::SMALL }
    }

    /// Creates a counter with a limit in bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Quota::new(limit))
    }

    pub(crate) fn quota(&self) -> &Quota {
        &self.0
    }

    /// Whether the limit is reached. It is checked before messages are taken out of a topic; the response or frame made
    /// of them then may exceed the limit, by one for each thread.
    pub(crate) fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// Grows the reservation of a body to `bytes`, and returns whether there is enough memory. `held` is its
    /// reservation so far; bodies of up to `small` bytes need none.
    pub(crate) fn reserve(
        &self,
        held: &mut Option<QuotaPermit>,
        bytes: usize,
        small: usize,
    ) -> bool {
        if bytes <= small {
            return true;
        }
        match held {
            Some(permit) => permit.try_extend(bytes.saturating_sub(permit.amount())),
            None => {
                *held = self.0.try_acquire(bytes);
                held.is_some()
            }
        }
    }

    /// Grows a reservation to `bytes`, also beyond the limit.
    pub(crate) fn overdraw(&self, held: &mut Option<QuotaPermit>, bytes: usize) {
        if held.as_ref().is_none_or(|permit| permit.amount() < bytes) {
            *held = Some(self.0.acquire_overdraft(bytes));
        }
    }

    /// Counts bytes, also beyond the limit, until the permit is dropped.
    pub(crate) fn overdraft(&self, bytes: usize) -> QuotaPermit {
        self.0.acquire_overdraft(bytes)
    }

    /// Counts an HTTP/2 request, with `unread` bytes of body that may stay buffered; `None` if there is not enough
    /// memory.
    pub(crate) fn track_http2_request(
        &self,
        unread: usize,
        may_use_reserve: bool,
    ) -> Option<QuotaPermit> {
        let amount = Self::HTTP2_REQUEST + unread;
        let taken = self.0.try_acquire(amount);
        let has_reserve = self.0.used() < self.0.limit().saturating_add(Self::RESERVE);
        if taken.is_none() && may_use_reserve && has_reserve {
            return Some(self.0.acquire_overdraft(amount));
        }
        taken
    }

    /// Counts a response body until it is dropped.
    pub(crate) fn track_response(&self, body: Bytes) -> Bytes {
        if body.len() <= Self::SMALL { body } else { self.track(body) }
    }

    /// Counts an HTTP/2 response body of a size that [`track_response`](Self::track_response) does not count.
    pub(crate) fn track_http2_response(&self, body: Bytes) -> Bytes {
        let is_uncounted = (Self::SMALL_HTTP2 + 1..=Self::SMALL).contains(&body.len());
        if is_uncounted { self.track(body) } else { body }
    }

    /// Counts a shared frame once, until the permit is dropped; `None` for a small frame.
    pub(crate) fn track_shared(&self, bytes: usize) -> Option<QuotaPermit> {
        (bytes > Self::SMALL_FRAME).then(|| self.0.acquire_overdraft(bytes))
    }

    fn track(&self, bytes: Bytes) -> Bytes {
        let permit = self.0.acquire_overdraft(bytes.len());
        Bytes::from_owner(Tracked { bytes, _permit: permit })
    }
}

struct Tracked {
    bytes: Bytes,
    _permit: QuotaPermit,
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_response_counts_until_its_last_part_is_dropped() {
        const LARGE: usize = Inflight::SMALL + 1;
        let inflight = Inflight::new(LARGE);
        let small = inflight.track_response(vec![0; Inflight::SMALL].into());
        assert_eq!(inflight.quota().used(), 0);
        let mut large = inflight.track_response(vec![0; LARGE].into());
        let rest = large.split_off(1);
        drop((small, large));
        assert!(inflight.is_full());
        drop(rest);
        assert_eq!(inflight.quota().used(), 0);
    }

    #[test]
    fn a_body_reserves_memory_as_it_grows() {
        let inflight = Inflight::new(200 << 10);
        let mut held = None;
        assert!(inflight.reserve(&mut held, Inflight::SMALL, Inflight::SMALL) && held.is_none());
        assert!(inflight.reserve(&mut held, 128 << 10, Inflight::SMALL));
        assert!(!inflight.reserve(&mut held, 256 << 10, Inflight::SMALL));
        assert_eq!(inflight.quota().used(), 128 << 10);
        drop(held);
        assert_eq!(inflight.quota().used(), 0);
    }

    #[test]
    fn http2_requests_are_limited_and_operators_have_a_reserve() {
        let inflight = Inflight::new(2 * Inflight::HTTP2_REQUEST + 1);
        let _both = [(); 2].map(|()| inflight.track_http2_request(0, false).unwrap());
        assert!(inflight.track_http2_request(0, false).is_none());
        let reserved = Inflight::RESERVE / Inflight::HTTP2_REQUEST;
        let operators: Vec<_> =
            (0..=reserved).map_while(|_| inflight.track_http2_request(0, true)).collect();
        assert_eq!(operators.len(), reserved + 1);
        assert!(inflight.track_http2_request(0, true).is_none());
    }
}
