//! Standard input, read in bounded memory: a small message is buffered, so that it can be sent again;
//! a larger one is streamed in chunks.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use bytes::Bytes;
use msgbus_core::format_duration;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Stdin, stdin},
    sync::mpsc::{Sender, error::SendTimeoutError},
};

use crate::{failure::Failure, output::note};

/// How much of a message is buffered before it is sent, in bytes. Larger messages are streamed.
const BUFFERED: usize = 2 << 20;
const CHUNK: usize = 64 << 10;

pub(crate) struct Input(BufReader<Stdin>);

/// A message, or the buffered beginning of a large one.
pub(crate) enum Piece {
    /// A complete message. A line includes its line break, which may be missing in the last one.
    Whole(Vec<u8>),
    /// The beginning of a message whose rest is still in the input.
    Long(Vec<u8>),
}

impl Piece {
    /// The number of buffered bytes.
    pub(crate) fn len(&self) -> usize {
        let (Self::Whole(bytes) | Self::Long(bytes)) = self;
        bytes.len()
    }
}

/// A part of a streamed message.
pub(crate) enum Chunk {
    Data(Bytes),
    /// Marks the message as complete. Without it, the message must not be published.
    End,
}

/// Reads all of standard input, up to `limit` bytes.
///
/// # Errors
/// `what` is longer, or cannot be read.
pub(crate) async fn whole(what: &str, limit: usize) -> Result<Vec<u8>, Failure> {
    if io::stdin().is_terminal() {
        note(&format!("reading {what} from the terminal; end it with Ctrl-D"));
    }
    let mut bytes = Vec::new();
    stdin().take(limit as u64 + 1).read_to_end(&mut bytes).await.map_err(unreadable)?;
    if bytes.len() > limit {
        return Err(Failure::Other(format!("{what} has more than {} MiB", limit >> 20)));
    }
    Ok(bytes)
}

impl Input {
    pub(crate) fn new() -> Self {
        Self(BufReader::with_capacity(CHUNK, stdin()))
    }

    /// Reads all of the input as one message.
    pub(crate) async fn all(&mut self) -> Result<Piece, Failure> {
        let mut bytes = Vec::new();
        let mut limited = (&mut self.0).take(BUFFERED as u64);
        limited.read_to_end(&mut bytes).await.map_err(unreadable)?;
        Ok(if bytes.len() < BUFFERED { Piece::Whole(bytes) } else { Piece::Long(bytes) })
    }

    /// Reads the next line; `None` at the end of the input.
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

    /// Whether the next line can be read without waiting for input.
    pub(crate) fn has_line(&self) -> bool {
        self.0.buffer().contains(&b'\n')
    }

    /// Reads the rest of a long line into memory, up to `limit` bytes of the line in all. The line has no
    /// line break if it is longer, or if it is the last one.
    pub(crate) async fn rest_of_line(
        &mut self,
        line: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(), Failure> {
        let mut limited = (&mut self.0).take(limit.saturating_sub(line.len()) as u64);
        limited.read_until(b'\n', line).await.map_err(unreadable)?;
        Ok(())
    }

    /// Streams the rest of a long message to `chunks`, up to the end of the line or of the input.
    /// Returns early if the receiver is dropped.
    ///
    /// # Errors
    /// The input cannot be read, or the receiver takes no chunk for `limit`.
    pub(crate) async fn pass_on(
        &mut self,
        is_line: bool,
        chunks: &Sender<Chunk>,
        limit: Duration,
    ) -> Result<(), Failure> {
        // A carriage return is held back: before a line feed it is part of the line break.
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

/// Sends a chunk. Returns false if the receiver has been dropped.
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

/// Strips the line break.
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
