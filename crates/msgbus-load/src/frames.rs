//! Websocket frames, as a client reads and writes them (RFC 6455, section 5).

use std::io::{self, Cursor};

use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use crate::response::{ResponseHead, invalid};

/// What a server sends.
pub(crate) enum Frame<'input> {
    /// The response to the handshake, first.
    Open,
    Data(&'input [u8]),
    /// The content, which a [`pong`] repeats.
    Ping(&'input [u8]),
}

/// The response to a handshake, and the frames after it.
#[derive(Default)]
pub(crate) struct Frames {
    is_open: bool,
}

impl<'a> Frame<'a> {
    /// The content of a data frame. A ping is answered in `reply`.
    pub(crate) fn data(self, reply: &mut Vec<u8>) -> Option<&'a [u8]> {
        match self {
            Self::Data(content) => return Some(content),
            Self::Ping(content) => pong(content, reply),
            Self::Open => {}
        }
        None
    }
}

impl Frames {
    /// Passes each complete frame to `each`. Returns the length of what it has read, in bytes.
    ///
    /// # Errors
    /// When the server refuses the handshake, closes the websocket or violates the protocol.
    pub(crate) fn decode(
        &mut self,
        input: &[u8],
        mut each: impl FnMut(Frame<'_>) -> io::Result<()>,
    ) -> io::Result<usize> {
        let mut used = 0;
        if !self.is_open {
            let Some(head) = ResponseHead::parse(input)? else { return Ok(0) };
            let status = head.status();
            if status != 101 {
                return Err(invalid(format!("the server answered {status} instead of 101")));
            }
            (self.is_open, used) = (true, head.length());
            each(Frame::Open)?;
        }
        loop {
            let mut rest = Cursor::new(&input[used..]);
            let Some((header, length)) = FrameHeader::parse(&mut rest).map_err(invalid)? else {
                return Ok(used);
            };
            // The cursor is relative to `used`; the sum is an index into `input`.
            let begin = used + usize::try_from(rest.position()).unwrap_or(usize::MAX);
            let length = usize::try_from(length).map_err(invalid)?;
            let Some(content) = input.get(begin..begin.saturating_add(length)) else {
                return Ok(used);
            };
            match header.opcode {
                OpCode::Data(_) => each(Frame::Data(content))?,
                OpCode::Control(Control::Ping) => each(Frame::Ping(content))?,
                OpCode::Control(Control::Close) => {
                    return Err(invalid(format!(
                        "the server closed the connection: {}",
                        String::from_utf8_lossy(content.get(2..).unwrap_or_default())
                    )));
                }
                OpCode::Control(_) => {}
            }
            used = begin + length;
        }
    }
}

/// Writes a text frame.
pub(crate) fn write_text(content: &[u8], out: &mut Vec<u8>) {
    write(OpCode::Data(Data::Text), content, out);
}

/// Writes a pong.
pub(crate) fn pong(content: &[u8], out: &mut Vec<u8>) {
    write(OpCode::Control(Control::Pong), content, out);
}

/// Writes a frame. Its mask is zero, which leaves the content unchanged.
fn write(opcode: OpCode, content: &[u8], out: &mut Vec<u8>) {
    let header = FrameHeader { opcode, mask: Some([0; 4]), ..FrameHeader::default() };
    // A Vec cannot fail.
    let _ = header.format(content.len() as u64, out);
    out.extend_from_slice(content);
}
