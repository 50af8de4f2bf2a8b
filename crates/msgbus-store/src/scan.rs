//! Reads the records of one segment, in order.

use std::{io, sync::Arc};

use crate::{
    disk::DiskFile,
    format::{
        Frame, LogRecord, Seal, SegmentHeader, frame,
        record::{ALIGNMENT, MIN_SIZE},
    },
};

/// Reads a segment from front to back, with a buffer that holds a part of it.
#[derive(Debug)]
pub(crate) struct Scanner {
    file: Arc<dyn DiskFile>,
    seal: Seal,
    /// The size of the file in bytes.
    len: u64,
    /// Where the next record begins.
    offset: u64,
    /// What was read of the file, from `start` on.
    buffer: Vec<u8>,
    start: u64,
}

/// What stands at an offset of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// A record with a valid checksum, and its size with padding in bytes.
    Record { body: &'a [u8], size: usize },
    /// Zeros, or the end of the file.
    Nothing,
    /// Neither.
    Bad,
}

impl Scanner {
    const CHUNK: u64 = 1 << 20;

    /// Begins at the first record.
    pub(crate) fn new(file: Arc<dyn DiskFile>, seal: Seal) -> io::Result<Self> {
        let len = file.len()?;
        let offset = SegmentHeader::END;
        Ok(Self { file, seal, len, offset, buffer: Vec::new(), start: offset })
    }

    /// Where the next record begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The size of the file in bytes.
    pub(crate) fn file_len(&self) -> u64 {
        self.len
    }

    /// Moves to another offset.
    pub(crate) fn seek(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// Gives the buffer back.
    pub(crate) fn forget(&mut self) {
        self.start = self.offset;
        self.buffer = Vec::new();
    }

    /// Looks at what stands at the offset.
    pub(crate) fn peek(&mut self) -> io::Result<Found<'_>> {
        let room = self.len.saturating_sub(self.offset);
        let at = self.fill(MIN_SIZE as u64)?;
        let claimed = claimed_size(&self.buffer[at..]);
        let at = self.fill(if claimed <= room { claimed } else { MIN_SIZE as u64 })?;
        Ok(match frame(&self.buffer[at..], self.seal.at(self.offset), room) {
            Frame::Record { body, size } => Found::Record { body, size },
            Frame::Zero => Found::Nothing,
            Frame::Bad | Frame::Incomplete { .. } => Found::Bad,
        })
    }

    /// Returns where the offset is in the buffer, which then holds `needs` bytes from there, or up to the end of the
    /// file.
    fn fill(&mut self, needs: u64) -> io::Result<usize> {
        let end = self.len.min(self.offset.saturating_add(needs));
        let buffered = self.start..=self.start + self.buffer.len() as u64;
        if !buffered.contains(&self.offset) {
            self.start = self.offset.min(self.len);
            self.buffer.clear();
        }
        if end > self.start + self.buffer.len() as u64 {
            let passed = usize::try_from(self.offset - self.start).unwrap_or(usize::MAX);
            self.buffer.drain(..passed.min(self.buffer.len()));
            self.start = self.offset;
            let kept = self.buffer.len();
            let wanted = needs.max(Self::CHUNK);
            let wanted = wanted.min(self.len - self.start);
            self.buffer.resize(usize::try_from(wanted).unwrap_or(usize::MAX), 0);
            if let Err(error) =
                self.file.read_at(&mut self.buffer[kept..], self.start + kept as u64)
            {
                self.buffer.truncate(kept);
                return Err(error);
            }
        }
        Ok(usize::try_from(self.offset.saturating_sub(self.start))
            .unwrap_or(usize::MAX)
            .min(self.buffer.len()))
    }

    /// Whether a record after the offset says that the offset had been synced. Then what stands here was damaged
    /// later. Otherwise a crash may have taken it before anybody relied on it.
    pub(crate) fn was_synced(&mut self) -> io::Result<bool> {
        let damaged = self.offset;
        let mut proof = false;
        self.search(
            damaged + ALIGNMENT as u64,
            |body| {
                let synced = LogRecord::decode(body).ok().and_then(|record| record.synced());
                proof = synced.is_some_and(|synced| synced > damaged);
                proof
            },
            &LogRecord::MARK_SIZES,
        )?;
        self.offset = damaged;
        Ok(proof)
    }

    /// Moves from a bad record to the next good one, or to the end of the file if there is none.
    pub(crate) fn skip_damage(&mut self) -> io::Result<()> {
        let from = self.offset + MIN_SIZE as u64;
        let found = self.search(from, |body| LogRecord::decode(body).is_ok(), &[])?;
        self.offset = found.unwrap_or(self.len);
        Ok(())
    }

    /// Whether there is a good record at or after the offset.
    pub(crate) fn has_record(&mut self) -> io::Result<bool> {
        let before = self.offset;
        let found = self.search(before, |body| LogRecord::decode(body).is_ok(), &[])?;
        self.offset = before;
        Ok(found.is_some())
    }

    /// Finds the first offset from `from` on where a record stands that is `wanted`. `sizes` are those that it may
    /// have, in bytes with padding; none are all.
    fn search(
        &mut self,
        from: u64,
        mut wanted: impl FnMut(&[u8]) -> bool,
        sizes: &[usize],
    ) -> io::Result<Option<u64>> {
        // Bytes that look like the lengths of large records must not take forever.
        let mut budget = self.len.saturating_mul(16);
        let mut offset = from;
        while offset + MIN_SIZE as u64 <= self.len {
            self.offset = offset;
            offset += ALIGNMENT as u64;
            let at = self.fill(MIN_SIZE as u64)?;
            let size = claimed_size(&self.buffer[at..]);
            let fits = size >= MIN_SIZE as u64 && size <= self.len - self.offset;
            let size_is_wanted =
                sizes.is_empty() || sizes.iter().any(|wanted| *wanted as u64 == size);
            if !fits || !size_is_wanted || size > budget {
                continue;
            }
            budget -= size;
            if let Found::Record { body, .. } = self.peek()?
                && wanted(body)
            {
                return Ok(Some(self.offset));
            }
        }
        Ok(None)
    }

    /// The number of bytes from the offset up to the last one that is not zero.
    pub(crate) fn rest(&mut self) -> io::Result<u64> {
        static ZEROS: [u8; 4096] = [0; 4096];
        let before = self.offset;
        let mut end = before;
        while self.offset < self.len {
            let at = self.fill(1)?;
            let rest = &self.buffer[at..];
            for (part, start) in rest.chunks(ZEROS.len()).zip((0..).step_by(ZEROS.len())) {
                if *part != ZEROS[..part.len()]
                    && let Some(last) = part.iter().rposition(|byte| *byte != 0)
                {
                    end = self.offset + (start + last) as u64 + 1;
                }
            }
            self.offset += rest.len() as u64;
        }
        self.offset = before;
        Ok(end - before)
    }
}

/// The size of the record that may begin here, in bytes with padding; 0 if there are too few bytes.
fn claimed_size(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some([_, _, _, _, length @ ..]) => {
            (u64::from(u32::from_le_bytes(*length)) + 8).next_multiple_of(ALIGNMENT as u64)
        }
        None => 0,
    }
}
