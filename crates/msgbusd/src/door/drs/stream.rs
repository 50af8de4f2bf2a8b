//! Finds the commands in a stream of JSON objects, which follow each other with or without white space between them.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
};

use memchr::memchr2;
use thiserror::Error;
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

use crate::service::code::Code;

/// The deepest nesting of objects and arrays in a command.
pub(super) const MAX_DEPTH: usize = 128;
/// The minimum space for a read, in bytes.
const READ: usize = 8 << 10;

/// Why a stream cannot be read any further. The text is for the peer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Malformed {
    #[error("Malformed command: expected a JSON object")]
    NotAnObject,
    #[error("Malformed command: {0}")]
    Json(String),
    #[error("Command too large: at most {max} bytes are read")]
    TooLarge { max: usize },
    #[error("Command nested too deeply: at most {MAX_DEPTH} levels are read")]
    TooDeep,
    #[error("The rest of a command did not arrive in time")]
    Unfinished,
    #[error("Too much memory is in use: retry shortly")]
    NoMemory,
}

impl Malformed {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::NotAnObject | Self::Json(_) | Self::TooDeep => Code::BadJson,
            Self::TooLarge { .. } => Code::PayloadTooLarge,
            Self::Unfinished => Code::BodyTimeout,
            Self::NoMemory => Code::TooMuchInFlight,
        }
    }
}

/// The bytes of a peer that are not handled yet, and how far they were looked at: each byte is looked at once, also when
/// they arrive one by one.
#[derive(Debug)]
pub(super) struct Commands {
    /// The maximum size of a command, in bytes.
    max: usize,
    bytes: Vec<u8>,
    /// Everything before this is handled.
    start: usize,
    scan: Scan,
    /// The number of bytes that were handled and freed.
    freed: usize,
}

/// The state of the search for the end of a command.
#[derive(Debug, Default)]
struct Scan {
    /// The bytes before this were looked at.
    at: usize,
    depth: usize,
    is_in_string: bool,
}

impl Commands {
    pub(super) fn new(max: usize) -> Self {
        Self { max, bytes: Vec::new(), start: 0, scan: Scan::default(), freed: 0 }
    }

    /// Adds what has arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Reads what has arrived. Ready with the number of bytes, which is 0 at the end of the stream.
    pub(super) fn poll_fill(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.bytes.reserve(READ);
        poll_read_buf(Pin::new(stream), cx, &mut self.bytes)
    }

    /// The place of the next command, if all of it has arrived.
    pub(super) fn next(&mut self) -> Result<Option<Range<usize>>, Malformed> {
        if self.scan.depth == 0 {
            let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
            let blanks = self.bytes[self.start..].iter().take_while(|byte| blank(byte)).count();
            self.start += blanks;
            self.scan.at = self.start;
            match self.bytes.get(self.start) {
                None | Some(b'{') => {}
                Some(_) => return Err(Malformed::NotAnObject),
            }
        }
        // One byte more than there may be shows that a command is too large, however its bytes arrive.
        let end = self.bytes.len().min(self.start + self.max + 1);
        let is_whole = self.scan.run(&self.bytes[..end])?;
        let length = if is_whole { self.scan.at } else { end } - self.start;
        if length > self.max {
            return Err(Malformed::TooLarge { max: self.max });
        }
        if !is_whole {
            return Ok(None);
        }
        let command = self.start..self.scan.at;
        self.start = self.scan.at;
        Ok(Some(command))
    }

    pub(super) fn get(&self, command: Range<usize>) -> &[u8] {
        &self.bytes[command]
    }

    /// How much has arrived of a command that is not whole, in bytes.
    pub(super) fn unfinished(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The number of bytes that have arrived so far.
    pub(super) fn total(&self) -> usize {
        self.freed.wrapping_add(self.bytes.len())
    }

    /// Frees what is handled. Returns the memory that is left, in bytes.
    pub(super) fn rest(&mut self) -> usize {
        self.bytes.drain(..self.start);
        self.scan.at -= self.start;
        self.freed = self.freed.wrapping_add(self.start);
        self.start = 0;
        if self.bytes.is_empty() || self.bytes.capacity() > 4 * (self.bytes.len() + READ) {
            self.bytes.shrink_to(self.bytes.len());
        }
        self.bytes.capacity()
    }
}

impl Scan {
    /// Looks at the bytes up to the end of a command, and returns whether it has arrived.
    fn run(&mut self, bytes: &[u8]) -> Result<bool, Malformed> {
        while let Some(byte) = bytes.get(self.at) {
            if self.is_in_string {
                let Some(next) = memchr2(b'"', b'\\', &bytes[self.at..]) else {
                    self.at = bytes.len();
                    break;
                };
                self.at += next;
                if bytes[self.at] == b'"' {
                    self.is_in_string = false;
                    self.at += 1;
                } else if self.at + 1 == bytes.len() {
                    break;
                } else {
                    self.at += 2;
                }
                continue;
            }
            self.at += 1;
            match byte {
                b'"' => self.is_in_string = true,
                b'{' | b'[' if self.depth == MAX_DEPTH => return Err(Malformed::TooDeep),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(true);
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }
}

/// Whether valid JSON has at most [`MAX_DEPTH`] levels.
pub(super) fn is_shallow(json: &[u8]) -> bool {
    // One level is the command around it.
    let mut scan = Scan { depth: 1, ..Scan::default() };
    scan.run(json).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &[u8], piece: usize) -> Result<Vec<String>, Malformed> {
        let mut commands = Commands::new(300);
        let mut found = Vec::new();
        for piece in text.chunks(piece) {
            commands.push(piece);
            while let Some(command) = commands.next()? {
                found.push(String::from_utf8(commands.get(command).to_vec()).unwrap());
            }
            commands.rest();
        }
        assert_eq!(commands.unfinished(), commands.bytes.len());
        Ok(found)
    }

    #[test]
    fn commands_are_found_however_they_arrive() {
        let text = br#" {"a":"}\"\\"}{}
            {"b":[{"c":"["},1]}  {"half":"\"#;
        for piece in 1..text.len() {
            let found = split(text, piece).unwrap();
            assert_eq!(found, [r#"{"a":"}\"\\"}"#, "{}", r#"{"b":[{"c":"["},1]}"#], "{piece}");
        }
    }

    #[test]
    fn what_cannot_be_a_command_is_refused_early() {
        let deep = |depth: usize| "{\"a\":".to_owned() + &"[".repeat(depth);
        let long = format!("{{\"a\":\"{}", "x".repeat(300));
        for (text, expected) in [
            ("x", Malformed::NotAnObject),
            ("{} [", Malformed::NotAnObject),
            ("null", Malformed::NotAnObject),
            (&deep(MAX_DEPTH), Malformed::TooDeep),
            (&long, Malformed::TooLarge { max: 300 }),
        ] {
            for piece in [1, 7, 1000] {
                assert_eq!(split(text.as_bytes(), piece), Err(expected.clone()), "{text}");
            }
        }
        assert_eq!(split(deep(MAX_DEPTH - 1).as_bytes(), 1), Ok(Vec::new()));
    }
}
