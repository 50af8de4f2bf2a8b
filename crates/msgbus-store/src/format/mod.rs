//! The format of the files, which docs/storage.md describes byte by byte. All numbers are little-endian.

mod fields;
pub(crate) mod group;
pub(crate) mod record;
pub(crate) mod segment;
pub(crate) mod topic;

pub(crate) use self::{
    group::{GroupKind, GroupRecord},
    record::{DecodeError, Frame, LogRecord, MessageRecord, Seal, frame},
    segment::SegmentHeader,
    topic::TopicRecord,
};
