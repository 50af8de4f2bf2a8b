//! Standard input, read within bounds: a message that is small is read whole, so that it can be sent
//! again; a larger one is passed on in chunks, and memory holds only its beginning.

use std::time::Duration;

use bytes::Bytes;
use msgbus_core::format_duration;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Stdin, stdin},
    sync::mpsc::{Sender, error::SendTimeoutError},
};

use crate::failure::Failure;

/// The most of one message that is read before it is sent, in bytes.
const BUFFERED: usize = 2 << 20;
const CHUNK: usize = 64 << 10;

pub(crate) struct Input(BufReader<Stdin>);

/// A message, or as much of it as is read before it is sent.
pub(crate) enum Piece {
    /// A line has its end, unless it is the last one.
    Whole(Vec<u8>),
    /// The beginning of a message that goes on in the input.
    Long(Vec<u8>),
}

impl Piece {
    /// Bytes in memory.
    pub(crate) fn len(&self) -> usize {
        let (Self::Whole(bytes) | Self::Long(bytes)) = self;
        bytes.len()
    }
}

/// A part of a long message.
pub(crate) enum Chunk {
    Data(Bytes),
    /// Without it the message is not whole, and must not be published.
    End,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self(BufReader::with_capacity(CHUNK, stdin()))
    }

    /// All of the input.
    pub(crate) async fn all(&mut self) -> Result<Piece, Failure> {
        let mut bytes = Vec::new();
        let mut limited = (&mut self.0).take(BUFFERED as u64);
        limited.read_to_end(&mut bytes).await.map_err(unreadable)?;
        Ok(if bytes.len() < BUFFERED { Piece::Whole(bytes) } else { Piece::Long(bytes) })
    }

    /// The next line; `None` at the end of the input.
    pub(crate) async fn line(&mut self) -> Result<Option<Piece>, Failure> {
        let mut line = Vec::new();
        let mut limited = (&mut self.0).take(BUFFERED as u64);
        limited.read_until(b'\n', &mut line).await.map_err(unreadable)?;
        Ok(match line.last() {
            None => None,
            Some(b'\n') => Some(Piece::Whole(line)),
            Some(_) if line.len() < BUFFERED => Some(Piece::Whole(line)),
            Some(_) => Some(Piece::Long(line)),
        })
    }

    /// Passes the rest of a long message on: up to the end of the line, or of the input. Ends early
    /// when nobody takes it any more.
    ///
    /// # Errors
    /// When the input cannot be read, or a chunk is not taken for `limit`.
    pub(crate) async fn pass_on(
        &mut self,
        is_line: bool,
        chunks: &Sender<Chunk>,
        limit: Duration,
    ) -> Result<(), Failure> {
        // A carriage return belongs to the end of a line, if that is what follows.
        let mut held_return = false;
        loop {
            let bytes = self.0.fill_buf().await.map_err(unreadable)?;
            let end = bytes.iter().position(|byte| is_line && *byte == b'\n');
            let is_last = bytes.is_empty() || end.is_some();
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let used = end.map_or(bytes.len(), |end| end + 1);
            let mut data = Vec::with_capacity(part.len() + 1);
            if held_return && !(end.is_some() && part.is_empty()) {
                data.push(b'\r');
            }
            data.extend_from_slice(part);
            held_return = is_line && data.pop_if(|byte| *byte == b'\r').is_some();
            if held_return && bytes.is_empty() {
                data.push(b'\r');
            }
            self.0.consume(used);
            let is_taken = data.is_empty() || pass(chunks, Chunk::Data(data.into()), limit).await?;
            if is_last && is_taken {
                pass(chunks, Chunk::End, limit).await?;
            }
            if is_last || !is_taken {
                return Ok(());
            }
        }
    }
}

/// Whether the chunk is taken; when nobody is there to take it, it is not.
async fn pass(chunks: &Sender<Chunk>, chunk: Chunk, limit: Duration) -> Result<bool, Failure> {
    match chunks.send_timeout(chunk, limit).await {
        Ok(()) => Ok(true),
        Err(SendTimeoutError::Closed(_)) => Ok(false),
        Err(SendTimeoutError::Timeout(_)) => {
            let limit = format_duration(limit);
            Err(Failure::Other(format!(
                "the server read nothing for {limit}; nothing was published"
            )))
        }
    }
}

/// A line without its end.
pub(crate) fn without_end(mut line: Vec<u8>) -> Vec<u8> {
    if line.pop_if(|byte| *byte == b'\n').is_some() {
        line.pop_if(|byte| *byte == b'\r');
    }
    line
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreadable(error: std::io::Error) -> Failure {
    Failure::Other(format!("cannot read standard input: {error}"))
}
