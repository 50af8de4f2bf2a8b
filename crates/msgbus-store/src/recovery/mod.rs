//! Reads a log from its beginning to its end, and decides what to do about what cannot be read.
//!
//! - **A torn tail** is what a crash left of a write that nobody was told about. It can only be at the end of the newest
//!   segment with records. Any part of the write may be missing, so good records may follow a bad one. It is removed.
//! - **Damage** is everything else. Records say how far the log was synced when they were written. If one after a bad
//!   place says that it was synced, then it was good once. Damage is never removed without being asked for.

mod file;
mod groups;
mod replay;

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

pub(crate) use self::{
    file::{Outcome, SegmentFile},
    replay::{FoundTopic, Replay},
};
use crate::{
    disk::{Access, Disk},
    error::OpenError,
    format::record::END_SIZE,
    options::Progress,
    segments::Segments,
    stats::{Damage, RecoveryReport},
    tail::{BootId, OpenSegment},
};

/// How to read a log.
#[derive(Clone, Default)]
pub(crate) struct Mode {
    /// Removes torn tails, and writes what makes the log complete again.
    pub(crate) writes: bool,
    /// Skips damage. If the log is written to, the damage is removed.
    pub(crate) skips_damage: bool,
    pub(crate) keeps_messages: bool,
    pub(crate) boot: Option<BootId>,
    pub(crate) progress: Option<Progress>,
}

/// A log that was read.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) replay: Replay,
    pub(crate) segments: Arc<Segments>,
    /// Where the log ends. `None` if there are no segments.
    pub(crate) end: Option<End>,
    pub(crate) report: RecoveryReport,
}

/// Where a log ends.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) segment: OpenSegment,
    pub(crate) offset: u64,
    /// The segments after it, which are empty.
    pub(crate) spares: VecDeque<OpenSegment>,
}

/// Reads a log.
pub(crate) fn recover(disk: &Arc<dyn Disk>, mode: &Mode) -> Result<Recovery, OpenError> {
    let start = Instant::now();
    let mut files = open_all(disk, mode)?;
    let segments = Arc::new(Segments::new(Arc::clone(disk)));
    for file in &files {
        segments.insert(Arc::clone(&file.open.segment));
    }
    let mut reading = Reading {
        replay: Replay::new(mode.keeps_messages),
        report: RecoveryReport { segments: files.len(), ..RecoveryReport::default() },
        total: files.iter().map(|file| file.open.segment.header.len).sum(),
        mode,
    };
    let end = reading.read(&mut files)?;
    let Reading { mut replay, mut report, .. } = reading;
    report.was_clean = replay.is_stopped;
    let same_boot = mode.boot.is_some() && replay.boot == mode.boot;
    report.after_power_cut = !replay.is_stopped && (!same_boot || report.torn_tail.is_some());
    replay.finish(report.after_power_cut);
    report.records = replay.records;
    report.topics = replay.topics.len();
    report.messages = replay.topics.values().map(|topic| topic.len() as u64).sum();
    report.groups = replay.topics.values().map(|topic| topic.groups.len()).sum();
    report.open_messages = replay.topics.values().map(|topic| topic.groups.open()).sum();
    report.refused_names = replay.refused_names();
    report.time = start.elapsed();
    let end = end.map(|(index, offset)| {
        let mut open = files.into_iter().skip(index).map(|file| file.open);
        open.next().map(|segment| End { segment, offset, spares: open.collect() })
    });
    Ok(Recovery { replay, segments, end: end.flatten(), report })
}

/// Opens all segments, oldest first.
fn open_all(disk: &Arc<dyn Disk>, mode: &Mode) -> Result<Vec<SegmentFile>, OpenError> {
    let access = if mode.writes { Access::Write } else { Access::Read };
    if mode.writes {
        // The last run may have ended before it did.
        disk.sync_dir().map_err(|error| OpenError::io(disk.path(0), error))?;
    }
    let numbers = disk.list().map_err(|error| OpenError::io(disk.path(0), error))?;
    let mut files: Vec<SegmentFile> = Vec::with_capacity(numbers.len());
    for number in numbers {
        if let Some(last) = files.last_mut() {
            last.close();
        }
        let file = match SegmentFile::open(disk, number, access) {
            // A running server may have removed it meanwhile.
            Err(OpenError::Io { error, .. })
                if !mode.writes && error.kind() == io::ErrorKind::NotFound =>
            {
                continue;
            }
            file => file?,
        };
        if let Some(last) = files.last() {
            file.check_predecessor(last)?;
        }
        files.push(file);
    }
    Ok(files)
}

/// Opens all segments for reading, oldest first, and keeps them open.
pub(crate) fn open_for_copy(disk: &Arc<dyn Disk>) -> Result<Vec<SegmentFile>, OpenError> {
    let mut files: Vec<SegmentFile> = Vec::new();
    for number in disk.list().map_err(|error| OpenError::io(disk.path(0), error))? {
        match SegmentFile::open(disk, number, Access::Read) {
            // It was removed meanwhile, so it is not needed.
            Err(OpenError::Io { error, .. })
                if files.is_empty() && error.kind() == io::ErrorKind::NotFound => {}
            file => files.push(file?),
        }
    }
    Ok(files)
}

/// A log that is being read.
struct Reading<'a> {
    replay: Replay,
    report: RecoveryReport,
    /// The sizes of all files, in bytes.
    total: u64,
    mode: &'a Mode,
}

/// How the reading of a file goes on.
enum Step {
    /// With the next records.
    Record,
    /// With the next file.
    File,
    /// Not: the log ends here.
    End,
}

impl Reading<'_> {
    /// Reads all files. Returns which is the last one with records, and where they end.
    fn read(&mut self, files: &mut [SegmentFile]) -> Result<Option<(usize, u64)>, OpenError> {
        for file in &mut *files {
            self.check_length(file)?;
        }
        for index in 0..files.len() {
            let Some((file, later)) = files[index..].split_first_mut() else { break };
            let is_last = loop {
                match self.step(file, later) {
                    Ok(Step::Record) => {}
                    Ok(Step::File) => break false,
                    Ok(Step::End) => break true,
                    // A running server has removed it meanwhile.
                    Err(OpenError::Io { error, .. })
                        if !self.mode.writes && error.kind() == io::ErrorKind::NotFound =>
                    {
                        break false;
                    }
                    Err(error) => return Err(error),
                }
            };
            let offset = file.scanner.offset();
            file.open.segment.used.store(offset, Relaxed);
            if is_last {
                self.sync_predecessor(&mut files[..=index])?;
                return Ok(Some((index, offset)));
            }
            file.close();
        }
        Ok(None)
    }

    /// If nothing was written to the last of these files, the last run may have ended before it synced the one before.
    fn sync_predecessor(&mut self, files: &mut [SegmentFile]) -> Result<(), OpenError> {
        match files {
            [.., before, last] if self.mode.writes && last.is_empty() => before.clean_tail(),
            _ => Ok(()),
        }
    }

    fn check_length(&mut self, file: &mut SegmentFile) -> Result<(), OpenError> {
        let (found, len) = (file.scanner.file_len(), file.open.segment.header.len);
        if found >= len {
            return Ok(());
        }
        let problem = format!("the file was cut from {len} to {found} bytes");
        self.note_damage(file, found, len - found, &problem)?;
        if self.mode.writes { file.extend() } else { Ok(()) }
    }

    /// Reads records until something else comes.
    fn step(
        &mut self,
        file: &mut SegmentFile,
        later: &mut [SegmentFile],
    ) -> Result<Step, OpenError> {
        let problem = match self.replay(file)? {
            Outcome::Ended if !later.is_empty() => return Ok(Step::File),
            // A running server has made the next file meanwhile.
            Outcome::Ended if !self.mode.writes && file.has_successor()? => return Ok(Step::End),
            Outcome::Ended => {
                file.scanner.seek(file.scanner.offset() - END_SIZE);
                "the file after it is missing"
            }
            Outcome::Contradiction => "a record contradicts those before it",
            Outcome::Nothing | Outcome::Bad => {
                if !has_records(later)? && (file.rest()? == 0 || file.is_torn()?) {
                    return self.end(file, later);
                }
                // A running server may have written it after it was looked for, and before what follows.
                if file.has_record_now()? {
                    return Ok(Step::Record);
                }
                "a record is damaged or missing"
            }
        };
        self.skip_damage(file, later, problem)
    }

    /// Reads records until something else comes.
    fn replay(&mut self, file: &mut SegmentFile) -> Result<Outcome, OpenError> {
        const REPORT: u64 = 8 << 20;
        let before = self.report.bytes;
        let begin = file.scanner.offset();
        let mut next_report = begin;
        let outcome = loop {
            let offset = file.scanner.offset();
            if offset >= next_report {
                next_report = offset + REPORT;
                if let Some(progress) = &self.mode.progress {
                    progress(before + offset - begin, self.total);
                }
            }
            if let Some(outcome) = file.replay_record(&mut self.replay)? {
                break outcome;
            }
        };
        self.report.bytes = before + file.scanner.offset() - begin;
        Ok(outcome)
    }

    /// The log ends at the offset of this file. What stands there is removed.
    fn end(
        &mut self,
        file: &mut SegmentFile,
        later: &mut [SegmentFile],
    ) -> Result<Step, OpenError> {
        let bytes = file.rest()?;
        if bytes > 0 {
            let offset = file.scanner.offset();
            let problem = "a crash has interrupted a write".to_owned();
            self.report.torn_tail =
                Some(Damage { file: file.path.clone(), offset, bytes, problem });
        }
        if self.mode.writes {
            file.clean_tail()?;
            for spare in later {
                if spare.rest()? > 0 {
                    spare.clean_tail()?;
                }
            }
        }
        Ok(Step::End)
    }

    /// Goes on after what cannot be read, if that is asked for.
    fn skip_damage(
        &mut self,
        file: &mut SegmentFile,
        later: &mut [SegmentFile],
        problem: &str,
    ) -> Result<Step, OpenError> {
        let offset = file.scanner.offset();
        file.scanner.skip_damage().map_err(|error| file.error(error))?;
        let next = file.scanner.offset();
        self.note_damage(file, offset, next - offset, problem)?;
        self.replay.is_stopped = false;
        if next < file.scanner.file_len() {
            if self.mode.writes {
                file.write_hole(offset, next)?;
            }
            return Ok(Step::Record);
        }
        file.scanner.seek(offset);
        if !has_records(later)? {
            return self.end(file, later);
        }
        if self.mode.writes {
            file.write_end()?;
        }
        Ok(Step::File)
    }

    /// Fails, or notes what is skipped and keeps a copy of the file.
    fn note_damage(
        &mut self,
        file: &mut SegmentFile,
        offset: u64,
        bytes: u64,
        problem: &str,
    ) -> Result<(), OpenError> {
        if !self.mode.skips_damage {
            let (file, problem) = (file.path.clone(), problem.to_owned());
            return Err(OpenError::Damaged { file, offset, problem, can_repair: true });
        }
        if self.mode.writes {
            file.keep_copy()?;
        }
        let problem = problem.to_owned();
        self.report.skipped.push(Damage { file: file.path.clone(), offset, bytes, problem });
        Ok(())
    }
}

/// Whether there are records in these files.
fn has_records(files: &mut [SegmentFile]) -> Result<bool, OpenError> {
    for file in files {
        if file.rest()? > 0 && file.has_record()? {
            return Ok(true);
        }
    }
    Ok(false)
}
