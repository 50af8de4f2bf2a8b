//! Reads some messages of one topic.

use std::{io, sync::Arc};

use msgbus_core::{
    BatchLimit,
    store::{RecoveredMessage, StoreError},
};

use crate::{
    disk::DiskFile,
    format::{
        Frame, LogRecord, Seal, frame,
        record::{MIN_SIZE, PREFIX},
    },
    index::Location,
    segments::Segments,
    topic::Topic,
};

/// Reads some messages of one topic. What stands close together is read at once.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    segments: &'a Segments,
    topic: &'a Topic,
    open: Option<Open>,
}

/// The segment that was read last, and a part of it.
#[derive(Debug)]
struct Open {
    number: u32,
    file: Arc<dyn DiskFile>,
    seal: Seal,
    len: u64,
    start: u64,
    buffer: Vec<u8>,
}

/// Why a message was not read.
#[derive(Debug)]
enum ReadError {
    /// It is not here any more: it was released, or compaction has moved it.
    Moved,
    /// What is here is not the message.
    Damaged,
    Io,
}

impl<'a> Page<'a> {
    /// How many locations are looked up at once.
    const LOOK_UP: usize = 1024;
    /// The maximum that is read at once before the length of the last message is known, in bytes.
    const BLOCK: u64 = 256 << 10;
    /// Messages that are further apart are read one by one.
    const NEAR: u64 = 16 << 10;
    /// What is read of a message whose length is not known, in bytes.
    const GUESS: u64 = 2 << 10;
    /// How often a message is looked up again after it has moved.
    const ATTEMPTS: usize = 16;

    pub(crate) fn new(segments: &'a Segments, topic: &'a Topic) -> Self {
        Self { segments, topic, open: None }
    }

    /// Reads from the first message with this or a higher id, up to a limit.
    pub(crate) fn read(
        mut self,
        from_id: u64,
        limit: BatchLimit,
    ) -> Result<Vec<RecoveredMessage>, StoreError> {
        let Some(number) = self.topic.progress.lock().written.number else { return Ok(Vec::new()) };
        let mut messages = Vec::new();
        let (mut bytes, mut next_id, mut attempts) = (0, from_id, 0);
        loop {
            let count = Self::LOOK_UP.min(limit.events.max(1) - messages.len());
            let places: Vec<_> = self.topic.index.lock().from(next_id).take(count).collect();
            if places.is_empty() {
                return Ok(messages);
            }
            for index in 0..places.len() {
                let id = places[index].0;
                match self.message(number, &places[index..]) {
                    Ok(message) => {
                        bytes += message.payload.len();
                        messages.push(message);
                    }
                    Err(ReadError::Moved) if attempts < Self::ATTEMPTS => {
                        attempts += 1;
                        next_id = id;
                        break;
                    }
                    Err(_) if messages.is_empty() => return Err(StoreError::Failed),
                    Err(_) => return Ok(messages),
                }
                if bytes >= limit.bytes || messages.len() >= limit.events {
                    return Ok(messages);
                }
                next_id = id + 1;
            }
        }
    }

    /// Reads the first of `places`.
    fn message(
        &mut self,
        topic: u32,
        places: &[(u64, Location)],
    ) -> Result<RecoveredMessage, ReadError> {
        let Some(&(id, location)) = places.first() else { return Err(ReadError::Moved) };
        let open = self.open(location.segment)?;
        let offset = location.offset();
        let (seed, room) = (open.seal.at(offset), open.len.saturating_sub(offset));
        let mut needs = MIN_SIZE as u64;
        loop {
            if !open.has(offset, needs) {
                open.fill(offset, needs.max(span(places))).map_err(|_| ReadError::Io)?;
            }
            let bytes = open.at(offset);
            let body = match frame(bytes, seed, room) {
                Frame::Incomplete { needs: more } => {
                    needs = more.max(PREFIX) as u64;
                    continue;
                }
                Frame::Record { body, .. } => body,
                Frame::Zero | Frame::Bad => return Err(ReadError::Damaged),
            };
            return match LogRecord::decode(body) {
                Ok(LogRecord::Message(message)) if message.id == id && message.topic == topic => {
                    message.recover().map_err(|_| ReadError::Damaged)
                }
                _ => Err(ReadError::Damaged),
            };
        }
    }

    fn open(&mut self, number: u32) -> Result<&mut Open, ReadError> {
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            let segment = self.segments.get(number).ok_or(ReadError::Moved)?;
            let file = self.segments.open(number).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => ReadError::Moved,
                _ => ReadError::Io,
            })?;
            let (seal, len) = (segment.seal, segment.header.len);
            self.open = Some(Open { number, file, seal, len, start: 0, buffer: Vec::new() });
        }
        self.open.as_mut().ok_or(ReadError::Moved)
    }
}

impl Open {
    /// Whether the buffer has `needs` bytes from `offset`, or all up to the end of the file.
    fn has(&self, offset: u64, needs: u64) -> bool {
        let end = (offset + needs).min(self.len);
        offset >= self.start && end <= self.start + self.buffer.len() as u64
    }

    /// Reads `length` bytes from `offset`, or up to the end of the file.
    fn fill(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let length = length.min(self.len.saturating_sub(offset));
        self.buffer.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
        self.start = offset;
        self.file.read_at(&mut self.buffer, offset).inspect_err(|_| self.buffer.clear())
    }

    /// The buffer from `offset` on.
    fn at(&self, offset: u64) -> &[u8] {
        let skipped = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
        self.buffer.get(skipped..).unwrap_or_default()
    }
}

/// How many bytes to read so that the messages that follow closely are read too.
fn span(places: &[(u64, Location)]) -> u64 {
    let Some(&(_, first)) = places.first() else { return 0 };
    let mut last = first;
    for &(_, next) in &places[1..] {
        let is_near = next.segment == last.segment
            && next.offset() > last.offset()
            && next.offset() - last.offset() <= Page::NEAR
            && next.offset() - first.offset() <= Page::BLOCK;
        if !is_near {
            break;
        }
        last = next;
    }
    last.offset() - first.offset() + Page::GUESS
}
