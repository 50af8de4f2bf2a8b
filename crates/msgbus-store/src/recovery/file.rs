//! One segment while a log is read.

use std::{io, path::PathBuf, sync::Arc};

use super::Replay;
use crate::{
    disk::{Access, ClosableFile, Disk, DiskFile},
    error::OpenError,
    format::{
        DecodeError, LogRecord, SegmentHeader,
        record::{self, END_SIZE},
        segment::HeaderError,
    },
    scan::{Found, Scanner},
    segments::Segment,
    tail::OpenSegment,
};

/// One segment while a log is read.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
    pub(crate) open: OpenSegment,
    /// The same file.
    closable: Arc<ClosableFile>,
    pub(crate) scanner: Scanner,
    /// Up to which offset it was synced, as far as its records say.
    synced: u64,
    has_copy: bool,
}

/// Why no further record was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The segment was ended by its last record.
    Ended,
    /// Zeros follow.
    Nothing,
    /// Something follows that is no record.
    Bad,
    /// The record is good, but it cannot be.
    Contradiction,
}

impl SegmentFile {
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        number: u32,
        access: Access,
    ) -> Result<Self, OpenError> {
        let path = disk.path(number);
        let failed = |error| OpenError::io(&path, error);
        let closable = Arc::new(ClosableFile::new(Arc::clone(disk), number, access));
        let file = Arc::clone(&closable) as Arc<dyn DiskFile>;
        let damaged = |problem: &str| OpenError::Damaged {
            file: path.clone(),
            offset: 0,
            problem: problem.to_owned(),
            can_repair: false,
        };
        if file.len().map_err(failed)? < SegmentHeader::END {
            return Err(damaged("the file is too short for its header"));
        }
        let mut header = [0; SegmentHeader::SIZE];
        file.read_at(&mut header, 0).map_err(failed)?;
        let header = match SegmentHeader::decode(&header) {
            Ok(header) if header.number == number => header,
            Ok(_) => return Err(damaged("its header has the number of another file")),
            Err(HeaderError::NotASegment) => return Err(damaged("it has no valid header")),
            Err(HeaderError::NewerVersion(found)) => {
                let supported = SegmentHeader::VERSION;
                return Err(OpenError::NewerVersion { file: path, found, supported });
            }
        };
        let segment = Arc::new(Segment::new(header));
        let scanner = Scanner::new(Arc::clone(&file), segment.seal).map_err(failed)?;
        Ok(Self {
            disk: Arc::clone(disk),
            open: OpenSegment { segment, file },
            closable,
            path,
            scanner,
            synced: SegmentHeader::END,
            has_copy: false,
        })
    }

    /// Closes the file, until it is used again.
    pub(crate) fn close(&mut self) {
        self.scanner.forget();
        self.closable.close();
    }

    /// Whether this follows on `other`.
    pub(crate) fn check_predecessor(&self, other: &Self) -> Result<(), OpenError> {
        let (header, before) = (self.open.segment.header, other.open.segment.header);
        let damaged = |file, problem: &str| {
            let problem = problem.to_owned();
            Err(OpenError::Damaged { file, offset: 0, problem, can_repair: false })
        };
        if header.store_id != before.store_id {
            return damaged(self.path.clone(), "it belongs to another store");
        }
        // No number is the last one, so this does not overflow.
        if header.number - 1 != before.number {
            return damaged(self.disk.path(header.number - 1), "it is missing");
        }
        Ok(())
    }

    /// Whether there is no record.
    pub(crate) fn is_empty(&self) -> bool {
        self.scanner.offset() == SegmentHeader::END
    }

    /// Whether there is a next file now.
    pub(crate) fn has_successor(&self) -> Result<bool, OpenError> {
        let numbers = self.disk.list().map_err(|error| self.error(error))?;
        Ok(numbers.last().is_some_and(|last| *last > self.open.segment.number()))
    }

    pub(crate) fn error(&self, error: io::Error) -> OpenError {
        OpenError::io(&self.path, error)
    }

    /// Applies the next record. Returns why there is none.
    pub(crate) fn replay_record(
        &mut self,
        replay: &mut Replay,
    ) -> Result<Option<Outcome>, OpenError> {
        let offset = self.scanner.offset();
        let found = self.scanner.peek().map_err(|error| OpenError::io(&self.path, error))?;
        let (body, size) = match found {
            Found::Record { body, size } => (body, size),
            Found::Nothing => return Ok(Some(Outcome::Nothing)),
            Found::Bad => return Ok(Some(Outcome::Bad)),
        };
        let applied = LogRecord::decode(body).and_then(|record| {
            replay.apply(&record, &self.open.segment, offset, size)?;
            Ok((record.synced(), matches!(record, LogRecord::End { .. })))
        });
        match applied {
            Err(DecodeError::UnknownKind(kind)) => {
                Err(OpenError::UnknownRecord { file: self.path.clone(), offset, kind })
            }
            Err(DecodeError::Malformed) => Ok(Some(Outcome::Contradiction)),
            Ok((synced, ends)) => {
                self.synced = self.synced.max(synced.unwrap_or(0));
                self.scanner.seek(offset + size as u64);
                Ok(ends.then_some(Outcome::Ended))
            }
        }
    }

    /// Whether what stands at the offset may never have been good, if nothing was written to later segments.
    pub(crate) fn is_torn(&mut self) -> Result<bool, OpenError> {
        let synced = self.scanner.was_synced();
        synced.map(|synced| !synced).map_err(|error| self.error(error))
    }

    /// The number of bytes from the offset up to the last one that is not zero.
    pub(crate) fn rest(&mut self) -> Result<u64, OpenError> {
        self.scanner.rest().map_err(|error| OpenError::io(&self.path, error))
    }

    /// Whether there is a record at the offset, if it is read again.
    pub(crate) fn has_record_now(&mut self) -> Result<bool, OpenError> {
        self.scanner.forget();
        let found = self.scanner.peek().map_err(|error| OpenError::io(&self.path, error))?;
        Ok(matches!(found, Found::Record { .. }))
    }

    /// Copies the records from the beginning on to another disk.
    pub(crate) fn copy_to(&mut self, target: &dyn Disk) -> io::Result<()> {
        self.scanner.forget();
        self.scanner.seek(SegmentHeader::END);
        while let Found::Record { size, .. } = self.scanner.peek()? {
            self.scanner.seek(self.scanner.offset() + size as u64);
        }
        let header = self.open.segment.header;
        let copy = target.create(header.number, header.len, &header.encode())?;
        Self::in_parts(SegmentHeader::END, self.scanner.offset(), |part, offset| {
            self.open.file.read_at(part, offset)?;
            copy.write_at(part, offset)
        })?;
        copy.sync()
    }

    /// Whether there is a record at or after the offset.
    pub(crate) fn has_record(&mut self) -> Result<bool, OpenError> {
        self.scanner.has_record().map_err(|error| OpenError::io(&self.path, error))
    }

    /// Removes what stands at the offset and after it, and makes certain that what stands before it is on the disk: the
    /// last run may have ended between a write and its sync.
    pub(crate) fn clean_tail(&mut self) -> Result<(), OpenError> {
        let offset = self.scanner.offset();
        let rest = self.rest()?;
        let result = self.rewrite(self.synced, offset).and_then(|()| {
            self.write_zeros(offset, offset + rest)?;
            self.open.file.sync()
        });
        result.map_err(|error| self.error(error))
    }

    /// Writes a part of the file again. After a failed sync, the kernel may believe that it is on the disk.
    fn rewrite(&self, from: u64, to: u64) -> io::Result<()> {
        Self::in_parts(from, to, |part, offset| {
            self.open.file.read_at(part, offset)?;
            self.open.file.write_at(part, offset)
        })
    }

    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        Self::in_parts(from, to, |part, offset| {
            part.fill(0);
            self.open.file.write_at(part, offset)
        })
    }

    fn in_parts(
        from: u64,
        to: u64,
        mut each: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        const PART: u64 = 1 << 20;
        let mut buffer = Vec::new();
        let mut offset = from;
        while offset < to {
            let length = PART.min(to - offset);
            buffer.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
            each(&mut buffer, offset)?;
            offset += length;
        }
        Ok(())
    }

    /// Keeps a copy of the file as it was found.
    pub(crate) fn keep_copy(&mut self) -> Result<(), OpenError> {
        if !self.has_copy {
            let number = self.open.segment.number();
            self.disk.keep_copy(number).map_err(|error| self.error(error))?;
            self.has_copy = true;
        }
        Ok(())
    }

    /// Gives the file its length back.
    pub(crate) fn extend(&mut self) -> Result<(), OpenError> {
        let header = self.open.segment.header;
        let extended = self.open.file.set_len(header.len).and_then(|()| {
            self.scanner = Scanner::new(Arc::clone(&self.open.file), self.open.segment.seal)?;
            Ok(())
        });
        extended.map_err(|error| self.error(error))
    }

    /// Puts a record over what cannot be read.
    pub(crate) fn write_hole(&self, from: u64, to: u64) -> Result<(), OpenError> {
        let size = usize::try_from(to - from).unwrap_or(usize::MAX);
        self.write(from, |out, seed| record::encode_hole(out, seed, size))
    }

    /// Ends the segment at the offset.
    pub(crate) fn write_end(&mut self) -> Result<(), OpenError> {
        let offset = self.scanner.offset().min(self.open.segment.header.len - END_SIZE);
        let rest = self.rest()?;
        self.write_zeros(offset, self.scanner.offset() + rest)
            .map_err(|error| self.error(error))?;
        self.write(offset, |out, seed| record::encode_end(out, seed, offset))
    }

    fn write(&self, offset: u64, encode: impl FnOnce(&mut Vec<u8>, u32)) -> Result<(), OpenError> {
        let mut bytes = Vec::new();
        encode(&mut bytes, self.open.segment.seal.at(offset));
        let file = &self.open.file;
        let written = file.write_at(&bytes, offset).and_then(|()| file.sync());
        written.map_err(|error| self.error(error))
    }
}
