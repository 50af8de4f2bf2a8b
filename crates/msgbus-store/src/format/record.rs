//! Records: their frame with its checksum, and what is in it.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use msgbus_core::{
    Headers, Message,
    store::{GroupChange, GroupUpdate, KeptGroup, KeptMessage, RecoveredMessage, TopicState},
};
use thiserror::Error;

use super::{
    fields::Fields,
    group::{self, GroupKind, GroupRecord},
    segment::SegmentHeader,
    topic::TopicRecord,
};

/// The size of checksum and length, in bytes.
pub(crate) const PREFIX: usize = 8;
/// Records begin at multiples of this many bytes.
pub(crate) const ALIGNMENT: usize = 8;
/// The size of kind, flag, extra and topic, in bytes. No body is shorter.
const HEAD: usize = 8;
/// The size of the record that ends a segment, in bytes.
pub(crate) const END_SIZE: u64 = (PREFIX + HEAD + 8) as u64;
/// The size of a record without fields, in bytes: no record is shorter.
pub(crate) const MIN_SIZE: usize = PREFIX + HEAD;
/// A time that never comes.
const NEVER: i64 = i64::MAX;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Batch = 1,
    Start = 2,
    Stop = 3,
    End = 4,
    Hole = 5,
    Topic = 8,
    Message = 9,
    Pulled = 10,
    Deleted = 11,
    Group = 16,
    GroupContinued = 17,
    GroupUpdate = 18,
    GroupRemoved = 19,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 13] = [
            Kind::Batch,
            Kind::Start,
            Kind::Stop,
            Kind::End,
            Kind::Hole,
            Kind::Topic,
            Kind::Message,
            Kind::Pulled,
            Kind::Deleted,
            Kind::Group,
            Kind::GroupContinued,
            Kind::GroupUpdate,
            Kind::GroupRemoved,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Why a record whose checksum is right cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum DecodeError {
    #[error("a record of the unknown kind {0}, which a newer version of msgbus has written")]
    UnknownKind(u8),
    #[error("a record with invalid contents")]
    Malformed,
}

/// Makes a checksum valid at one place only: a record that is found elsewhere, in another segment or another store, is
/// no record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seal(u32);

impl Seal {
    pub(crate) fn new(header: &SegmentHeader) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&header.store_id.to_le_bytes());
        hasher.update(&header.number.to_le_bytes());
        Self(hasher.finalize())
    }

    /// The initial value of the checksum of a record at this offset.
    pub(crate) fn at(self, offset: u64) -> u32 {
        self.0 ^ units(offset)
    }
}

/// An offset in units of [`ALIGNMENT`].
pub(crate) fn units(offset: u64) -> u32 {
    // A segment of more than 32 GiB is refused, see `Scanner::open`.
    u32::try_from(offset / ALIGNMENT as u64).unwrap_or(u32::MAX)
}

fn checksum(seed: u32, checked: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(checked);
    hasher.finalize()
}

/// What [`frame`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// Zeros: nothing was written here.
    Zero,
    /// A record whose checksum is right: its body, and its size with padding in bytes.
    Record { body: &'a [u8], size: usize },
    /// The buffer ends before the record, which needs this many bytes.
    Incomplete { needs: usize },
    /// No record.
    Bad,
}

/// Looks at what stands at the beginning of `bytes`, of which `room` may follow up to the end of the file.
pub(crate) fn frame(bytes: &[u8], seed: u32, room: u64) -> Frame<'_> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return if room < PREFIX as u64 {
            Frame::Zero
        } else {
            Frame::Incomplete { needs: PREFIX }
        };
    };
    if *prefix == [0; PREFIX] {
        return Frame::Zero;
    }
    let [c0, c1, c2, c3, l0, l1, l2, l3] = *prefix;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let Ok(length) = usize::try_from(length) else { return Frame::Bad };
    if length < HEAD || length as u64 > room.saturating_sub(PREFIX as u64) {
        return Frame::Bad;
    }
    let size = padded(PREFIX + length);
    let Some(body) = rest.get(..length) else {
        return Frame::Incomplete { needs: PREFIX + length };
    };
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&prefix[4..]);
    hasher.update(body);
    if hasher.finalize() == u32::from_le_bytes([c0, c1, c2, c3]) {
        Frame::Record { body, size }
    } else {
        Frame::Bad
    }
}

fn padded(size: usize) -> usize {
    size.next_multiple_of(ALIGNMENT)
}

/// Appends a record to `out`. The record before it was padded.
fn encode(
    out: &mut Vec<u8>,
    seed: u32,
    kind: Kind,
    (flag, extra, topic): (u8, u16, u32),
    fields: impl FnOnce(&mut Vec<u8>),
) {
    framed(out, seed, |out| {
        out.extend_from_slice(&[kind as u8, flag]);
        out.extend_from_slice(&extra.to_le_bytes());
        out.extend_from_slice(&topic.to_le_bytes());
        fields(out);
    });
}

fn framed(out: &mut Vec<u8>, seed: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    body(out);
    let length = u32::try_from(out.len() - start - PREFIX).unwrap_or(u32::MAX);
    out[start + 4..start + PREFIX].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(seed, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
    out.resize(start + padded(out.len() - start), 0);
}

/// Says that everything before the offset `synced` of this segment has been synced.
pub(crate) fn encode_batch(out: &mut Vec<u8>, seed: u32, synced: u64) {
    encode_mark(out, seed, Kind::Batch, synced);
}

/// The last record of a run that ended cleanly. Everything before the offset `synced` has been synced.
pub(crate) fn encode_stop(out: &mut Vec<u8>, seed: u32, synced: u64) {
    encode_mark(out, seed, Kind::Stop, synced);
}

/// The last record of a segment that is followed by another. Takes [`END_SIZE`] bytes.
pub(crate) fn encode_end(out: &mut Vec<u8>, seed: u32, synced: u64) {
    encode_mark(out, seed, Kind::End, synced);
}

fn encode_mark(out: &mut Vec<u8>, seed: u32, kind: Kind, synced: u64) {
    encode(out, seed, kind, (0, 0, 0), |out| out.extend_from_slice(&synced.to_le_bytes()));
}

/// The first record of a run. `boot` identifies what the machine has been running since it was started.
pub(crate) fn encode_start(out: &mut Vec<u8>, seed: u32, synced: u64, boot: [u8; 16]) {
    encode(out, seed, Kind::Start, (0, 0, 0), |out| {
        out.extend_from_slice(&synced.to_le_bytes());
        out.extend_from_slice(&boot);
    });
}

/// Fills `size` bytes, from which a repair has removed what was unreadable.
pub(crate) fn encode_hole(out: &mut Vec<u8>, seed: u32, size: usize) {
    encode(out, seed, Kind::Hole, (0, 0, 0), |out| out.resize(out.len() + size - MIN_SIZE, 0));
}

pub(crate) fn encode_topic(out: &mut Vec<u8>, seed: u32, number: u32, topic: &TopicRecord<'_>) {
    let (flag, extra) = topic.flag_and_extra();
    encode(out, seed, Kind::Topic, (flag, extra, number), |out| topic.encode(out));
}

pub(crate) fn encode_message(out: &mut Vec<u8>, seed: u32, topic: u32, message: &Message) {
    let headers_size: usize =
        message.headers().iter().map(|(name, value)| 4 + name.len() + value.len()).sum();
    let extra = u16::try_from(headers_size).unwrap_or(u16::MAX);
    encode(out, seed, Kind::Message, (0, extra, topic), |out| {
        let expires = message.expires_nanoseconds().unwrap_or(NEVER);
        out.extend_from_slice(&message.id().to_le_bytes());
        out.extend_from_slice(&message.created_nanoseconds().to_le_bytes());
        out.extend_from_slice(&expires.to_le_bytes());
        for (name, value) in message.headers() {
            for text in [name, value] {
                let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
        out.extend_from_slice(message.payload());
    });
}

/// A record that was read elsewhere.
pub(crate) fn encode_copy(out: &mut Vec<u8>, seed: u32, body: &[u8]) {
    framed(out, seed, |out| out.extend_from_slice(body));
}

pub(crate) fn encode_pulled(out: &mut Vec<u8>, seed: u32, topic: u32, state: &TopicState) {
    encode(out, seed, Kind::Pulled, (0, 0, topic), |out| {
        for field in [state.pull_next, state.first_id, state.counters.pulled] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    });
}

pub(crate) fn encode_deleted(out: &mut Vec<u8>, seed: u32, topic: u32) {
    encode(out, seed, Kind::Deleted, (0, 0, topic), |_| {});
}

pub(crate) fn encode_group_change(
    out: &mut Vec<u8>,
    seed: u32,
    topic: u32,
    number: u8,
    change: &GroupChange,
) {
    match change {
        GroupChange::Set(group) => {
            encode(out, seed, Kind::Group, group_head(group, number, topic), |out| {
                group::encode_group(out, group);
                group::encode_open(out, group.open.len(), group.open.values());
            });
        }
        GroupChange::Update(update) => encode_group_update(out, seed, topic, number, update),
        GroupChange::Removed => encode(out, seed, Kind::GroupRemoved, (number, 0, topic), |_| {}),
    }
}

/// A group that stands before this, without its open messages.
pub(crate) fn encode_group_continued(
    out: &mut Vec<u8>,
    seed: u32,
    topic: u32,
    number: u8,
    group: &KeptGroup,
) {
    encode(out, seed, Kind::GroupContinued, group_head(group, number, topic), |out| {
        group::encode_group(out, group);
    });
}

pub(crate) fn encode_group_update(
    out: &mut Vec<u8>,
    seed: u32,
    topic: u32,
    number: u8,
    update: &GroupUpdate,
) {
    encode(out, seed, Kind::GroupUpdate, (number, 0, topic), |out| {
        group::encode_update(out, update);
    });
}

fn group_head(group: &KeptGroup, number: u8, topic: u32) -> (u8, u16, u32) {
    (number, group.is_explicit.into(), topic)
}

/// Nanoseconds since 1970, or the nearest that fit.
pub(super) fn nanoseconds(time: DateTime<Utc>) -> i64 {
    let nearest = if time.timestamp() < 0 { i64::MIN } else { NEVER };
    time.timestamp_nanos_opt().unwrap_or(nearest)
}

/// What a record says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LogRecord<'a> {
    Batch { synced: u64 },
    Start { synced: u64, boot: [u8; 16] },
    Stop { synced: u64 },
    End { synced: u64 },
    Hole,
    Topic { number: u32, topic: TopicRecord<'a> },
    Message(MessageRecord<'a>),
    Pulled { topic: u32, pull_next: u64, first_id: u64, pulled: u64 },
    Deleted { topic: u32 },
    Group(GroupRecord<'a>),
}

impl<'a> LogRecord<'a> {
    /// The sizes of records that have a `synced`, in bytes.
    pub(crate) const MARK_SIZES: [usize; 2] = [PREFIX + HEAD + 8, PREFIX + HEAD + 24];

    pub(crate) fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields(body);
        let kind = fields.u8()?;
        let kind = Kind::from_byte(kind).ok_or(DecodeError::UnknownKind(kind))?;
        let (flag, extra, topic) = (fields.u8()?, fields.u16()?, fields.u32()?);
        let group =
            |kind, fields| GroupRecord::decode(kind, (flag, extra, topic), fields).map(Self::Group);
        let record = match kind {
            Kind::Group => return group(GroupKind::Set, fields),
            Kind::GroupContinued => return group(GroupKind::Continued, fields),
            Kind::GroupUpdate => return group(GroupKind::Update, fields),
            Kind::GroupRemoved => return group(GroupKind::Removed, fields),
            Kind::Message => {
                return Ok(Self::Message(MessageRecord::decode(topic, extra.into(), fields)?));
            }
            Kind::Topic => {
                let record = TopicRecord::decode(flag, extra, fields)?;
                return Ok(Self::Topic { number: topic, topic: record });
            }
            Kind::Hole => return Ok(Self::Hole),
            Kind::Batch => Self::Batch { synced: fields.u64()? },
            Kind::Start => Self::Start { synced: fields.u64()?, boot: fields.array()? },
            Kind::Stop => Self::Stop { synced: fields.u64()? },
            Kind::End => Self::End { synced: fields.u64()? },
            Kind::Pulled => Self::Pulled {
                topic,
                pull_next: fields.u64()?,
                first_id: fields.u64()?,
                pulled: fields.u64()?,
            },
            Kind::Deleted => Self::Deleted { topic },
        };
        fields.end()?;
        Ok(record)
    }

    /// Up to which offset the segment had been synced when this was written.
    pub(crate) fn synced(&self) -> Option<u64> {
        match *self {
            Self::Batch { synced }
            | Self::Start { synced, .. }
            | Self::Stop { synced }
            | Self::End { synced } => Some(synced),
            _ => None,
        }
    }
}

/// A message as it stands in the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MessageRecord<'a> {
    pub(crate) topic: u32,
    pub(crate) id: u64,
    created: i64,
    expires: i64,
    headers: &'a [u8],
    payload: &'a [u8],
}

impl<'a> MessageRecord<'a> {
    fn decode(
        topic: u32,
        headers_size: usize,
        mut fields: Fields<'a>,
    ) -> Result<Self, DecodeError> {
        Ok(Self {
            topic,
            id: fields.u64()?,
            created: fields.i64()?,
            expires: fields.i64()?,
            headers: fields.bytes(headers_size)?,
            payload: fields.0,
        })
    }

    /// The message, with a payload in a buffer of its own.
    pub(crate) fn recover(&self) -> Result<RecoveredMessage, DecodeError> {
        Ok(RecoveredMessage {
            id: self.id,
            created: DateTime::from_timestamp_nanos(self.created),
            expires: (self.expires != NEVER).then(|| DateTime::from_timestamp_nanos(self.expires)),
            headers: self.headers()?,
            payload: Bytes::copy_from_slice(self.payload),
        })
    }

    /// What the bus has to know of the message. Fails if [`recover`](Self::recover) would.
    pub(crate) fn keep(&self) -> Result<KeptMessage, DecodeError> {
        let headers = self.headers()?.accounted_size();
        let size = self.payload.len() as u64 + headers + Message::OVERHEAD;
        Ok(KeptMessage { id: self.id, created: self.created, expires: self.expires, size })
    }

    fn headers(&self) -> Result<Headers, DecodeError> {
        if self.headers.is_empty() {
            return Ok(Headers::default());
        }
        let mut fields = Fields(self.headers);
        let mut list = Vec::new();
        while !fields.0.is_empty() {
            let length = fields.u16()?;
            let name = fields.text(length.into())?;
            let length = fields.u16()?;
            list.push((name, fields.text(length.into())?));
        }
        Headers::new(list).map_err(|_| DecodeError::Malformed)
    }
}
