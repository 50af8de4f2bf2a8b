//! The lines that are written to a client, put together to frames.

use std::{cell::Cell, mem};

use bytes::Bytes;

use crate::{
    dialogue::{self, ENOUGH as FRAME_SIZE},
    encode::frame::{Frame, TextHeader},
    websocket::outgoing::Outgoing,
};

/// Up to this size, in bytes, copying an encoded message costs less than a piece of its own.
const COPIED: usize = 1 << 10;

thread_local! {
    /// The buffer of the websocket that is polled.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The frame that is being put together, for one turn of a websocket.
#[derive(Debug)]
pub(crate) struct Output {
    outgoing: Outgoing,
    /// The text, after space for the longest header. Empty between two turns.
    text: Vec<u8>,
    /// Encoded messages that other subscribers use, too, and where they stand in the text.
    shared: Vec<(usize, Bytes)>,
    shared_bytes: usize,
}

impl dialogue::Output for Output {
    fn new(outgoing: Outgoing) -> Self {
        Self { outgoing, text: Vec::new(), shared: Vec::new(), shared_bytes: 0 }
    }

    fn waiting(&self) -> usize {
        self.outgoing.len() + self.frame_len()
    }

    fn outgoing(&mut self) -> &mut Outgoing {
        self.finish_frame();
        let text = mem::take(&mut self.text);
        if text.capacity() > 0 && text.capacity() <= 4 * FRAME_SIZE {
            SPARE.set(text);
        }
        &mut self.outgoing
    }
}

impl Output {
    /// The text of the line that is being written.
    pub(super) fn text(&mut self) -> &mut Vec<u8> {
        if self.text.is_empty() {
            self.text = SPARE.take();
            self.text.clear();
            self.text.resize(TextHeader::MAX_SIZE, 0);
        }
        &mut self.text
    }

    /// Appends bytes that others use, too.
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() <= COPIED {
            self.text.extend_from_slice(&bytes);
        } else {
            self.shared_bytes += bytes.len();
            self.shared.push((self.text.len(), bytes));
        }
    }

    /// Ends a line. A frame that has become large is finished.
    pub(super) fn end_line(&mut self) {
        self.text.push(b'\n');
        if self.frame_len() >= FRAME_SIZE {
            self.finish_frame();
        }
    }

    fn frame_len(&self) -> usize {
        self.text.len().saturating_sub(TextHeader::MAX_SIZE) + self.shared_bytes
    }

    /// Finishes the frame, if it has lines.
    pub(super) fn finish_frame(&mut self) {
        let length = self.frame_len();
        if length == 0 {
            return;
        }
        let header = TextHeader::new(length);
        let start = TextHeader::MAX_SIZE - header.as_ref().len();
        self.text[start..TextHeader::MAX_SIZE].copy_from_slice(header.as_ref());
        let text = Bytes::copy_from_slice(&self.text[start..]);
        let mut before = 0;
        for (at, bytes) in mem::take(&mut self.shared) {
            let head = text.slice(before..at - start);
            before = at - start;
            self.outgoing.push_piece(Frame::new(head, bytes), true);
        }
        self.outgoing.push_piece(Frame::new(text.slice(before..), ""), false);
        self.text.truncate(TextHeader::MAX_SIZE);
        self.shared_bytes = 0;
    }
}
