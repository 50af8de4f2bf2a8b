//! What writes to a client.

use std::{cell::Cell, mem};

use crate::{
    encode::frame_cache::{Frame, TextHeader},
    limits::inflight::Inflight,
    websocket::transport::Outgoing,
};

/// Up to this size, in bytes, messages are put together.
const SMALL: usize = 1 << 10;

/// Writes to a client during one turn of its connection.
pub(crate) trait Output<'a> {
    fn new(outgoing: &'a mut Outgoing) -> Self;

    /// The bytes that wait to be written.
    fn waiting(&self) -> usize;
}

thread_local! {
    /// The buffers of the connection that is polled.
    static SPARE: Cell<(Vec<u8>, Vec<u8>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// Writes each message in a frame of its own, or without frames to a stream.
#[derive(Debug)]
pub(crate) struct Messages<'a> {
    outgoing: &'a mut Outgoing,
    /// Small messages with their headers.
    small: Vec<u8>,
    message: Vec<u8>,
}

impl<'a> Output<'a> for Messages<'a> {
    fn new(outgoing: &'a mut Outgoing) -> Self {
        let (small, message) = SPARE.take();
        Self { outgoing, small, message }
    }

    fn waiting(&self) -> usize {
        self.outgoing.len() + self.small.len()
    }
}

impl Messages<'_> {
    /// Adds a message, which `write` writes. A large one counts as in flight.
    pub(crate) fn write(&mut self, inflight: &Inflight, write: impl FnOnce(&mut Vec<u8>)) {
        self.message.clear();
        write(&mut self.message);
        if !self.outgoing.is_stream() {
            self.small.extend_from_slice(TextHeader::new(self.message.len()).as_ref());
        }
        if self.message.len() <= SMALL {
            self.small.extend_from_slice(&self.message);
            return;
        }
        let message = inflight.track_response(mem::take(&mut self.message).into());
        let head = mem::take(&mut self.small);
        self.outgoing.push(Frame::new(head, message));
    }

    /// Adds a message that is encoded for this kind of connection.
    pub(crate) fn push(&mut self, frame: Frame) {
        if frame.len() <= SMALL {
            frame.pieces().iter().for_each(|piece| self.small.extend_from_slice(piece));
            return;
        }
        self.flush();
        self.outgoing.push(frame);
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            self.outgoing.push(Frame::new(self.small.clone(), ""));
            self.small.clear();
        }
    }
}

impl Drop for Messages<'_> {
    fn drop(&mut self) {
        self.flush();
        SPARE.set((mem::take(&mut self.small), mem::take(&mut self.message)));
    }
}
