//! The end of the log, where records are added.
//!
//! Records are first encoded into pieces in memory, then written. In between, everything can be taken back: a batch for
//! which there is no room leaves no trace. A piece that begins a new segment is written only after the segment before it
//! was ended and synced, so all but the newest segment with records are complete.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use crate::{
    disk::{Disk, DiskFile, is_full},
    format::{
        SegmentHeader,
        record::{self, END_SIZE},
    },
    index::Location,
    options::StoreOptions,
    segments::{Segment, Segments},
    stats::WriterStats,
};

/// What a machine has been running since it was started.
pub(crate) type BootId = [u8; 16];

/// The end of the log.
#[derive(Debug)]
pub(crate) struct Tail {
    segments: Arc<Segments>,
    options: StoreOptions,
    store_id: u64,
    place: Place,
    /// Segments that are ready to be used, in order. The last one is a reserve, which messages do not use.
    spares: VecDeque<OpenSegment>,
    /// Those that were taken from the spares since the last snapshot.
    taken: Vec<OpenSegment>,
    /// What was encoded and is not written.
    pieces: Vec<Piece>,
    /// A buffer to be used again.
    buffer: Vec<u8>,
}

/// Where the next record goes.
#[derive(Debug, Clone)]
struct Place {
    segment: OpenSegment,
    /// The offset of the next record, if everything that was encoded is written.
    offset: u64,
    /// Everything before this offset is on the disk.
    synced: u64,
    /// What the last record that says so says about `synced`.
    marked: u64,
    /// Blocks before this offset have been written to before.
    prepared: u64,
    /// The record that begins this run is not written yet.
    start: Option<BootId>,
}

/// A segment that is open for writing.
#[derive(Debug, Clone)]
pub(crate) struct OpenSegment {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn DiskFile>,
}

#[derive(Debug)]
struct Piece {
    target: OpenSegment,
    offset: u64,
    bytes: Vec<u8>,
    /// It ends its segment.
    ends: bool,
}

/// The end of the log at one moment, see [`Tail::restore`].
#[derive(Debug)]
pub(crate) struct Snapshot(Place);

impl Tail {
    /// What is needed besides the records in a segment: the records that begin and end it, in bytes.
    const FRAME: u64 = SegmentHeader::END + END_SIZE + 64;
    /// Batches are encoded into a buffer that is not given back unless it is larger than this, in bytes.
    const KEPT_BUFFER: usize = 8 << 20;

    /// Goes on at `offset` of a segment, before which everything is synced.
    pub(crate) fn resume(
        segments: Arc<Segments>,
        options: StoreOptions,
        segment: OpenSegment,
        offset: u64,
        spares: VecDeque<OpenSegment>,
        boot: BootId,
    ) -> Self {
        segment.segment.used.store(offset, Relaxed);
        let store_id = segment.segment.header.store_id;
        let (synced, prepared) = (offset, offset);
        let place = Place { segment, offset, synced, marked: 0, prepared, start: Some(boot) };
        let (taken, pieces, buffer) = (Vec::new(), Vec::new(), Vec::new());
        Self { segments, options, store_id, place, spares, taken, pieces, buffer }
    }

    /// The number of the segment to which the next record goes, if it fits.
    pub(crate) fn number(&self) -> u32 {
        self.place.segment.segment.number()
    }

    /// The offset of the next record in that segment, if it fits.
    pub(crate) fn offset(&self) -> u64 {
        self.place.offset
    }

    /// The number of bytes for records in the current segment and in those that are ready.
    pub(crate) fn room(&self) -> u64 {
        let spares: u64 = self
            .spares
            .iter()
            .map(|spare| spare.segment.header.len.saturating_sub(Self::FRAME))
            .sum();
        spares + self.place.segment.segment.header.len.saturating_sub(self.place.offset + END_SIZE)
    }

    /// The maximum size of a segment, in bytes.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.options.segment_bytes
    }

    /// Whether something was written and not synced.
    pub(crate) fn is_unsynced(&self) -> bool {
        self.place.synced < self.place.offset
    }

    /// Whether the log does not say yet how far it was synced.
    pub(crate) fn is_unmarked(&self) -> bool {
        self.place.marked < self.place.synced && self.place.start.is_none()
    }

    /// Where the log ends now. See [`restore`](Self::restore).
    pub(crate) fn snapshot(&mut self) -> Snapshot {
        self.taken.clear();
        Snapshot(self.place.clone())
    }

    /// Takes back what was encoded since the last snapshot.
    pub(crate) fn restore(&mut self, snapshot: Snapshot) {
        self.pieces.clear();
        while let Some(segment) = self.taken.pop() {
            self.spares.push_front(segment);
        }
        self.place = snapshot.0;
    }

    /// Encodes a record, or fails with its size if it does not fit into the segment.
    pub(crate) fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>, u32)) -> Result<Location, u64> {
        self.begin_piece();
        self.encode(encode)
    }

    fn encode(&mut self, encode: impl FnOnce(&mut Vec<u8>, u32)) -> Result<Location, u64> {
        let place = &mut self.place;
        let segment = &place.segment.segment;
        let Some(piece) = self.pieces.last_mut() else { return Err(0) };
        let before = piece.bytes.len();
        encode(&mut piece.bytes, segment.seal.at(place.offset));
        let size = (piece.bytes.len() - before) as u64;
        if place.offset + size + END_SIZE > segment.header.len {
            piece.bytes.truncate(before);
            return Err(size);
        }
        let location = Location::new(segment.number(), place.offset);
        place.offset += size;
        Ok(location)
    }

    /// Begins a piece with what the log has to say about itself.
    fn begin_piece(&mut self) {
        let number = self.number();
        if self.pieces.last().is_some_and(|piece| piece.target.segment.number() == number) {
            return;
        }
        let target = self.place.segment.clone();
        let bytes = std::mem::take(&mut self.buffer);
        self.pieces.push(Piece { target, offset: self.place.offset, bytes, ends: false });
        let synced = self.place.synced;
        let result = match self.place.start {
            Some(boot) => self.encode(|out, seed| record::encode_start(out, seed, synced, boot)),
            None if self.is_unmarked() => {
                self.encode(|out, seed| record::encode_batch(out, seed, synced))
            }
            None => return,
        };
        if result.is_ok() {
            self.place.start = None;
            self.place.marked = synced;
        }
    }

    /// Ends the segment, and goes on in the next one. Calls for another one, so that there is always a reserve, which
    /// only records without messages may use (`is_small`). One of the next segments has room for a record of `size`
    /// bytes.
    ///
    /// # Errors
    /// When there is no room.
    pub(crate) fn switch(&mut self, size: u64, is_small: bool) -> io::Result<()> {
        let size = size + Self::FRAME;
        let fits = self.spares.iter().any(|spare| spare.segment.header.len >= size);
        if self.spares.len() < 2 || !fits {
            match self.add_spare(size) {
                Err(error) if is_full(&error) && is_small && fits => {}
                result => result?,
            }
        }
        self.begin_piece();
        let synced = self.place.synced;
        self.encode_end(synced);
        let next = self.spares.pop_front();
        let Some(segment) = next else { return Err(io::ErrorKind::StorageFull.into()) };
        self.taken.push(segment.clone());
        let (synced, marked) = (SegmentHeader::END, SegmentHeader::END);
        let start = self.place.start;
        let (offset, prepared) = (SegmentHeader::END, SegmentHeader::END);
        self.place = Place { segment, offset, synced, marked, prepared, start };
        Ok(())
    }

    /// There is always room for this record.
    fn encode_end(&mut self, synced: u64) {
        let seed = self.place.segment.segment.seal.at(self.place.offset);
        if let Some(piece) = self.pieces.last_mut() {
            record::encode_end(&mut piece.bytes, seed, synced);
            piece.ends = true;
        }
    }

    /// Makes sure that messages have room.
    pub(crate) fn make_room(&mut self) -> io::Result<()> {
        if self.spares.len() < 2 { self.add_spare(0) } else { Ok(()) }
    }

    /// Makes sure that there is a reserve.
    pub(crate) fn make_reserve(&mut self) -> io::Result<()> {
        if self.spares.is_empty() { self.add_spare(0) } else { Ok(()) }
    }

    /// Makes a segment with room for `size` bytes, of a smaller size than usual if there is no room.
    fn add_spare(&mut self, size: u64) -> io::Result<()> {
        let last = self.spares.back().map_or(self.number(), |spare| spare.segment.number());
        let number =
            last.checked_add(1).ok_or_else(|| io::Error::other("out of segment numbers"))?;
        let total = self.segments.total_bytes();
        let smallest = self.options.min_segment_bytes().max(size);
        let mut len = self.options.next_segment_bytes(total).max(size);
        loop {
            match self.create(number, len, total) {
                Ok(spare) => {
                    self.spares.push_back(spare);
                    return Ok(());
                }
                Err(error) if is_full(&error) && len > smallest => len = (len / 2).max(smallest),
                Err(error) => return Err(error),
            }
        }
    }

    fn create(&self, number: u32, len: u64, total: u64) -> io::Result<OpenSegment> {
        if self.options.max_bytes.is_some_and(|max| total + len > max) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let header = SegmentHeader { number, store_id: self.store_id, len };
        let disk = self.segments.disk();
        create_segment(disk, header).inspect(|created| {
            self.segments.insert(Arc::clone(&created.segment));
        })
    }

    /// Writes what was encoded.
    ///
    /// # Errors
    /// When the disk fails. Then it is unknown what is on it.
    pub(crate) fn flush(&mut self, stats: &WriterStats) -> io::Result<()> {
        for mut piece in std::mem::take(&mut self.pieces) {
            let Piece { target, offset, bytes, ends } = &mut piece;
            target.file.write_at(bytes, *offset)?;
            let end = *offset + bytes.len() as u64;
            target.segment.used.store(end, Relaxed);
            stats.written_bytes.fetch_add(bytes.len() as u64, Relaxed);
            if *ends {
                sync(&*target.file, stats)?;
            }
            if bytes.capacity() <= Self::KEPT_BUFFER {
                bytes.clear();
                self.buffer = std::mem::take(bytes);
            }
        }
        Ok(())
    }

    /// Writes zeros to the blocks that come next, if they were not written to before. For file systems, the first write
    /// to a block changes more than the block, and a sync after it takes several times as long. Worthwhile before
    /// many syncs of little.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn prepare(&mut self) -> io::Result<()> {
        const LENGTH: usize = 512 << 10;
        let Place { segment, offset, prepared, .. } = &mut self.place;
        if *offset > *prepared {
            let left = segment.segment.header.len.saturating_sub(*offset);
            let length = usize::try_from(left).map_or(LENGTH, |left| left.min(LENGTH));
            // The system has zeros ready. As a static, they would be in the file of the program.
            segment.file.write_at(&vec![0; length], *offset)?;
            *prepared = *offset + length as u64;
        }
        Ok(())
    }

    /// Makes what was written survive a power cut.
    ///
    /// # Errors
    /// When the disk fails. Then it is unknown what is on it.
    pub(crate) fn sync(&mut self, stats: &WriterStats) -> io::Result<()> {
        sync(&*self.place.segment.file, stats)?;
        self.place.synced = self.place.offset;
        Ok(())
    }

    /// Writes how far the log was synced, so that damage to it is never taken for the traces of a crash.
    pub(crate) fn mark(&mut self, stats: &WriterStats) -> io::Result<()> {
        self.begin_piece();
        // If it did not fit, it is not tried again: the record that ends the segment will say it.
        self.place.marked = self.place.synced;
        self.flush(stats)
    }

    /// Ends the run, if there is room for the record that says so. Everything has been synced.
    pub(crate) fn stop(&mut self, stats: &WriterStats) -> io::Result<()> {
        let synced = self.place.synced;
        if self.place.start.is_some() {
            return Ok(());
        }
        self.place.marked = synced;
        if self.push(|out, seed| record::encode_stop(out, seed, synced)).is_ok() {
            self.flush(stats)?;
            self.sync(stats)?;
        }
        Ok(())
    }
}

/// Makes a segment, which is there after a power cut.
pub(crate) fn create_segment(
    disk: &Arc<dyn Disk>,
    header: SegmentHeader,
) -> io::Result<OpenSegment> {
    let file = disk.create(header.number, header.len, &header.encode())?;
    disk.sync_dir()?;
    Ok(OpenSegment { segment: Arc::new(Segment::new(header)), file })
}

fn sync(file: &dyn DiskFile, stats: &WriterStats) -> io::Result<()> {
    let start = Instant::now();
    file.sync()?;
    stats.count_sync(start.elapsed());
    Ok(())
}
