//! Messages encoded once for all websockets that follow the same topic.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use msgbus_core::{Message, json};
use parking_lot::Mutex;
use tokio_tungstenite::tungstenite::{Bytes, Utf8Bytes};

/// The rings of all topics that somebody follows, by epoch: it is unique within a bus.
#[derive(Debug, Default)]
pub(crate) struct Frames(Mutex<Rings>);

#[derive(Debug, Default)]
struct Rings {
    by_epoch: HashMap<u64, Weak<Ring>>,
    /// How many entries there may be before the dead ones are dropped.
    tidy_at: usize,
}

impl Frames {
    const FEW: usize = 64;

    /// The ring of a topic, which lives as long as somebody holds it.
    pub(crate) fn ring(&self, epoch: u64) -> Arc<Ring> {
        let mut rings = self.0.lock();
        if let Some(ring) = rings.by_epoch.get(&epoch).and_then(Weak::upgrade) {
            return ring;
        }
        if rings.by_epoch.len() >= rings.tidy_at {
            rings.by_epoch.retain(|_, ring| ring.strong_count() > 0);
            rings.tidy_at = (rings.by_epoch.len() * 2).max(Self::FEW);
        }
        let ring = Arc::new(Ring::default());
        rings.by_epoch.insert(epoch, Arc::downgrade(&ring));
        ring
    }
}

/// The latest frames of one topic. Those who follow closely share them; those who lag encode for
/// themselves.
#[derive(Debug)]
pub(crate) struct Ring([Mutex<Option<(u64, Utf8Bytes)>>; Ring::FRAMES]);

impl Default for Ring {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Ring {
    const FRAMES: usize = 64;
    /// Larger frames are not kept, in bytes: a ring pins 1 MiB at most.
    const LARGEST: usize = 16 << 10;

    /// The text frame of a message: its JSON and a line feed.
    pub(crate) fn frame(&self, message: &Message) -> Utf8Bytes {
        if message.payload().len() > Self::LARGEST {
            return encode(message);
        }
        let id = message.id();
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is below FRAMES")]
        let mut place = self.0[(id % Self::FRAMES as u64) as usize].lock();
        match &*place {
            Some((kept, frame)) if *kept == id => frame.clone(),
            Some((kept, _)) if *kept > id => {
                drop(place);
                encode(message)
            }
            // Encoding under the lock: the others who are awake for this message wait for it.
            _ => {
                let frame = encode(message);
                *place = Some((id, frame.clone()));
                frame
            }
        }
    }
}

fn encode(message: &Message) -> Utf8Bytes {
    // Enough for the fields around a payload with an ordinary name.
    let mut json = Vec::with_capacity(message.payload().len() * 4 / 3 + 320);
    json::write_message(&mut json, message);
    json.push(b'\n');
    // JSON is UTF-8, so the default is never taken.
    Utf8Bytes::try_from(Bytes::from(json)).unwrap_or_default()
}
