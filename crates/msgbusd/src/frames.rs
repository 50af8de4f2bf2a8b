//! Messages made ready for the wire once for everybody who follows the same topic in the same form.
//!
//! Frames of a server are not masked (RFC 6455, section 5.1), so even for websockets the bytes are the
//! same for all: header and payload are made once and shared.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use msgbus_core::{Message, json};
use parking_lot::Mutex;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
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

/// The rings of all topics that somebody follows.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    rings: Mutex<Rings>,
    room: Arc<Room>,
}

#[derive(Debug, Default)]
struct Rings {
    /// By epoch, which is unique within a bus.
    all: HashMap<(u64, Form), Weak<Ring>>,
    /// How many entries there may be before the dead ones are dropped.
    tidy_at: usize,
}

impl Frames {
    const FEW: usize = 64;

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
        let ring = Arc::new(Ring::new(form, Arc::clone(&self.room)));
        rings.all.insert((epoch, form), Arc::downgrade(&ring));
        ring
    }

    /// Drops all frames, which serve those who follow closely and no longer: a message that has
    /// expired is not to live on here.
    pub(crate) fn clear(&self) {
        let rings: Vec<_> = self.rings.lock().all.values().filter_map(Weak::upgrade).collect();
        for ring in rings {
            ring.clear();
        }
    }
}

/// How many bytes all rings hold.
#[derive(Debug, Default)]
struct Room(AtomicUsize);

impl Room {
    const MOST: usize = 64 << 20;

    fn take(&self, bytes: usize) -> bool {
        let taken = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= Self::MOST);
        self.0.fetch_update(Relaxed, Relaxed, taken).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Relaxed);
    }
}

/// The latest frames of one topic. Those who lag make their own.
#[derive(Debug)]
pub(crate) struct Ring {
    form: Form,
    /// Made when there is somebody to share with: most topics may have one follower.
    places: OnceLock<Box<[Mutex<Option<Kept>>]>>,
    /// Whether anything was kept since the last clearing.
    used: AtomicBool,
    room: Arc<Room>,
}

#[derive(Debug)]
struct Kept {
    id: u64,
    frame: Bytes,
}

impl Ring {
    const PLACES: usize = 64;
    /// Larger frames are not kept, in bytes.
    const LARGEST: usize = 16 << 10;

    fn new(form: Form, room: Arc<Room>) -> Self {
        Self { form, places: OnceLock::new(), used: AtomicBool::new(false), room }
    }

    /// The frame of a message.
    pub(crate) fn frame(self: &Arc<Self>, message: &Message) -> Bytes {
        let is_shared = Arc::strong_count(self) > 1;
        if !is_shared || message.payload().len() > Self::LARGEST {
            return encode(message, self.form);
        }
        let id = message.id();
        let places =
            self.places.get_or_init(|| (0..Self::PLACES).map(|_| Mutex::default()).collect());
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is below PLACES")]
        let mut place = places[(id % Self::PLACES as u64) as usize].lock();
        match &*place {
            Some(kept) if kept.id == id => return kept.frame.clone(),
            Some(kept) if kept.id > id => {
                drop(place);
                return encode(message, self.form);
            }
            // Made under the lock: the others who are awake for this message wait for it.
            _ => {}
        }
        let frame = encode(message, self.form);
        self.drop_kept(place.take());
        if frame.len() <= Self::LARGEST && self.room.take(frame.len()) {
            self.used.store(true, Relaxed);
            *place = Some(Kept { id, frame: frame.clone() });
        }
        frame
    }

    fn clear(&self) {
        if self.used.swap(false, Relaxed) {
            for place in self.places.get().into_iter().flatten() {
                let kept = place.lock().take();
                self.drop_kept(kept);
            }
        }
    }

    fn drop_kept(&self, kept: Option<Kept>) {
        if let Some(kept) = kept {
            self.room.give_back(kept.frame.len());
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The bytes of a message in this form, complete.
fn encode(message: &Message, form: Form) -> Bytes {
    match form {
        Form::Text => with_header(Data::Text, &json_line(message, "", "\n")),
        Form::Binary => with_header(Data::Binary, message.payload()),
        Form::Sse => {
            let head = format!("id: {}-{}\ndata: ", message.topic().epoch, message.id());
            json_line(message, &head, "\n\n").into()
        }
        Form::JsonLine => json_line(message, "", "\n").into(),
        Form::RawLine => [&message.payload()[..], b"\n"].concat().into(),
    }
}

fn json_line(message: &Message, before: &str, behind: &str) -> Vec<u8> {
    let mut line = Vec::with_capacity(json::size_hint(message) + before.len() + behind.len());
    line.extend_from_slice(before.as_bytes());
    json::write_message(&mut line, message);
    line.extend_from_slice(behind.as_bytes());
    line
}

/// A complete, final websocket frame.
fn with_header(kind: Data, payload: &[u8]) -> Bytes {
    const LONGEST_HEADER: usize = 10;
    let header = FrameHeader { opcode: OpCode::Data(kind), ..FrameHeader::default() };
    let mut frame = Vec::with_capacity(LONGEST_HEADER + payload.len());
    // Writing to a Vec cannot fail.
    let _ = header.format(payload.len() as u64, &mut frame);
    frame.extend_from_slice(payload);
    frame.into()
}

#[cfg(test)]
mod tests {
    use msgbus_core::{MessageBus, Options, TopicName};

    use super::*;

    #[test]
    fn frames_are_shared_while_fresh_and_gone_when_cleared() {
        let bus = MessageBus::new(Options::default());
        let topic: TopicName = "t".parse().unwrap();
        let mut messages = Vec::new();
        for n in 0..=Ring::PLACES {
            bus.put(&topic, n.to_string()).unwrap();
            messages.extend(bus.get(&topic));
        }
        let frames = Frames::default();
        let ring = frames.ring(1, Form::Binary);
        ring.frame(&messages[0]);
        assert_eq!(frames.room.0.load(Relaxed), 0, "nobody to share with");

        let other = frames.ring(1, Form::Binary);
        let first = ring.frame(&messages[0]);
        assert_eq!(first, &b"\x82\x010"[..]);
        assert_eq!(first.as_ptr(), other.frame(&messages[0]).as_ptr());
        assert_eq!(frames.room.0.load(Relaxed), 3);

        // The last one has the place of the first.
        ring.frame(&messages[Ring::PLACES]);
        assert_ne!(first.as_ptr(), ring.frame(&messages[0]).as_ptr());
        assert_eq!(frames.room.0.load(Relaxed), 4);

        frames.clear();
        assert_eq!(frames.room.0.load(Relaxed), 0);
        ring.frame(&messages[1]);
        drop((ring, other));
        assert_eq!(frames.room.0.load(Relaxed), 0);
    }

    #[test]
    fn a_frame_is_what_the_library_would_send() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let frame = with_header(Data::Text, &payload);
            let (header, size) =
                FrameHeader::parse(&mut std::io::Cursor::new(&frame)).unwrap().unwrap();
            assert!(header.is_final && header.mask.is_none());
            assert_eq!((header.opcode, size), (OpCode::Data(Data::Text), length as u64));
            assert_eq!(&frame[header.len(size)..], payload);
        }
    }
}
