//! The memory of what is on its way: bodies that are being received, and answers and frames until their
//! last byte is written. Messages at rest are the bus's own to count.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Version;

use crate::{
    bound::{Bound, Hold},
    connection::MOST_STREAMS,
};

/// Bytes in flight over all connections.
#[derive(Debug)]
pub(crate) struct Inflight(Arc<Bound>);

impl Inflight {
    /// What is not larger is not counted, in bytes: connections × this bounds it.
    pub(crate) const SMALL: usize = 64 << 10;
    /// The same on a connection of HTTP/2, which has that many requests at a time.
    const SMALL_OF_MANY: usize = Self::SMALL / MOST_STREAMS as usize;

    /// What is small for a request of this protocol, in bytes.
    pub(crate) fn small(version: Version) -> usize {
        if version == Version::HTTP_2 { Self::SMALL_OF_MANY } else { Self::SMALL }
    }

    /// For so many bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Bound::new(limit))
    }

    pub(crate) fn bound(&self) -> &Bound {
        &self.0
    }

    /// Whether nothing large is to be begun. Asked before something is taken out of a topic: what is
    /// made of it then may pass the limit, by one for each thread.
    pub(crate) fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// Room for a body that has come to so many bytes; `held` is what it has already.
    pub(crate) fn make_room(&self, held: &mut Option<Hold>, bytes: usize, small: usize) -> bool {
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

    /// Counts bytes that are to be written for as long as somebody has them.
    pub(crate) fn track(&self, bytes: Bytes) -> Bytes {
        if bytes.len() <= Self::SMALL {
            return bytes;
        }
        self.hold(bytes)
    }

    /// Counts an answer in HTTP/2, which `track` has counted if it is large.
    pub(crate) fn track_one_of_many(&self, bytes: Bytes) -> Bytes {
        if !(Self::SMALL_OF_MANY + 1..=Self::SMALL).contains(&bytes.len()) {
            return bytes;
        }
        self.hold(bytes)
    }

    /// Counts a frame that several may share, once, for as long as the hold lives; `None` where it is small.
    pub(crate) fn hold_shared(&self, bytes: usize) -> Option<Hold> {
        (bytes > Self::SMALL).then(|| self.0.take_anyway(bytes))
    }

    fn hold(&self, bytes: Bytes) -> Bytes {
        let hold = self.0.take_anyway(bytes.len());
        Bytes::from_owner(Tracked { bytes, _hold: hold })
    }
}

struct Tracked {
    bytes: Bytes,
    _hold: Hold,
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
        let small = inflight.track(vec![0; Inflight::SMALL].into());
        assert_eq!(inflight.bound().used(), 0);
        let mut large = inflight.track(vec![0; LARGE].into());
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
}
