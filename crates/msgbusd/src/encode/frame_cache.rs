//! Encodes each message once for all subscribers that follow a topic in the same format.
//!
//! Frames of a server are not masked (RFC 6455, section 5.1), so the bytes are the same for all subscribers, also on
//! websockets: header and payload are encoded once and shared. Small frames are kept for subscribers that keep up;
//! large ones until all subscribers have received them.

mod large;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use msgbus_core::Message;
use parking_lot::Mutex;

use self::large::LargeFrames;
use super::{
    format::{Followed, FrameFormat, Place, encode, size_hint},
    frame::{Frame, MAX_SMALL},
};
use crate::{
    limits::inflight::Inflight,
    limits::quota::{Quota, QuotaPermit},
};

/// The caches of all topics and patterns that have subscribers.
#[derive(Debug)]
pub(crate) struct FrameCaches {
    caches: Mutex<Caches>,
    /// The bytes of the frames that all caches keep.
    quota: Arc<Quota>,
}

#[derive(Debug, Default)]
struct Caches {
    all: HashMap<(u64, FrameFormat), Weak<FrameCache>>,
    /// The number of entries at which dead ones are dropped.
    purge_at: usize,
}

impl Default for FrameCaches {
    fn default() -> Self {
        Self { caches: Mutex::default(), quota: Quota::new(Self::MAX_KEPT_BYTES) }
    }
}

impl FrameCaches {
    const MIN_PURGE_THRESHOLD: usize = 64;
    const MAX_KEPT_BYTES: usize = 64 << 20;

    /// The cache of a topic or a pattern in a format. It lives while a subscriber holds it.
    pub(crate) fn cache(&self, followed: Followed, format: FrameFormat) -> Arc<FrameCache> {
        let epoch = followed.epoch;
        let mut caches = self.caches.lock();
        if let Some(cache) = caches.all.get(&(epoch, format)).and_then(Weak::upgrade) {
            return cache;
        }
        if caches.all.len() >= caches.purge_at {
            caches.all.retain(|_, cache| cache.strong_count() > 0);
            caches.purge_at = (caches.all.len() * 2).max(Self::MIN_PURGE_THRESHOLD);
        }
        let cache = Arc::new(FrameCache::new(followed, format, Arc::clone(&self.quota)));
        caches.all.insert((epoch, format), Arc::downgrade(&cache));
        cache
    }

    /// Drops all kept frames. Subscribers that keep up have received them already, and expired messages must not stay
    /// in memory here.
    pub(crate) fn clear(&self) {
        let caches: Vec<_> = self.caches.lock().all.values().filter_map(Weak::upgrade).collect();
        for cache in caches {
            cache.clear();
        }
    }
}

/// The latest small frames of one topic or pattern, and its large frames that are in use or kept. For a lagging subscriber, small
/// frames are encoded anew.
#[derive(Debug)]
pub(crate) struct FrameCache {
    followed: Followed,
    format: FrameFormat,
    /// Allocated when there is a second subscriber: many topics have only one.
    slots: OnceLock<Box<[Mutex<Option<Slot>>]>>,
    /// Whether a frame was added since the cache was last cleared.
    used: AtomicBool,
    quota: Arc<Quota>,
    large: Mutex<LargeFrames>,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    shared: Arc<Shared>,
}

/// A shared frame. The first subscriber that needs it encodes it, while the others wait.
#[derive(Debug, Default)]
struct Shared {
    encoded: OnceLock<Encoded>,
    /// Counts it among the kept frames.
    _kept: Option<QuotaPermit>,
}

#[derive(Debug)]
struct Encoded {
    frame: Frame,
    /// Counts it as in flight, once for all subscribers.
    _inflight: Option<QuotaPermit>,
}

impl Shared {
    /// The frame, which `encode` makes if there is none yet. Encoding happens outside of all locks.
    fn frame(&self, inflight: &Inflight, encode: impl FnOnce() -> Frame) -> Frame {
        self.encoded.get_or_init(|| Encoded::new(encode(), inflight)).frame.clone()
    }
}

impl Encoded {
    fn new(frame: Frame, inflight: &Inflight) -> Self {
        Self { _inflight: inflight.track_shared(frame.len()), frame }
    }
}

impl FrameCache {
    const SLOTS: usize = 64;

    fn new(followed: Followed, format: FrameFormat, quota: Arc<Quota>) -> Self {
        Self {
            followed,
            format,
            slots: OnceLock::new(),
            used: AtomicBool::new(false),
            quota,
            large: Mutex::default(),
        }
    }

    /// The frame of a message, which has this id in what is followed. A large frame counts as in flight, once for all
    /// subscribers.
    pub(crate) fn frame(
        self: &Arc<Self>,
        id: u64,
        message: &Message,
        inflight: &Inflight,
    ) -> Frame {
        let size = size_hint(message, self.format);
        if size > MAX_SMALL {
            return self.large_frame(id, message, inflight);
        }
        let is_alone = Arc::strong_count(self) == 1;
        match if is_alone { None } else { self.kept(id, size) } {
            Some(shared) => shared.frame(inflight, || self.encode(id, message)),
            None => self.encode(id, message),
        }
    }

    /// The kept frame of a message; `None` if the slot has a newer one, or the quota is used up.
    fn kept(&self, id: u64, size: usize) -> Option<Arc<Shared>> {
        let slots = self.slots.get_or_init(|| (0..Self::SLOTS).map(|_| Mutex::default()).collect());
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is below SLOTS")]
        let mut slot = slots[(id % Self::SLOTS as u64) as usize].lock();
        match &*slot {
            Some(kept) if kept.id == id => return Some(Arc::clone(&kept.shared)),
            Some(kept) if kept.id > id => return None,
            _ => {}
        }
        let permit = self.quota.try_acquire(size)?;
        let shared = Arc::new(Shared { encoded: OnceLock::new(), _kept: Some(permit) });
        let replaced = slot.replace(Slot { id, shared: Arc::clone(&shared) });
        self.used.store(true, Relaxed);
        drop(slot);
        drop(replaced);
        Some(shared)
    }

    fn large_frame(self: &Arc<Self>, id: u64, message: &Message, inflight: &Inflight) -> Frame {
        let subscribers = Arc::strong_count(self);
        let shared = self.large.lock().take(id, subscribers, inflight);
        self.used.store(true, Relaxed);
        let encoded = shared.encoded.get_or_init(|| {
            let frame = self.encode(id, message);
            if self.format.is_encoded() {
                let released = self.large.lock().keep(id, &frame, subscribers, &self.quota);
                // Freed after the lock is released.
                drop(released);
            }
            Encoded::new(frame, inflight)
        });
        encoded.frame.clone().with_owner(&shared)
    }

    fn encode(&self, id: u64, message: &Message) -> Frame {
        encode(message, Place { followed: self.followed, id }, self.format)
    }

    fn clear(&self) {
        if !self.used.swap(false, Relaxed) {
            return;
        }
        for slot in self.slots.get().into_iter().flatten() {
            let kept = slot.lock().take();
            drop(kept);
        }
        let released = self.large.lock().clear();
        drop(released);
    }
}
