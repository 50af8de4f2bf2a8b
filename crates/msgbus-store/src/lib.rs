//! The durable store of msgbus: keeps the messages of durable topics on the disk of this machine.
//!
//! All topics share one log. One thread writes it, and one sync serves all who wait for it. The log is a sequence of
//! segments, files that are made ahead of need. Each record has a checksum. Nothing is read while the store is used but
//! messages that the bus does not hold in memory.
//!
//! `docs/storage.md` describes the format, and what each promise means.

mod backup;
mod batch;
mod buffer;
mod compaction;
mod directory;
mod disk;
mod encode;
mod error;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod groups;
mod index;
mod open;
mod options;
mod page;
mod reader;
mod recovery;
mod scan;
mod segments;
mod shared;
mod stats;
mod store;
mod tail;
#[cfg(test)]
mod tests;
mod tools;
mod topic;
mod writer;

pub use self::{
    backup::backup,
    error::OpenError,
    options::{Progress, StoreOptions},
    stats::{Damage, RecoveryReport, StoreStats},
    store::LogStore,
    tools::{check, compact, dump},
};
