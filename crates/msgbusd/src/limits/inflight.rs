//! The memory of what is on its way: bodies that are being received, answers and frames until their last
//! byte is written, and requests of HTTP/2. Messages at rest are the bus's own to count.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Version;

use crate::limits::quota::{Quota, QuotaPermit};

/// Bytes in flight over all connections.
#[derive(Debug)]
pub(crate) struct Inflight(Arc<Quota>);

impl Inflight {
    /// Frames to subscribers up to this size, in bytes, are not counted; they are bounded by
    /// `--max-subscriptions`.
    pub(crate) const SMALL_FRAME: usize = 64 << 10;
    /// Bodies and answers of HTTP/1.1 up to this size, in bytes, are not counted; they are bounded by
    /// `--max-connections`.
    const SMALL: usize = 8 << 10;
    /// The same in HTTP/2: [`REQUEST_OF_MANY`](Self::REQUEST_OF_MANY) counts them.
    const SMALL_OF_MANY: usize = 2 << 10;
    /// What a request of HTTP/2 takes while it is under way, in bytes: its task, what is left of its head
    /// while it waits, a small body and a small answer.
    pub(crate) const REQUEST_OF_MANY: usize = 8 << 10;
    /// How far beyond the bound `/metrics` and `/healthz` are answered in HTTP/2, in bytes.
    const RESERVE: usize = 1 << 20;

    /// What is small for a request of this protocol, in bytes.
    pub(crate) fn small(version: Version) -> usize {
        if version == Version::HTTP_2 { Self::SMALL_OF_MANY } else { Self::SMALL }
    }

    /// For so many bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Quota::new(limit))
    }

    pub(crate) fn bound(&self) -> &Quota {
        &self.0
    }

    /// Whether nothing large is to be begun. Asked before something is taken out of a topic: what is
    /// made of it then may pass the limit, by one for each thread.
    pub(crate) fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// Room for a body that has come to so many bytes; `held` is what it has already.
    pub(crate) fn make_room(
        &self,
        held: &mut Option<QuotaPermit>,
        bytes: usize,
        small: usize,
    ) -> bool {
        if bytes <= small {
            return true;
        }
        match held {
            Some(hold) => hold.grow(bytes.saturating_sub(hold.amount())),
            None => {
                *held = self.0.take(bytes);
                held.is_some()
            }
        }
    }

    /// Counts a request of HTTP/2 with so many bytes that nobody will read soon; `None` where there is no
    /// memory for it.
    pub(crate) fn request_of_many(
        &self,
        unread: usize,
        may_use_reserve: bool,
    ) -> Option<QuotaPermit> {
        let amount = Self::REQUEST_OF_MANY + unread;
        let taken = self.0.take(amount);
        let has_reserve = self.0.used() < self.0.limit().saturating_add(Self::RESERVE);
        if taken.is_none() && may_use_reserve && has_reserve {
            return Some(self.0.take_anyway(amount));
        }
        taken
    }

    /// Counts an answer for as long as somebody has it.
    pub(crate) fn track_answer(&self, answer: Bytes) -> Bytes {
        if answer.len() <= Self::SMALL { answer } else { self.hold(answer) }
    }

    /// Counts an answer in HTTP/2, which `track_answer` has counted if it is large.
    pub(crate) fn track_one_of_many(&self, answer: Bytes) -> Bytes {
        let is_uncounted = (Self::SMALL_OF_MANY + 1..=Self::SMALL).contains(&answer.len());
        if is_uncounted { self.hold(answer) } else { answer }
    }

    /// Counts a frame that several may share, once, for as long as the hold lives; `None` where it is small.
    pub(crate) fn hold_shared(&self, bytes: usize) -> Option<QuotaPermit> {
        (bytes > Self::SMALL_FRAME).then(|| self.0.take_anyway(bytes))
    }

    fn hold(&self, bytes: Bytes) -> Bytes {
        let hold = self.0.take_anyway(bytes.len());
        Bytes::from_owner(Tracked { bytes, _hold: hold })
    }
}

struct Tracked {
    bytes: Bytes,
    _hold: QuotaPermit,
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
    fn what_is_large_counts_until_its_last_holder_is_gone() {
        const LARGE: usize = Inflight::SMALL + 1;
        let inflight = Inflight::new(LARGE);
        let small = inflight.track_answer(vec![0; Inflight::SMALL].into());
        assert_eq!(inflight.bound().used(), 0);
        let mut large = inflight.track_answer(vec![0; LARGE].into());
        let rest = large.split_off(1);
        drop((small, large));
        assert!(inflight.is_full());
        drop(rest);
        assert_eq!(inflight.bound().used(), 0);
    }

    #[test]
    fn a_body_has_room_as_it_grows() {
        let inflight = Inflight::new(200 << 10);
        let mut held = None;
        assert!(inflight.make_room(&mut held, Inflight::SMALL, Inflight::SMALL) && held.is_none());
        assert!(inflight.make_room(&mut held, 128 << 10, Inflight::SMALL));
        assert!(!inflight.make_room(&mut held, 256 << 10, Inflight::SMALL));
        assert_eq!(inflight.bound().used(), 128 << 10);
        drop(held);
        assert_eq!(inflight.bound().used(), 0);
    }

    #[test]
    fn requests_of_http_2_fit_into_the_bound_and_a_few_more_may_look_after_it() {
        let inflight = Inflight::new(2 * Inflight::REQUEST_OF_MANY + 1);
        let _both = [(); 2].map(|()| inflight.request_of_many(0, false).unwrap());
        assert!(inflight.request_of_many(0, false).is_none());
        let of_the_reserve = Inflight::RESERVE / Inflight::REQUEST_OF_MANY;
        let looking: Vec<_> =
            (0..=of_the_reserve).map_while(|_| inflight.request_of_many(0, true)).collect();
        assert_eq!(looking.len(), of_the_reserve + 1);
        assert!(inflight.request_of_many(0, true).is_none());
    }
}
