//! The commands that are written to a peer: on a websocket one in each text frame, else one after the other.

use std::{cell::Cell, mem};

use super::command;
use crate::{
    encode::frame_cache::{Frame, TextHeader},
    limits::inflight::Inflight,
    websocket::transport::Outgoing,
};

/// Up to this size, in bytes, commands are put together.
const SMALL: usize = 1 << 10;

thread_local! {
    /// The buffers of the connection that is polled.
    static SPARE: Cell<(Vec<u8>, Vec<u8>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// What is written in one turn of a connection.
pub(super) struct Output<'a> {
    outgoing: &'a mut Outgoing,
    inflight: &'a Inflight,
    is_websocket: bool,
    /// Small commands with their headers.
    small: Vec<u8>,
    command: Vec<u8>,
}

impl<'a> Output<'a> {
    pub(super) fn new(
        outgoing: &'a mut Outgoing,
        inflight: &'a Inflight,
        is_websocket: bool,
    ) -> Self {
        let (small, command) = SPARE.take();
        Self { outgoing, inflight, is_websocket, small, command }
    }

    /// Adds a command. `key` and `body` are JSON.
    pub(super) fn command(
        &mut self,
        key: Option<&str>,
        action: &str,
        body: Option<&str>,
        version: Option<&str>,
    ) {
        self.command.clear();
        command::write(&mut self.command, key, action, body, version);
        if self.is_websocket {
            self.small.extend_from_slice(TextHeader::new(self.command.len()).as_ref());
        }
        if self.command.len() <= SMALL {
            self.small.extend_from_slice(&self.command);
            return;
        }
        let command = self.inflight.track_response(mem::take(&mut self.command).into());
        let head = mem::take(&mut self.small);
        self.outgoing.push(Frame::new(head, command));
    }

    /// Adds a command that is encoded for this kind of connection.
    pub(super) fn push(&mut self, frame: Frame) {
        if frame.len() <= SMALL {
            frame.pieces().iter().for_each(|piece| self.small.extend_from_slice(piece));
            return;
        }
        self.flush();
        self.outgoing.push(frame);
    }

    /// The bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.outgoing.len() + self.small.len()
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            self.outgoing.push(Frame::new(self.small.clone(), ""));
            self.small.clear();
        }
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        self.flush();
        SPARE.set((mem::take(&mut self.small), mem::take(&mut self.command)));
    }
}
