//! Encoded messages, and the headers of websocket frames.

use bytes::{Buf as _, Bytes};
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

/// The maximum size of a small frame, in bytes. Larger frames have no slot in a cache, and their payload is not copied.
pub(super) const MAX_SMALL: usize = 16 << 10;

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
    pub(super) fn with_owner<T: Clone + Send + 'static>(self, owner: &T) -> Self {
        let owned = |bytes: Bytes| {
            if bytes.len() <= MAX_SMALL {
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
pub(super) const MAX_HEADER: usize = 10;

/// The header of a complete, final websocket frame.
pub(super) fn header(kind: Data, length: usize) -> Vec<u8> {
    let header = FrameHeader { opcode: OpCode::Data(kind), ..FrameHeader::default() };
    let mut bytes = Vec::with_capacity(MAX_HEADER);
    // Writing to a Vec cannot fail.
    let _ = header.format(length as u64, &mut bytes);
    bytes
}
