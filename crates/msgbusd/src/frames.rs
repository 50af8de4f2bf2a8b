//! Messages made ready for the wire once for everybody who follows the same topic in the same form.
//!
//! Frames of a server are not masked (RFC 6455, section 5.1), so even for websockets the bytes are the
//! same for all: header and payload are made once and shared. Small frames are kept for those who follow
//! closely; large ones are shared for as long as somebody writes them.

use std::{
    collections::HashMap,
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
    bound::{Bound, Hold},
    inflight::Inflight,
};

/// What a message becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
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
            if bytes.len() <= Ring::LARGEST {
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
pub(crate) struct Frames {
    rings: Mutex<Rings>,
    /// Bytes of the frames that all rings keep.
    bound: Arc<Bound>,
}

#[derive(Debug, Default)]
struct Rings {
    /// By epoch, which is unique within a bus.
    all: HashMap<(u64, Form), Weak<Ring>>,
    /// How many entries there may be before the dead ones are dropped.
    tidy_at: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { rings: Mutex::default(), bound: Bound::new(Self::MOST_KEPT) }
    }
}

impl Frames {
    const FEW: usize = 64;
    const MOST_KEPT: usize = 64 << 20;

    /// The ring of a topic, which lives as long as somebody holds it.
    pub(crate) fn ring(&self, epoch: u64, form: Form) -> Arc<Ring> {
        let mut rings = self.rings.lock();
        if let Some(ring) = rings.all.get(&(epoch, form)).and_then(Weak::upgrade) {
            return ring;
        }
        if rings.all.len() >= rings.tidy_at {
            rings.all.retain(|_, ring| ring.strong_count() > 0);
            rings.tidy_at = (rings.all.len() * 2).max(Self::FEW);
        }
        let ring = Arc::new(Ring::new(form, Arc::clone(&self.bound)));
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

/// The latest small frames of one topic, and all large ones that somebody still has. Those who lag make
/// their own small ones.
#[derive(Debug)]
pub(crate) struct Ring {
    form: Form,
    /// Made when there is somebody to share with: most topics may have one follower.
    slots: OnceLock<Box<[Mutex<Option<Slot>>]>>,
    /// Whether anything was kept since the last clearing.
    used: AtomicBool,
    bound: Arc<Bound>,
    /// By id.
    large: Mutex<HashMap<u64, Weak<Shared>>>,
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
    _kept: Option<Hold>,
}

#[derive(Debug)]
struct Encoded {
    frame: Frame,
    /// Counts it as in flight, once for all who share it.
    _inflight: Option<Hold>,
}

impl Shared {
    /// The frame of a message, which is encoded outside of every lock.
    fn frame(&self, message: &Message, form: Form, inflight: &Inflight) -> Frame {
        let encode = || {
            let frame = encode(message, form);
            Encoded { _inflight: inflight.hold_shared(frame.len()), frame }
        };
        self.encoded.get_or_init(encode).frame.clone()
    }
}

impl Ring {
    const SLOTS: usize = 64;
    /// Frames that are larger, in bytes, are not kept, and their payload is not copied for a header.
    const LARGEST: usize = 16 << 10;

    fn new(form: Form, bound: Arc<Bound>) -> Self {
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
            let shared = self.large(message.id());
            return shared.frame(message, self.form, inflight).with(&shared);
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

    fn large(&self, id: u64) -> Arc<Shared> {
        let mut large = self.large.lock();
        if let Some(shared) = large.get(&id).and_then(Weak::upgrade) {
            return shared;
        }
        if large.len() == large.capacity() {
            large.retain(|_, shared| shared.strong_count() > 0);
        }
        let shared = Arc::default();
        large.insert(id, Arc::downgrade(&shared));
        self.used.store(true, Relaxed);
        shared
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
        large.retain(|_, shared| shared.strong_count() > 0);
        large.shrink_to_fit();
    }
}

/// About how large the frame of a message is, in bytes.
fn size_hint(message: &Message, form: Form) -> usize {
    match form {
        Form::Binary | Form::RawLine => message.payload().len() + LONGEST_HEADER,
        Form::Text | Form::Sse | Form::JsonLine => json::size_hint(message),
    }
}

/// The bytes of a message in this form, complete.
fn encode(message: &Message, form: Form) -> Frame {
    let payload = message.payload();
    let is_large = payload.len() > Ring::LARGEST;
    match form {
        Form::Text => text_frame(message),
        Form::Binary if is_large => {
            Frame::new(header(Data::Binary, payload.len()), payload.clone())
        }
        Form::Binary => {
            Frame::new([&header(Data::Binary, payload.len()), &payload[..]].concat(), "")
        }
        Form::Sse => {
            let head = format!("id: {}-{}\ndata: ", message.topic().epoch, message.id());
            Frame::new(json_line(message, head.as_bytes(), b"\n\n"), "")
        }
        Form::JsonLine => Frame::new(json_line(message, b"", b"\n"), ""),
        Form::RawLine if is_large => Frame::new(payload.clone(), "\n"),
        Form::RawLine => Frame::new([&payload[..], b"\n"].concat(), ""),
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

#[cfg(test)]
mod tests {
    use msgbus_core::{MessageBus, Options, TopicName};

    use super::*;

    fn messages(payloads: impl IntoIterator<Item = Vec<u8>>) -> Vec<Message> {
        let bus = MessageBus::new(Options::default());
        let topic: TopicName = "t".parse().unwrap();
        let publish = |payload| {
            bus.put(&topic, payload).unwrap();
            bus.get(&topic).unwrap()
        };
        payloads.into_iter().map(publish).collect()
    }

    fn bytes(frame: &Frame) -> Vec<u8> {
        frame.pieces().concat()
    }

    #[test]
    fn small_frames_are_shared_while_fresh_and_gone_when_cleared() {
        let messages = messages((0..=Ring::SLOTS).map(|n| n.to_string().into_bytes()));
        let (frames, inflight) = (Frames::default(), Inflight::new(1));
        let is_same = |one: &Frame, other: &Frame| one.head.as_ptr() == other.head.as_ptr();
        let ring = frames.ring(1, Form::Binary);
        ring.frame(&messages[0], &inflight);
        assert_eq!(frames.bound.used(), 0, "nobody to share with");

        let other = frames.ring(1, Form::Binary);
        let first = ring.frame(&messages[0], &inflight);
        assert_eq!(bytes(&first), b"\x82\x010");
        assert!(is_same(&first, &other.frame(&messages[0], &inflight)));
        assert!(frames.bound.used() > 0);

        // The last one has the slot of the first.
        ring.frame(&messages[Ring::SLOTS], &inflight);
        assert!(!is_same(&first, &ring.frame(&messages[0], &inflight)));

        frames.clear();
        assert_eq!(frames.bound.used(), 0);
        ring.frame(&messages[1], &inflight);
        drop((ring, other));
        assert_eq!(frames.bound.used(), 0);
    }

    #[test]
    fn large_frames_are_made_and_counted_once_while_somebody_has_them() {
        let messages = messages([vec![b'x'; 100 << 10], vec![b'y'; 100 << 10]]);
        for form in [Form::Text, Form::Binary, Form::Sse, Form::JsonLine, Form::RawLine] {
            let (frames, inflight) = (Frames::default(), Inflight::new(1 << 20));
            let ring = frames.ring(1, form);
            let first = ring.frame(&messages[0], &inflight);
            // Whoever lags shares, too.
            let next = ring.frame(&messages[1], &inflight);
            let same = ring.frame(&messages[0], &inflight);
            let large = |frame: &Frame| {
                frame.pieces().into_iter().max_by_key(|p| p.len()).unwrap().as_ptr()
            };
            assert_eq!(large(&first), large(&same), "{form:?}");
            assert_eq!(inflight.bound().used(), first.len() + next.len(), "{form:?}");
            assert_eq!(frames.bound.used(), 0, "{form:?}");
            if let Form::Binary | Form::RawLine = form {
                assert_eq!(large(&first), messages[0].payload().as_ptr(), "not copied");
            }
            let mut rest = first.clone();
            drop((first, same));
            assert_eq!(rest.advance(50 << 10), 50 << 10);
            assert_eq!(inflight.bound().used(), rest.len() + (50 << 10) + next.len(), "{form:?}");
            drop((rest, next));
            assert_eq!(inflight.bound().used(), 0, "{form:?}");
        }
    }

    #[test]
    fn a_frame_is_what_the_library_would_send() {
        for length in [0, 1, 125, 126, 16_374, 16_384, 16_385, 65_535, 65_536] {
            let message = &messages([vec![b'x'; length]])[0];
            for form in [Form::Binary, Form::Text] {
                let frame = bytes(&encode(message, form));
                let (header, size) =
                    FrameHeader::parse(&mut std::io::Cursor::new(&frame)).unwrap().unwrap();
                assert!(header.is_final && header.mask.is_none());
                let payload = &frame[header.len(size)..];
                assert_eq!(size, payload.len() as u64);
                if form == Form::Binary {
                    assert_eq!(
                        (header.opcode, payload),
                        (OpCode::Data(Data::Binary), &message.payload()[..])
                    );
                } else {
                    assert_eq!(header.opcode, OpCode::Data(Data::Text));
                    assert_eq!(json::read_message(payload).unwrap().payload(), message.payload());
                }
            }
        }
    }
}
