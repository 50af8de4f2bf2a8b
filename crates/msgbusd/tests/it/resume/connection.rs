//! A connection as a client sees it: frames, events or lines.

use std::{io::BufRead as _, time::Duration};

use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Websocket,
    Sse,
    Ndjson,
    Raw,
}

pub(super) struct Wire {
    pub(super) door: Door,
    pub(super) stream: TcpStream,
    /// The received bytes, and those without the framing of HTTP or the websocket.
    pub(super) bytes: Vec<u8>,
    pub(super) text: Vec<u8>,
    pub(super) is_over: bool,
}

impl Wire {
    /// Waits up to 50 ms for more bytes; `false` at the end of the connection.
    pub(super) async fn read(&mut self) -> bool {
        const READ_TIMEOUT: Duration = Duration::from_millis(50);
        let read = timeout(READ_TIMEOUT, self.stream.read_buf(&mut self.bytes)).await;
        !self.is_over && !matches!(read, Ok(Ok(0) | Err(_)))
    }

    pub(super) async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(head) = take_until(&mut self.bytes, b"\r\n\r\n") {
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// The next whole line or, in SSE, event.
    pub(super) fn entry(&mut self) -> Option<String> {
        let end: &[u8] = if self.door == Door::Sse { b"\n\n" } else { b"\n" };
        loop {
            if let Some(entry) = take_until(&mut self.text, end) {
                return Some(String::from_utf8(entry).unwrap());
            }
            let part = if self.door == Door::Websocket { self.frame()? } else { self.chunk()? };
            self.text.extend(part);
        }
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
        let (start, size) = match *self.bytes.get(1)? {
            126 => (4, usize::from(u16::from_be_bytes(self.bytes.get(2..4)?.try_into().unwrap()))),
            127 => (10, self.bytes.get(2..10)?.iter().fold(0, |n, b| n << 8 | usize::from(*b))),
            size => (2, usize::from(size)),
        };
        let payload = self.bytes.get(start..start + size)?.to_vec();
        match self.bytes[0] {
            0x81 => {}
            0x88 if payload.starts_with(&1001_u16.to_be_bytes()) => self.is_over = true,
            other => panic!("a frame that begins with {other:#x}: {payload:?}"),
        }
        self.bytes.drain(..start + size);
        if self.is_over { None } else { Some(payload) }
    }

    fn chunk(&mut self) -> Option<Vec<u8>> {
        let end = self.bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&self.bytes[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let start = end + 2;
        let chunk =
            self.bytes.get(start..start + size + 2)?.strip_suffix(b"\r\n").unwrap().to_vec();
        self.bytes.drain(..start + size + 2);
        self.is_over = size == 0;
        if self.is_over { None } else { Some(chunk) }
    }
}

/// Takes the bytes before `end`, which ends with a line feed, and drops `end`.
fn take_until(bytes: &mut Vec<u8>, end: &[u8]) -> Option<Vec<u8>> {
    let (mut taken, mut rest) = (Vec::new(), &bytes[..]);
    while !taken.ends_with(end) {
        if rest.read_until(b'\n', &mut taken).unwrap() == 0 {
            return None;
        }
    }
    bytes.drain(..taken.len());
    taken.truncate(taken.len() - end.len());
    Some(taken)
}

pub(super) fn header(head: &str, name: &str) -> Option<u64> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok())
}

pub(super) fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_suffix(after)
}
