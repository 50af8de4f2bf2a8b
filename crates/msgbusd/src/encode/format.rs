//! The formats in which messages go out.

use std::hash::{Hash, Hasher};

use msgbus_core::{
    Message,
    json::{self, PayloadForm},
};
use tokio_tungstenite::tungstenite::protocol::frame::coding::Data;

use super::frame::{Frame, MAX_HEADER, MAX_SMALL, header};

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
    pub(super) fn is_encoded(self) -> bool {
        !matches!(self, Self::Binary | Self::RawLine)
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

/// The approximate size of the frame of a message, in bytes.
pub(super) fn size_hint(message: &Message, format: FrameFormat) -> usize {
    match format {
        FrameFormat::Binary | FrameFormat::RawLine => message.payload().len() + MAX_HEADER,
        _ => json::size_hint(message),
    }
}

/// Where a message is in what is followed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) followed: Followed,
    pub(super) id: u64,
}

/// Encodes a message.
pub(super) fn encode(message: &Message, place: Place, format: FrameFormat) -> Frame {
    let payload = message.payload();
    let is_large = payload.len() > MAX_SMALL;
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

#[cfg(test)]
mod tests {
    use msgbus_core::{MessageBus, Options};
    use tokio_tungstenite::tungstenite::protocol::frame::{FrameHeader, coding::OpCode};

    use super::*;

    fn message(payload: Vec<u8>) -> Message {
        let bus = MessageBus::new(Options::default());
        let topic = "t".parse().unwrap();
        bus.put(&topic, payload).unwrap();
        bus.get(&topic).unwrap().unwrap()
    }

    #[test]
    fn a_frame_is_what_the_library_would_send() {
        for length in [0, 1, 125, 126, 16_374, 16_384, 16_385, 65_535, 65_536] {
            let followed = Followed { epoch: 1, window: 0, is_pattern: false };
            let message = &message(vec![b'x'; length]);
            for format in [FrameFormat::Binary, FrameFormat::Text] {
                let frame = encode(message, Place { followed, id: 0 }, format).pieces().concat();
                let (header, size) =
                    FrameHeader::parse(&mut std::io::Cursor::new(&frame)).unwrap().unwrap();
                assert!(header.is_final && header.mask.is_none());
                let payload = &frame[header.len(size)..];
                assert_eq!(size, payload.len() as u64);
                if format == FrameFormat::Binary {
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

    #[test]
    fn a_message_of_a_pattern_is_sent_with_its_position() {
        let message = &message(b"x".to_vec());
        let followed = Followed { epoch: 7, window: 0, is_pattern: true };
        let text = |format| {
            let frame = encode(message, Place { followed, id: 9 }, format).pieces().concat();
            String::from_utf8_lossy(&frame).into_owned()
        };
        let (end, size) = (r#""position":"7-9"}"#, json::size_hint(message));
        assert!(text(FrameFormat::Text).ends_with(&format!("{end}\n")));
        assert!(text(FrameFormat::JsonLine).ends_with(&format!("{end}\n")));
        let event = text(FrameFormat::Sse);
        assert!(
            event.starts_with("id: 7-9\n") && event.ends_with(&format!("{end}\n\n")),
            "{event}"
        );
        assert!(text(FrameFormat::JsonLine).len() <= size + 1, "{size}");
    }
}
