//! One websocket on a connection. The library reads, and writes control frames; shared frames bypass it.
//!
//! The library would copy each frame into its own buffer. Its control frames must not split another frame, so they go
//! into a buffer here, which is written between two frames.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, Read, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::{
    Error, Message,
    protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext},
};

use crate::encode::frame_cache::Frame;

/// The maximum size of a frame and of a message from a client, in bytes. Data from clients is read and ignored.
const MAX_CLIENT_FRAME: usize = 64 << 10;
/// The size of the library's read buffer, in bytes.
const READ_BUFFER: usize = 128;
/// The maximum number of bytes of control frames that wait here. The library buffers as many again, and then keeps only
/// the latest pong.
const CONTROL_BUFFER: usize = 1 << 10;
/// The maximum number of pieces in one write.
pub(super) const MAX_SLICES: usize = 64;

/// The server's end of a websocket.
pub(super) struct Transport<S> {
    connection: S,
    library: WebSocketContext,
    /// Control frames of the library.
    control: BytesMut,
    /// Whether the library holds control frames that did not fit into `control`.
    is_held_back: bool,
    needs_flush: bool,
    /// Whether reading has failed. Nothing can be read after that.
    is_over: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport<S> {
    /// Takes over a connection. `already_read` has the bytes that were read from it before.
    pub(super) fn new(connection: S, already_read: Vec<u8>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(CONTROL_BUFFER)
            .max_message_size(Some(MAX_CLIENT_FRAME))
            .max_frame_size(Some(MAX_CLIENT_FRAME));
        Self {
            connection,
            library: WebSocketContext::from_partially_read(
                already_read,
                Role::Server,
                Some(config),
            ),
            control: BytesMut::new(),
            is_held_back: false,
            needs_flush: false,
            is_over: false,
        }
    }

    pub(super) fn into_connection(self) -> S {
        self.connection
    }

    /// Polls for the next message of the client. Replies to pings and to a close frame are queued for writing.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Error>> {
        if self.is_over {
            return Poll::Ready(Err(Error::AlreadyClosed));
        }
        let read = self.with_library(cx, |library, wire| {
            let message = library.read(wire)?;
            if message.is_ping() {
                // Without the flush, the pong would wait for the next read. Errors show up there, too.
                let _ = library.flush(wire);
            }
            Ok(message)
        });
        match read {
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
            result => {
                self.is_over = result.is_err();
                Poll::Ready(result)
            }
        }
    }

    /// Queues a ping. It is skipped if too many control frames wait.
    pub(super) fn ping(&mut self, cx: &mut Context<'_>, payload: String) -> Result<(), Error> {
        let ping = Message::Ping(payload.into());
        held_back(self.with_library(cx, |library, wire| library.write(wire, ping)))
    }

    /// Queues a close frame.
    pub(super) fn close(&mut self, cx: &mut Context<'_>, frame: CloseFrame) -> Result<(), Error> {
        held_back(self.with_library(cx, |library, wire| library.close(wire, Some(frame))))
    }

    /// Whether control frames wait to be written.
    pub(super) fn has_control(&self, outgoing: &Outgoing) -> bool {
        self.is_held_back || !self.control.is_empty() || !outgoing.control.is_empty()
    }

    /// Writes everything that waits, with as few system calls as possible.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &mut Outgoing,
    ) -> Poll<io::Result<()>> {
        loop {
            self.hand_over(cx, outgoing);
            if outgoing.is_empty() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = outgoing.slices(&mut slices);
            let connection = Pin::new(&mut self.connection);
            match ready!(connection.poll_write_vectored(cx, &slices[..count]))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                written => outgoing.advance(written),
            }
            self.needs_flush = true;
        }
        if self.needs_flush {
            // TLS may still buffer some bytes.
            ready!(Pin::new(&mut self.connection).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Queues the control frames after the frame that is being written.
    fn hand_over(&mut self, cx: &mut Context<'_>, outgoing: &mut Outgoing) {
        if !outgoing.control.is_empty() {
            return;
        }
        if self.is_held_back && self.control.len() < CONTROL_BUFFER {
            self.is_held_back = false;
            // Errors show up when reading.
            let _ = self.with_library(cx, |library, wire| library.flush(wire));
        }
        outgoing.control = std::mem::take(&mut self.control);
    }

    fn with_library<T>(
        &mut self,
        cx: &mut Context<'_>,
        act: impl FnOnce(&mut WebSocketContext, &mut Wire<'_, '_, S>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Self { connection, library, control, is_held_back, .. } = self;
        act(library, &mut Wire { connection, cx, control, is_held_back })
    }
}

/// Ignores the errors by which the library says that it holds a frame back.
fn held_back(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::WriteBufferFull(_)) => Ok(()),
        Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        result => result,
    }
}

/// The connection as the library sees it.
struct Wire<'a, 'b, S> {
    connection: &'a mut S,
    cx: &'a mut Context<'b>,
    control: &'a mut BytesMut,
    is_held_back: &'a mut bool,
}

impl<S: AsyncRead + Unpin> Read for Wire<'_, '_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut *self.connection).poll_read(self.cx, &mut buffer) {
            Poll::Ready(result) => result.map(|()| buffer.filled().len()),
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S> Write for Wire<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.control.len() >= CONTROL_BUFFER {
            *self.is_held_back = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        self.control.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The frames that wait to be written to one websocket.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    frames: VecDeque<Frame>,
    /// Whether the first frame is partly written: its rest has to be written next.
    is_started: bool,
    /// Whole control frames. They are written before all frames that are not started.
    control: BytesMut,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.control.is_empty()
    }

    pub(super) fn push(&mut self, frame: Frame) {
        self.frames.push_back(frame);
    }

    /// Drops all frames of which no byte is written.
    pub(super) fn drop_unstarted(&mut self) {
        self.frames.truncate(usize::from(self.is_started));
    }

    /// Frees the memory of the queue if it is empty.
    pub(super) fn shrink(&mut self) {
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
        }
    }

    /// Fills `slices` with the first pieces to write, and returns their number.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let started = usize::from(self.is_started);
        let frames =
            |frames: std::ops::RangeFrom<usize>| self.frames.range(frames).flat_map(Frame::pieces);
        let pieces = frames(0..)
            .take(2 * started)
            .chain([&self.control[..]])
            .chain(frames(started..))
            .filter(|piece| !piece.is_empty());
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Drops the first `count` bytes, which have been written.
    pub(super) fn advance(&mut self, mut count: usize) {
        while count > 0 {
            if !self.is_started && !self.control.is_empty() {
                let control = count.min(self.control.len());
                self.control.advance(control);
                count -= control;
                continue;
            }
            let Some(frame) = self.frames.front_mut() else { return };
            count -= frame.advance(count);
            self.is_started = !frame.is_empty();
            if !self.is_started {
                self.frames.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(outgoing: &mut Outgoing, at_a_time: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !outgoing.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = outgoing.slices(&mut slices);
            let next: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            let next = &next[..at_a_time.min(next.len())];
            bytes.extend_from_slice(next);
            outgoing.advance(next.len());
        }
        bytes
    }

    #[test]
    fn control_frames_go_between_frames() {
        for at_a_time in 1..20 {
            let mut outgoing = Outgoing::default();
            outgoing.push(Frame::new("one", "two"));
            outgoing.push(Frame::new("three", ""));
            outgoing.push(Frame::new("", "four"));
            outgoing.control.extend_from_slice(b"ping");
            assert_eq!(written(&mut outgoing, at_a_time), b"pingonetwothreefour");

            outgoing.push(Frame::new("one", "two"));
            outgoing.push(Frame::new("three", ""));
            outgoing.advance(4);
            outgoing.control.extend_from_slice(b"ping");
            assert_eq!(written(&mut outgoing, at_a_time), b"wopingthree");
        }
    }

    #[test]
    fn a_frame_that_is_started_is_kept() {
        let mut outgoing = Outgoing::default();
        outgoing.push(Frame::new("one", ""));
        outgoing.push(Frame::new("two", ""));
        outgoing.advance(1);
        outgoing.drop_unstarted();
        assert_eq!(written(&mut outgoing, 99), b"ne");
        outgoing.push(Frame::new("three", ""));
        outgoing.drop_unstarted();
        assert!(outgoing.is_empty());
    }
}
