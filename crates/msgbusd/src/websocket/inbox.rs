//! Reads the data frames of a client that sends operations.
//!
//! The library would copy each message, and would keep a buffer of the size of the largest one for as long as the
//! connection is open. Here messages are read where they have arrived, in a buffer that all connections of a thread share
//! in turn; a connection has one of its own only while a part of a frame has arrived. Control frames, which may come
//! between the fragments of a message, are left to the library.

use std::{
    cell::Cell,
    io::{self, Cursor},
    mem,
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::AsyncRead;
use tokio_tungstenite::tungstenite::{
    Error,
    error::{CapacityError, ProtocolError},
    protocol::frame::{
        FrameHeader,
        coding::{Data, OpCode},
    },
};
use tokio_util::io::poll_read_buf;

/// The size of the shared buffer of a thread, in bytes.
const SHARED: usize = 64 << 10;
/// The minimum space for a read, in bytes.
const MIN_READ: usize = 16 << 10;
/// The maximum length of the payload of a control frame, in bytes.
const MAX_CONTROL: usize = 125;

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What a client has sent and what is not handled yet.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// The maximum size of a frame and of a message, in bytes.
    max: usize,
    /// Whether the connection has no frames: what arrives at a time is a message.
    is_stream: bool,
    bytes: Vec<u8>,
    /// Everything before this is read.
    start: usize,
    /// How many bytes of messages were read, without control frames; it may wrap.
    read: usize,
    /// The text message that is being handled: what is left of it.
    text: Option<Range<usize>>,
    /// That message, if it came in several frames or messages. Otherwise it is in `bytes`.
    joined: Option<Vec<u8>>,
    /// The end of the message before, which the next one continues.
    held: Vec<u8>,
    /// The payloads of the frames of a message whose last frame is missing, and its type.
    fragments: Option<(Data, Vec<u8>)>,
}

/// The next thing that has arrived as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing has.
    NeedsMore,
    /// A text message, see [`Inbox::text`].
    Text,
    Binary,
    /// A control frame with its header, see [`Inbox::frame`].
    Control(Range<usize>),
}

impl Inbox {
    pub(crate) fn new(already_read: Vec<u8>, max: usize, is_stream: bool) -> Self {
        Self {
            max,
            is_stream,
            bytes: already_read,
            start: 0,
            read: 0,
            text: None,
            joined: None,
            held: Vec::new(),
            fragments: None,
        }
    }

    pub(crate) fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Reads what has arrived. Ready with the number of bytes, which is 0 at the end of the connection.
    pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        connection: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.bytes.drain(..self.start);
        self.start = 0;
        if self.bytes.capacity() == 0 {
            self.bytes = SPARE.take();
            self.bytes.reserve(SHARED);
        }
        if self.bytes.capacity() - self.bytes.len() < MIN_READ {
            self.bytes.reserve(MIN_READ);
        }
        poll_read_buf(Pin::new(connection), cx, &mut self.bytes)
    }

    /// The next message or control frame. The rest of the previous message is dropped.
    pub(crate) fn next(&mut self) -> Result<Next, Error> {
        self.skip();
        if self.is_stream {
            let arrived = self.start..self.bytes.len();
            self.start = arrived.end;
            self.read = self.read.wrapping_add(arrived.len());
            return Ok(if arrived.is_empty() { Next::NeedsMore } else { self.whole(arrived) });
        }
        loop {
            let mut cursor = Cursor::new(&self.bytes[self.start..]);
            let Some((header, length)) = FrameHeader::parse(&mut cursor)? else {
                return Ok(Next::NeedsMore);
            };
            // It is within the slice.
            let payload = self.start + usize::try_from(cursor.position()).unwrap_or_default();
            let length = self.check(&header, length)?;
            let Some(mask) = header.mask else {
                return Err(ProtocolError::UnmaskedFrameFromClient.into());
            };
            let end = payload + length;
            if end > self.bytes.len() {
                return Ok(Next::NeedsMore);
            }
            let frame = self.start..end;
            self.start = end;
            let OpCode::Data(kind) = header.opcode else { return Ok(Next::Control(frame)) };
            self.read = self.read.wrapping_add(length);
            unmask(&mut self.bytes[payload..end], mask);
            if let Some(message) = self.add(kind, header.is_final, payload..end)? {
                return Ok(message);
            }
        }
    }

    /// Refuses a frame by its header. Returns the length of its payload.
    fn check(&self, header: &FrameHeader, length: u64) -> Result<usize, Error> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(ProtocolError::NonZeroReservedBits.into());
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match header.opcode {
            OpCode::Control(_) if length > MAX_CONTROL => {
                return Err(ProtocolError::ControlFrameTooBig.into());
            }
            OpCode::Control(_) => return Ok(length),
            OpCode::Data(Data::Reserved(code)) => {
                return Err(ProtocolError::UnknownDataFrameType(code).into());
            }
            OpCode::Data(_) => {}
        }
        let before = self.fragments.as_ref().map_or(0, |(_, bytes)| bytes.len());
        if length > self.max - before {
            let size = before.saturating_add(length);
            return Err(CapacityError::MessageTooLong { size, max_size: self.max }.into());
        }
        Ok(length)
    }

    /// Adds a data frame to its message. Returns the message if it is whole.
    fn add(
        &mut self,
        kind: Data,
        is_final: bool,
        payload: Range<usize>,
    ) -> Result<Option<Next>, Error> {
        let kind = match (kind, &mut self.fragments) {
            (Data::Continue, None) => return Err(ProtocolError::UnexpectedContinueFrame.into()),
            (kind @ (Data::Text | Data::Binary), Some(_)) => {
                return Err(ProtocolError::ExpectedFragment(kind).into());
            }
            (_, Some((kind, bytes))) => {
                bytes.extend_from_slice(&self.bytes[payload]);
                if !is_final {
                    return Ok(None);
                }
                let kind = *kind;
                let (_, message) = self.fragments.take().unwrap_or((kind, Vec::new()));
                if kind == Data::Text {
                    return Ok(Some(self.joined(message)));
                }
                kind
            }
            (Data::Text, None) if is_final => return Ok(Some(self.whole(payload))),
            (kind, None) if is_final => kind,
            (kind, None) => {
                self.fragments = Some((kind, self.bytes[payload].to_vec()));
                return Ok(None);
            }
        };
        debug_assert_ne!(kind, Data::Text);
        Ok(Some(Next::Binary))
    }

    /// A text message in `bytes`.
    fn whole(&mut self, message: Range<usize>) -> Next {
        if self.held.is_empty() {
            self.text = Some(message);
            return Next::Text;
        }
        self.held.extend_from_slice(&self.bytes[message]);
        let message = mem::take(&mut self.held);
        self.joined(message)
    }

    /// A text message that is put together.
    fn joined(&mut self, mut message: Vec<u8>) -> Next {
        if !self.held.is_empty() {
            // The end is copied, which may be short, and not all that was held again.
            self.held.append(&mut message);
            message = mem::take(&mut self.held);
        }
        self.text = Some(0..message.len());
        self.joined = Some(message);
        Next::Text
    }

    /// A control frame.
    pub(crate) fn frame(&self, frame: Range<usize>) -> &[u8] {
        &self.bytes[frame]
    }

    /// What is left of the text message that is being handled; `None` if there is none.
    pub(crate) fn text(&self) -> Option<&[u8]> {
        let message = self.joined.as_ref().unwrap_or(&self.bytes);
        self.text.clone().map(|text| &message[text])
    }

    /// Drops the first bytes of the text message, which have been handled.
    pub(crate) fn advance(&mut self, count: usize) {
        if let Some(text) = &mut self.text {
            text.start = text.end.min(text.start + count);
            if text.start == text.end {
                (self.text, self.joined) = (None, None);
            }
        }
    }

    /// Drops the first bytes of the text message, which have been handled. The next message continues the rest.
    pub(crate) fn hold(&mut self, count: usize) {
        let Some(text) = self.text.take() else { return };
        let rest = text.start + count..text.end;
        self.held = match self.joined.take() {
            Some(mut joined) => {
                joined.drain(..rest.start);
                joined
            }
            None => self.bytes[rest].to_vec(),
        };
    }

    /// Drops the text message, which has been handled.
    pub(crate) fn skip(&mut self) {
        (self.text, self.joined) = (None, None);
    }

    /// Sets the maximum size of a frame and of a message, in bytes.
    pub(crate) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Whether a text message is not handled yet.
    pub(crate) fn has_text(&self) -> bool {
        self.text.is_some()
    }

    /// Frees the memory that is not needed until more arrives. Call it before other connections are served.
    pub(crate) fn rest(&mut self) {
        let in_bytes = self.text.as_mut().filter(|_| self.joined.is_none());
        let first = in_bytes.as_ref().map_or(self.start, |text| text.start);
        let left = self.bytes.len() - first;
        if left >= MIN_READ {
            return;
        }
        if let Some(text) = in_bytes {
            *text = text.start - first..text.end - first;
        }
        let kept = if left == 0 { Vec::new() } else { self.bytes[first..].to_vec() };
        let mut spare = mem::replace(&mut self.bytes, kept);
        self.start -= first;
        if spare.capacity() <= 2 * SHARED && spare.capacity() >= SHARED {
            spare.clear();
            SPARE.set(spare);
        }
    }

    /// Whether a part of a message or frame has arrived. What is behind a message that has not been handled does not count:
    /// nothing is read meanwhile.
    pub(crate) fn is_unfinished(&self) -> bool {
        let has_part = self.fragments.is_some() || !self.held.is_empty();
        !self.has_text() && (has_part || self.start < self.bytes.len())
    }

    /// How many bytes of messages have arrived since the beginning. Control frames that are read do not count.
    pub(crate) fn arrived(&self) -> usize {
        self.read.wrapping_add(self.bytes.len() - self.start)
    }

    /// The memory that it has, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let fragments = self.fragments.as_ref().map_or(0, |(_, bytes)| bytes.capacity());
        let joined = self.joined.as_ref().map_or(0, Vec::capacity);
        self.bytes.capacity() + fragments + joined + self.held.capacity()
    }
}

/// Removes the mask of a payload (RFC 6455, section 5.3), eight bytes at a time.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}
