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
    hash::{Hash, Hasher},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::{Buf as _, Bytes};
use msgbus_core::{
    Message,
    json::{self, PayloadForm},
};
use parking_lot::Mutex;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

use self::large::LargeFrames;
use crate::{
    limits::inflight::Inflight,
    limits::quota::{Quota, QuotaPermit},
};

/// The format in which messages go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FrameFormat {
    /// A text frame with the JSON and a line feed.
    Text,
    /// A binary frame with the payload.
    Binary,
    /// A server-sent event with the JSON, and epoch and id for resuming.
    Sse,
    /// The JSON and a line feed.
    JsonLine,
    /// The payload and a line feed.
    RawLine,
    /// The JSON alone, to be put into another object.
    Object(PayloadForm),
    /// As a door of another protocol writes it.
    Of(Encoder),
}

/// The encoding of a door of another protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoder {
    /// Unique among all encoders.
    pub(crate) name: &'static str,
    pub(crate) encode: fn(&Message) -> Frame,
}

impl PartialEq for Encoder {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Encoder {}

impl Hash for Encoder {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl FrameFormat {
    /// Whether the payload itself is encoded, and not only put between a header and a line end.
    fn is_encoded(self) -> bool {
        !matches!(self, Self::Binary | Self::RawLine)
    }
}

/// An encoded message, in up to two pieces: a large payload that needs no encoding is not copied.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    head: Bytes,
    tail: Bytes,
}

impl Frame {
    pub(crate) fn new(head: impl Into<Bytes>, tail: impl Into<Bytes>) -> Self {
        Self { head: head.into(), tail: tail.into() }
    }

    /// A text frame of a websocket with what `write` writes, of about this size in bytes. It is written after space for the
    /// longest header, because the size is not known before.
    pub(crate) fn text(size: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = Vec::with_capacity(MAX_HEADER + size);
        bytes.resize(MAX_HEADER, 0);
        write(&mut bytes);
        let header = header(Data::Text, bytes.len() - MAX_HEADER);
        let start = MAX_HEADER - header.len();
        bytes[start..MAX_HEADER].copy_from_slice(&header);
        Self::new(Bytes::from(bytes).slice(start..), "")
    }

    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.tail.is_empty()
    }

    pub(crate) fn pieces(&self) -> [&[u8]; 2] {
        [&self.head, &self.tail]
    }

    pub(crate) fn into_pieces(self) -> [Bytes; 2] {
        [self.head, self.tail]
    }

    /// Drops up to `count` of the first bytes, and returns how many.
    pub(crate) fn advance(&mut self, count: usize) -> usize {
        let head = count.min(self.head.len());
        self.head.advance(head);
        let tail = (count - head).min(self.tail.len());
        self.tail.advance(tail);
        head + tail
    }

    /// The same frame, with large pieces that keep `owner` alive.
    fn with_owner<T: Clone + Send + 'static>(self, owner: &T) -> Self {
        let owned = |bytes: Bytes| {
            if bytes.len() <= FrameCache::MAX_SMALL {
                return bytes;
            }
            Bytes::from_owner(Owned { bytes, _owner: owner.clone() })
        };
        Self { head: owned(self.head), tail: owned(self.tail) }
    }
}

/// Bytes that keep an owner alive.
struct Owned<T> {
    bytes: Bytes,
    _owner: T,
}

impl<T> AsRef<[u8]> for Owned<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What subscribers follow: a topic, or a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Followed {
    /// Unique within a bus, except in engines.
    pub(crate) epoch: u64,
    /// Identifies the window of a topic that lives in an engine, where topics may have the same epoch. Otherwise 0.
    pub(crate) window: u64,
    /// Whether it is a pattern. The JSON of its messages ends with their position, which is not that in their topic.
    pub(crate) is_pattern: bool,
}

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
    /// The maximum size of a small frame, in bytes. Larger frames have no slot, and their payload is not copied.
    const MAX_SMALL: usize = 16 << 10;

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
        if size > Self::MAX_SMALL {
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

/// The approximate size of the frame of a message, in bytes.
fn size_hint(message: &Message, format: FrameFormat) -> usize {
    match format {
        FrameFormat::Binary | FrameFormat::RawLine => message.payload().len() + MAX_HEADER,
        _ => json::size_hint(message),
    }
}

/// Where a message is in what is followed.
#[derive(Debug, Clone, Copy)]
struct Place {
    followed: Followed,
    id: u64,
}

/// Encodes a message.
fn encode(message: &Message, place: Place, format: FrameFormat) -> Frame {
    let payload = message.payload();
    let is_large = payload.len() > FrameCache::MAX_SMALL;
    match format {
        FrameFormat::Text => Frame::text(json::size_hint(message) + 1, |out| {
            write_object(out, message, place, PayloadForm::Base64);
            out.push(b'\n');
        }),
        FrameFormat::Binary if is_large => {
            Frame::new(header(Data::Binary, payload.len()), payload.clone())
        }
        FrameFormat::Binary => {
            Frame::new([&header(Data::Binary, payload.len()), &payload[..]].concat(), "")
        }
        FrameFormat::Sse => {
            let head = format!("id: {}-{}\ndata: ", place.followed.epoch, place.id);
            Frame::new(json_line(message, place, head.as_bytes(), b"\n\n"), "")
        }
        FrameFormat::JsonLine => Frame::new(json_line(message, place, b"", b"\n"), ""),
        FrameFormat::Object(form) => {
            let mut object = Vec::with_capacity(json::size_hint(message));
            write_object(&mut object, message, place, form);
            Frame::new(object, "")
        }
        FrameFormat::Of(encoder) => (encoder.encode)(message),
        FrameFormat::RawLine if is_large => Frame::new(payload.clone(), "\n"),
        FrameFormat::RawLine => Frame::new([&payload[..], b"\n"].concat(), ""),
    }
}

/// Appends a message as an object, with its position if it is that of a pattern.
fn write_object(out: &mut Vec<u8>, message: &Message, place: Place, form: PayloadForm) {
    json::write_message_as(out, message, form);
    let Followed { epoch, is_pattern, .. } = place.followed;
    if is_pattern {
        json::add_position(out, epoch, place.id);
    }
}

fn json_line(message: &Message, place: Place, before: &[u8], after: &[u8]) -> Vec<u8> {
    let size = before.len() + json::size_hint(message) + after.len();
    let mut line = Vec::with_capacity(size);
    line.extend_from_slice(before);
    write_object(&mut line, message, place, PayloadForm::Base64);
    line.extend_from_slice(after);
    line
}

/// The header of a text frame that is put together by its sender.
#[derive(Debug)]
pub(crate) struct TextHeader {
    bytes: [u8; MAX_HEADER],
    length: usize,
}

impl TextHeader {
    pub(crate) const MAX_SIZE: usize = MAX_HEADER;

    /// The header of a frame with a payload of this length.
    pub(crate) fn new(payload: usize) -> Self {
        let header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
        let mut bytes = [0; MAX_HEADER];
        // It cannot fail: no header is longer.
        let _ = header.format(payload as u64, &mut &mut bytes[..]);
        Self { bytes, length: header.len(payload as u64) }
    }
}

impl AsRef<[u8]> for TextHeader {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The size of the longest header of a server's frame, in bytes.
const MAX_HEADER: usize = 10;

/// The header of a complete, final websocket frame.
fn header(kind: Data, length: usize) -> Vec<u8> {
    let header = FrameHeader { opcode: OpCode::Data(kind), ..FrameHeader::default() };
    let mut bytes = Vec::with_capacity(MAX_HEADER);
    // Writing to a Vec cannot fail.
    let _ = header.format(length as u64, &mut bytes);
    bytes
}
