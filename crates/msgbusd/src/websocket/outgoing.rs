//! What waits to be written to one connection: shared frames, and control frames, which must not split another frame and go
//! between two of them.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::AsyncWrite;

use crate::encode::frame::Frame;

/// The maximum number of pieces in one write.
pub(crate) const MAX_SLICES: usize = 64;

/// What waits to be written to one connection.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    frames: VecDeque<Piece>,
    /// The bytes of all pieces.
    bytes: usize,
    /// Whether the first frame is partly written: its rest has to be written next.
    is_started: bool,
    /// Whole control frames. They are written before all frames that are not started.
    pub(super) control: BytesMut,
    /// Whether the connection is a stream, whose messages have no frames.
    is_stream: bool,
}

/// A frame, or a part of one.
#[derive(Debug)]
struct Piece {
    bytes: Frame,
    /// Whether the next piece is of the same frame.
    is_continued: bool,
}

impl Outgoing {
    pub(crate) fn of_stream() -> Self {
        Self { is_stream: true, ..Self::default() }
    }

    pub(crate) fn is_stream(&self) -> bool {
        self.is_stream
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.control.is_empty()
    }

    pub(crate) fn push(&mut self, frame: Frame) {
        self.push_piece(frame, false);
    }

    /// Adds a piece of a frame.
    pub(crate) fn push_piece(&mut self, bytes: Frame, is_continued: bool) {
        self.bytes += bytes.len();
        self.frames.push_back(Piece { bytes, is_continued });
    }

    /// The bytes of the frames that wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The payloads of all frames, none of which is started.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn payloads(&self) -> Vec<u8> {
        let pieces = self.frames.iter().flat_map(|piece| piece.bytes.pieces());
        let bytes: Vec<u8> = pieces.flatten().copied().collect();
        let (mut rest, mut payloads) = (&bytes[..], Vec::new());
        while let [_, form, after @ ..] = rest {
            let (length, after) = match form {
                126 => (usize::from(u16::from_be_bytes([after[0], after[1]])), &after[2..]),
                127 => (
                    after[..8].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
                    &after[8..],
                ),
                short => (usize::from(*short), after),
            };
            payloads.extend_from_slice(&after[..length]);
            rest = &after[length..];
        }
        payloads
    }

    /// Drops all frames of which no byte is written.
    pub(crate) fn drop_unstarted(&mut self) {
        self.frames.truncate(self.started());
        self.bytes = self.frames.iter().map(|piece| piece.bytes.len()).sum();
    }

    /// The number of pieces that have to be written before anything else.
    fn started(&self) -> usize {
        if !self.is_started {
            return 0;
        }
        1 + self.frames.iter().take_while(|piece| piece.is_continued).count()
    }

    /// Frees the memory of the queue if it is empty.
    pub(crate) fn shrink(&mut self) {
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
        }
    }

    /// Fills `slices` with the first pieces to write, and returns their number.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let started = self.started();
        let frames =
            |frames: Range<usize>| self.frames.range(frames).flat_map(|piece| piece.bytes.pieces());
        let pieces = frames(0..started)
            .chain([&self.control[..]])
            .chain(frames(started..self.frames.len()))
            .filter(|piece| !piece.is_empty());
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Writes some of what waits to a connection, without flushing it.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = self.slices(&mut slices);
        match ready!(Pin::new(connection).poll_write_vectored(cx, &slices[..count]))? {
            0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
            written => self.advance(written),
        }
        Poll::Ready(Ok(()))
    }

    /// Drops the first `count` bytes, which have been written.
    pub(crate) fn advance(&mut self, mut count: usize) {
        while count > 0 {
            if !self.is_started && !self.control.is_empty() {
                let control = count.min(self.control.len());
                self.control.advance(control);
                count -= control;
                continue;
            }
            let Some(Piece { bytes, is_continued }) = self.frames.front_mut() else { return };
            let written = bytes.advance(count);
            (count, self.bytes) = (count - written, self.bytes - written);
            let is_whole = bytes.is_empty();
            self.is_started = !is_whole || *is_continued;
            if is_whole {
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
