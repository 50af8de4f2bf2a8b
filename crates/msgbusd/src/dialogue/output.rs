//! What writes to a client.

use std::{cell::Cell, fmt, mem};

use super::{Contact, Dialect};
use crate::{
    encode::frame::{Frame, TextHeader},
    limits::inflight::Inflight,
    websocket::outgoing::Outgoing,
};

/// Up to this size, in bytes, messages are put together.
const SMALL: usize = 1 << 10;

/// Puts what is written to a client into what is sent.
pub(crate) trait Output: fmt::Debug + Send {
    fn new(outgoing: Outgoing) -> Self;

    /// The bytes that wait to be sent.
    fn waiting(&self) -> usize;

    /// Everything that was written and waits to be sent.
    fn outgoing(&mut self) -> &mut Outgoing;
}

thread_local! {
    /// The buffers of the connection that is polled.
    static SPARE: Cell<(Vec<u8>, Vec<u8>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// Puts each message in a frame of its own, or without frames into a stream.
#[derive(Debug)]
pub(crate) struct Messages {
    outgoing: Outgoing,
    /// Small messages with their headers.
    small: Vec<u8>,
    message: Vec<u8>,
}

impl Output for Messages {
    fn new(outgoing: Outgoing) -> Self {
        Self { outgoing, small: Vec::new(), message: Vec::new() }
    }

    fn waiting(&self) -> usize {
        self.outgoing.len() + self.small.len()
    }

    fn outgoing(&mut self) -> &mut Outgoing {
        if self.small.capacity() > 0 {
            self.flush();
            SPARE.set((mem::take(&mut self.small), mem::take(&mut self.message)));
        }
        &mut self.outgoing
    }
}

impl Messages {
    /// Adds a message, which `write` writes. A large one counts as in flight.
    pub(crate) fn write(&mut self, inflight: &Inflight, write: impl FnOnce(&mut Vec<u8>)) {
        self.borrow_buffers();
        self.message.clear();
        write(&mut self.message);
        self.add_header(self.message.len());
        if self.message.len() <= SMALL {
            self.small.extend_from_slice(&self.message);
            return;
        }
        let message = inflight.track_response(mem::take(&mut self.message).into());
        let head = mem::take(&mut self.small);
        self.outgoing.push(Frame::new(head, message));
    }

    /// Adds a message that others get, too. It has no header.
    pub(crate) fn push(&mut self, message: Frame) {
        self.borrow_buffers();
        self.add_header(message.len());
        if message.len() <= SMALL {
            message.pieces().iter().for_each(|piece| self.small.extend_from_slice(piece));
            return;
        }
        let [head, tail] = message.into_pieces();
        // With its header, so that both are written or neither.
        self.outgoing.push_piece(Frame::new(self.small.clone(), head), !tail.is_empty());
        self.small.clear();
        if !tail.is_empty() {
            self.outgoing.push(Frame::new(tail, ""));
        }
    }

    fn borrow_buffers(&mut self) {
        if self.small.capacity() == 0 {
            (self.small, self.message) = SPARE.take();
        }
    }

    fn add_header(&mut self, length: usize) {
        if !self.outgoing.is_stream() {
            self.small.extend_from_slice(TextHeader::new(length).as_ref());
        }
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            self.outgoing.push(Frame::new(self.small.clone(), ""));
            self.small.clear();
        }
    }
}

impl<D: Dialect<Output = Messages>> Contact<D> {
    /// Adds a message, which `write` writes.
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.output.write(&self.client.worker.inflight, write);
    }
}
