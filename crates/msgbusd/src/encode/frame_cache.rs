//! Messages made ready for the wire once for everybody who follows the same topic in the same form.
//!
//! Frames of a server are not masked (RFC 6455, section 5.1), so even for websockets the bytes are the
//! same for all: header and payload are made once and shared. Small frames are kept for those who follow
//! closely; large ones are shared for as long as somebody writes them.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::{Buf as _, Bytes};
use msgbus_core::{Message, json};
use parking_lot::Mutex;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

use crate::{
    limits::inflight::Inflight,
    limits::quota::{Quota, QuotaPermit},
};

/// What a message becomes.
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
}

impl FrameFormat {
    /// Whether more is made of a payload than a header and a line end.
    fn is_encoded(self) -> bool {
        matches!(self, Self::Text | Self::Sse | Self::JsonLine)
    }
}

/// A message in its form, in up to two pieces: a large payload that needs no encoding stays where it is.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    head: Bytes,
    tail: Bytes,
}

impl Frame {
    pub(crate) fn new(head: impl Into<Bytes>, tail: impl Into<Bytes>) -> Self {
        Self { head: head.into(), tail: tail.into() }
    }

    /// A text frame of a websocket.
    pub(crate) fn text(text: &str) -> Self {
        Self::new([&header(Data::Text, text.len()), text.as_bytes()].concat(), "")
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

    /// The same, whose large pieces keep something alive.
    fn with<T: Clone + Send + 'static>(self, owner: &T) -> Self {
        let held = |bytes: Bytes| {
            if bytes.len() <= FrameCache::LARGEST {
                return bytes;
            }
            Bytes::from_owner(Held { bytes, _owner: owner.clone() })
        };
        Self { head: held(self.head), tail: held(self.tail) }
    }
}

/// Bytes that keep something alive.
struct Held<T> {
    bytes: Bytes,
    _owner: T,
}

impl<T> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The rings of all topics that somebody follows.
#[derive(Debug)]
pub(crate) struct FrameCaches {
    rings: Mutex<Caches>,
    /// Bytes of the frames that all rings keep.
    bound: Arc<Quota>,
}

#[derive(Debug, Default)]
struct Caches {
    /// By epoch, which is unique within a bus.
    all: HashMap<(u64, FrameFormat), Weak<FrameCache>>,
    /// How many entries there may be before the dead ones are dropped.
    tidy_at: usize,
}

impl Default for FrameCaches {
    fn default() -> Self {
        Self { rings: Mutex::default(), bound: Quota::new(Self::MOST_KEPT) }
    }
}

impl FrameCaches {
    const FEW: usize = 64;
    const MOST_KEPT: usize = 64 << 20;

    /// The ring of a topic, which lives as long as somebody holds it.
    pub(crate) fn cache(&self, epoch: u64, form: FrameFormat) -> Arc<FrameCache> {
        let mut rings = self.rings.lock();
        if let Some(ring) = rings.all.get(&(epoch, form)).and_then(Weak::upgrade) {
            return ring;
        }
        if rings.all.len() >= rings.tidy_at {
            rings.all.retain(|_, ring| ring.strong_count() > 0);
            rings.tidy_at = (rings.all.len() * 2).max(Self::FEW);
        }
        let ring = Arc::new(FrameCache::new(form, Arc::clone(&self.bound)));
        rings.all.insert((epoch, form), Arc::downgrade(&ring));
        ring
    }

    /// Drops all frames that are kept, which serve those who follow closely and no longer: a message that
    /// has expired is not to live on here.
    pub(crate) fn clear(&self) {
        let rings: Vec<_> = self.rings.lock().all.values().filter_map(Weak::upgrade).collect();
        for ring in rings {
            ring.clear();
        }
    }
}

/// The latest frames of one topic, and all large ones that somebody still has. Those who lag make their own
/// small ones.
#[derive(Debug)]
pub(crate) struct FrameCache {
    form: FrameFormat,
    /// Made when there is somebody to share with: most topics may have one follower.
    slots: OnceLock<Box<[Mutex<Option<Slot>>]>>,
    /// Whether anything was kept since the last clearing.
    used: AtomicBool,
    bound: Arc<Quota>,
    large: Mutex<Large>,
}

/// The large frames of one topic.
#[derive(Debug, Default)]
struct Large {
    /// Those that somebody has, by id.
    taken: HashMap<u64, Weak<Shared>>,
    /// The latest that took encoding, for the next who follows closely: the one before may have written it
    /// and dropped it by then. They do not count as in flight.
    latest: VecDeque<LargeSlot>,
}

#[derive(Debug)]
struct LargeSlot {
    id: u64,
    frame: Frame,
    _kept: QuotaPermit,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    shared: Arc<Shared>,
}

/// A frame that the first who needs it encodes, while the others of the same message wait for it.
#[derive(Debug, Default)]
struct Shared {
    encoded: OnceLock<Encoded>,
    /// Counts it among the frames that are kept.
    _kept: Option<QuotaPermit>,
}

#[derive(Debug)]
struct Encoded {
    frame: Frame,
    /// Counts it as in flight, once for all who share it.
    _inflight: Option<QuotaPermit>,
}

impl Shared {
    /// The frame of a message, which is encoded outside of every lock.
    fn frame(&self, message: &Message, form: FrameFormat, inflight: &Inflight) -> Frame {
        let encode = || Encoded::new(encode(message, form), inflight);
        self.encoded.get_or_init(encode).frame.clone()
    }
}

impl Encoded {
    fn new(frame: Frame, inflight: &Inflight) -> Self {
        Self { _inflight: inflight.hold_shared(frame.len()), frame }
    }
}

impl FrameCache {
    const SLOTS: usize = 64;
    /// Frames that are larger, in bytes, are not kept, and their payload is not copied for a header.
    const LARGEST: usize = 16 << 10;
    /// The most bytes of large frames that are kept, if they are several.
    const LATEST_LARGE: usize = 128 << 10;

    fn new(form: FrameFormat, bound: Arc<Quota>) -> Self {
        Self {
            form,
            slots: OnceLock::new(),
            used: AtomicBool::new(false),
            bound,
            large: Mutex::default(),
        }
    }

    /// The frame of a message. If it is large it counts as in flight, once however many have it.
    pub(crate) fn frame(self: &Arc<Self>, message: &Message, inflight: &Inflight) -> Frame {
        let size = size_hint(message, self.form);
        if size > Self::LARGEST {
            return self.large_frame(message, inflight);
        }
        let is_alone = Arc::strong_count(self) == 1;
        match if is_alone { None } else { self.kept(message.id(), size) } {
            Some(shared) => shared.frame(message, self.form, inflight),
            None => encode(message, self.form),
        }
    }

    /// What is kept of a message; `None` when it is for somebody who lags, or nothing more may be kept.
    fn kept(&self, id: u64, size: usize) -> Option<Arc<Shared>> {
        let slots = self.slots.get_or_init(|| (0..Self::SLOTS).map(|_| Mutex::default()).collect());
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is below SLOTS")]
        let mut slot = slots[(id % Self::SLOTS as u64) as usize].lock();
        match &*slot {
            Some(kept) if kept.id == id => return Some(Arc::clone(&kept.shared)),
            Some(kept) if kept.id > id => return None,
            _ => {}
        }
        let hold = self.bound.take(size)?;
        let shared = Arc::new(Shared { encoded: OnceLock::new(), _kept: Some(hold) });
        let replaced = slot.replace(Slot { id, shared: Arc::clone(&shared) });
        self.used.store(true, Relaxed);
        drop(slot);
        drop(replaced);
        Some(shared)
    }

    fn large_frame(self: &Arc<Self>, message: &Message, inflight: &Inflight) -> Frame {
        let shared = self.large(message.id(), inflight);
        let encoded = shared.encoded.get_or_init(|| {
            let frame = encode(message, self.form);
            if Arc::strong_count(self) > 1 && self.form.is_encoded() {
                self.keep_large(message.id(), &frame);
            }
            Encoded::new(frame, inflight)
        });
        encoded.frame.clone().with(&shared)
    }

    fn large(&self, id: u64, inflight: &Inflight) -> Arc<Shared> {
        let mut large = self.large.lock();
        let Large { taken, latest } = &mut *large;
        if let Some(shared) = taken.get(&id).and_then(Weak::upgrade) {
            return shared;
        }
        if taken.len() == taken.capacity() {
            taken.retain(|_, shared| shared.strong_count() > 0);
        }
        let kept = latest.iter().find(|slot| slot.id == id);
        let encoded = kept.map_or_else(OnceLock::new, |slot| {
            OnceLock::from(Encoded::new(slot.frame.clone(), inflight))
        });
        let shared = Arc::new(Shared { encoded, _kept: None });
        taken.insert(id, Arc::downgrade(&shared));
        self.used.store(true, Relaxed);
        shared
    }

    /// Keeps a frame, beside as many older ones as a batch may have.
    fn keep_large(&self, id: u64, frame: &Frame) {
        let Some(kept) = self.bound.take(frame.len()) else { return };
        let mut large = self.large.lock();
        let latest = &mut large.latest;
        if latest.back().is_some_and(|slot| slot.id >= id) {
            return;
        }
        latest.push_back(LargeSlot { id, frame: frame.clone(), _kept: kept });
        let mut bytes: usize = latest.iter().map(|slot| slot.frame.len()).sum();
        let mut dropped = Vec::new();
        while bytes > Self::LATEST_LARGE && latest.len() > 1 {
            if let Some(slot) = latest.pop_front() {
                bytes -= slot.frame.len();
                dropped.push(slot);
            }
        }
        // Freed when no lock is held.
        drop(large);
    }

    fn clear(&self) {
        if !self.used.swap(false, Relaxed) {
            return;
        }
        for slot in self.slots.get().into_iter().flatten() {
            let kept = slot.lock().take();
            drop(kept);
        }
        let mut large = self.large.lock();
        large.taken.retain(|_, shared| shared.strong_count() > 0);
        large.taken.shrink_to_fit();
        let latest = std::mem::take(&mut large.latest);
        drop(large);
        drop(latest);
    }
}

/// About how large the frame of a message is, in bytes.
fn size_hint(message: &Message, form: FrameFormat) -> usize {
    match form {
        FrameFormat::Binary | FrameFormat::RawLine => message.payload().len() + LONGEST_HEADER,
        FrameFormat::Text | FrameFormat::Sse | FrameFormat::JsonLine => json::size_hint(message),
    }
}

/// The bytes of a message in this form, complete.
fn encode(message: &Message, form: FrameFormat) -> Frame {
    let payload = message.payload();
    let is_large = payload.len() > FrameCache::LARGEST;
    match form {
        FrameFormat::Text => text_frame(message),
        FrameFormat::Binary if is_large => {
            Frame::new(header(Data::Binary, payload.len()), payload.clone())
        }
        FrameFormat::Binary => {
            Frame::new([&header(Data::Binary, payload.len()), &payload[..]].concat(), "")
        }
        FrameFormat::Sse => {
            let head = format!("id: {}-{}\ndata: ", message.topic().epoch, message.id());
            Frame::new(json_line(message, head.as_bytes(), b"\n\n"), "")
        }
        FrameFormat::JsonLine => Frame::new(json_line(message, b"", b"\n"), ""),
        FrameFormat::RawLine if is_large => Frame::new(payload.clone(), "\n"),
        FrameFormat::RawLine => Frame::new([&payload[..], b"\n"].concat(), ""),
    }
}

/// A text frame with the JSON and a line feed, written behind space for the longest header.
fn text_frame(message: &Message) -> Frame {
    let mut bytes = json_line(message, &[0; LONGEST_HEADER], b"\n");
    let header = header(Data::Text, bytes.len() - LONGEST_HEADER);
    let start = LONGEST_HEADER - header.len();
    bytes[start..LONGEST_HEADER].copy_from_slice(&header);
    Frame::new(Bytes::from(bytes).slice(start..), "")
}

fn json_line(message: &Message, before: &[u8], behind: &[u8]) -> Vec<u8> {
    let size = before.len() + json::size_hint(message) + behind.len();
    let mut line = Vec::with_capacity(size);
    line.extend_from_slice(before);
    json::write_message(&mut line, message);
    line.extend_from_slice(behind);
    line
}

/// In bytes.
const LONGEST_HEADER: usize = 10;

/// The header of a complete, final websocket frame.
fn header(kind: Data, length: usize) -> Vec<u8> {
    let header = FrameHeader { opcode: OpCode::Data(kind), ..FrameHeader::default() };
    let mut bytes = Vec::with_capacity(LONGEST_HEADER);
    // Writing to a Vec cannot fail.
    let _ = header.format(length as u64, &mut bytes);
    bytes
}
