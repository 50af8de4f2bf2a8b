//! The large frames of one topic: those that are in use, and those that are kept for subscribers that need them later.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock, Weak},
};

use super::{Encoded, Frame, Shared};
use crate::{
    limits::inflight::Inflight,
    limits::quota::{Quota, QuotaPermit},
};

/// The large frames of one topic. Subscribers receive a message at different times: the first one may have written its
/// frame before the next one needs it, and under load some are megabytes behind others. So a frame is kept until every
/// subscriber has received it.
#[derive(Debug, Default)]
pub(super) struct LargeFrames {
    /// By message id.
    frames: HashMap<u64, LargeFrame>,
    /// The ids of the kept frames, in the order in which they were encoded.
    kept: BTreeMap<u64, u64>,
    kept_bytes: usize,
    next_number: u64,
}

#[derive(Debug, Default)]
struct LargeFrame {
    in_use: Weak<Shared>,
    kept: Option<Kept>,
    /// How many subscribers have received it.
    takers: usize,
}

/// A kept frame. It does not count as in flight.
#[derive(Debug)]
struct Kept {
    frame: Frame,
    /// Its key in [`LargeFrames::kept`].
    number: u64,
    _permit: QuotaPermit,
}

impl LargeFrames {
    /// The maximum number of bytes to keep for one topic. One frame is kept in any case. It covers what the system
    /// buffers for one connection (up to 10 MB), and thus the distance between subscribers that read at the same speed.
    pub(super) const MAX_KEPT_BYTES: usize = 16 << 20;

    /// The frame of a message for one of `subscribers`. It may have to be encoded.
    pub(super) fn take(&mut self, id: u64, subscribers: usize, inflight: &Inflight) -> Arc<Shared> {
        if self.frames.len() == self.frames.capacity() {
            self.frames.retain(|_, frame| frame.is_needed());
        }
        let frame = self.frames.entry(id).or_default();
        frame.takers += 1;
        let shared = frame.shared(inflight);
        if frame.takers >= subscribers {
            self.release(id);
        }
        shared
    }

    /// Keeps a frame until `subscribers` have taken it. Returns the frames that had to make space.
    pub(super) fn keep(
        &mut self,
        id: u64,
        frame: &Frame,
        subscribers: usize,
        quota: &Arc<Quota>,
    ) -> Vec<Frame> {
        let mut released = Vec::new();
        let is_wanted = |frame: &LargeFrame| frame.kept.is_none() && frame.takers < subscribers;
        if !self.frames.get(&id).is_some_and(is_wanted) {
            return released;
        }
        let size = frame.len();
        let permit = loop {
            let fits = self.kept.is_empty() || self.kept_bytes + size <= Self::MAX_KEPT_BYTES;
            if let Some(permit) = fits.then(|| quota.try_acquire(size)).flatten() {
                break permit;
            }
            let Some((_, &oldest)) = self.kept.first_key_value() else { return released };
            released.extend(self.release(oldest));
        };
        let number = self.next_number;
        self.next_number += 1;
        self.kept.insert(number, id);
        self.kept_bytes += size;
        let kept = Kept { frame: frame.clone(), number, _permit: permit };
        self.frames.entry(id).or_default().kept = Some(kept);
        released
    }

    /// Keeps a frame no longer. Returns it if it was kept.
    fn release(&mut self, id: u64) -> Option<Frame> {
        let kept = self.frames.get_mut(&id)?.kept.take()?;
        self.kept.remove(&kept.number);
        self.kept_bytes -= kept.frame.len();
        Some(kept.frame)
    }

    /// Releases all kept frames, and returns them.
    pub(super) fn clear(&mut self) -> Vec<Frame> {
        let ids = std::mem::take(&mut self.kept);
        let released = ids.into_values().filter_map(|id| self.release(id)).collect();
        self.frames.retain(|_, frame| frame.is_needed());
        self.frames.shrink_to_fit();
        released
    }

    #[cfg(test)]
    pub(super) fn kept(&self, id: u64) -> Option<&Frame> {
        self.frames.get(&id)?.kept.as_ref().map(|kept| &kept.frame)
    }
}

impl LargeFrame {
    fn is_needed(&self) -> bool {
        self.kept.is_some() || self.in_use.strong_count() > 0
    }

    /// The frame that subscribers share. If none uses it, it is the kept one, or has to be encoded.
    fn shared(&mut self, inflight: &Inflight) -> Arc<Shared> {
        if let Some(shared) = self.in_use.upgrade() {
            return shared;
        }
        let encoded = self.kept.as_ref().map_or_else(OnceLock::new, |kept| {
            OnceLock::from(Encoded::new(kept.frame.clone(), inflight))
        });
        let shared = Arc::new(Shared { encoded, _kept: None });
        self.in_use = Arc::downgrade(&shared);
        shared
    }
}
