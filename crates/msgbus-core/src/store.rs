//! The seam to a store, which keeps the messages of durable topics through a restart.
//!
//! The bus decides: it numbers messages, and it says which of them are gone. A store remembers. Writing takes two
//! steps. **Append**: under the topic's lock, the bus hands the store a record and gets a [`Ticket`]. **Commit**: when
//! the store has kept what the topic promises, it tells the topic's [`CommitObserver`]. In between, nobody sees the
//! message, so nobody has seen what a crash takes back.

use std::{
    fmt::Debug,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use thiserror::Error;

use crate::{
    model::{Headers, Message, TopicInfo},
    options::BatchLimit,
    stats::Counters,
};

/// Keeps the messages of durable topics.
///
/// The order of locks is: that of a topic, then those of the store. So a store never calls a [`CommitObserver`] from
/// within one of its methods, or while it holds a lock that its methods take.
pub trait Store: Debug + Send + Sync {
    /// Hands over everything that was kept, topic by topic. `found` returns what is to become of the topic. The bus
    /// calls this once, before all other methods. It may block.
    ///
    /// # Errors
    /// When the contents cannot be read. The store must not be used then.
    fn recover(&self, found: &mut dyn FnMut(RecoveredTopic) -> Adopted) -> Result<(), StoreError>;

    /// Starts to keep a new topic. Nothing is written before the first append. Must not block.
    ///
    /// # Errors
    /// As for [`TopicStore::append`].
    fn create(
        &self,
        info: &Arc<TopicInfo>,
        promise: Promise,
        observer: Weak<dyn CommitObserver>,
    ) -> Result<Box<dyn TopicStore>, StoreError>;

    /// Keeps everything that was appended, through a power cut too, and refuses everything that comes later. Calls the
    /// observers before it returns. It may block.
    ///
    /// # Errors
    /// When something could not be kept. Its topics have been told.
    fn close(&self) -> Result<(), StoreError>;
}

/// Keeps one topic. The bus calls all methods under the topic's lock, so they must not block.
pub trait TopicStore: Debug + Send + Sync {
    /// Queues a record. Records of a topic are kept in order: each is committed after all earlier ones.
    ///
    /// # Errors
    /// When the record is not accepted. It changes nothing then, and later records may be accepted.
    fn append(&self, record: Record, state: TopicState) -> Result<Ticket, StoreError>;

    /// Says that the messages below `first_id` are gone, so that their room can be used again.
    fn release(&self, first_id: u64);

    /// Reads messages back, in order: those that are not released, from the first with this or a higher id, up to a
    /// limit. At least one, if there is one. Empty if there is none. Reads what is committed. Another thread reads; the
    /// future does not block, and needs no particular runtime.
    ///
    /// # Errors
    /// The future fails when the messages cannot be read.
    fn read(&self, from_id: u64, limit: BatchLimit) -> Read;
}

/// Messages that are being read, see [`TopicStore::read`].
pub type Read =
    Pin<Box<dyn Future<Output = Result<Vec<RecoveredMessage>, StoreError>> + Send + Sync>>;

/// Is told what becomes of the records of one topic. The implementation locks the topic.
pub trait CommitObserver: Debug + Send + Sync {
    /// All records up to and including this ticket are kept as the topic promises.
    fn committed(&self, up_to: Ticket);

    /// None of the records after the last committed one is kept, and none of them will be.
    fn refused(&self, error: StoreError);
}

/// Identifies an appended record. Tickets of a topic rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticket(pub u64);

/// What is appended to a topic.
#[derive(Debug, Clone)]
pub enum Record {
    /// Messages with rising ids, at least one.
    Messages(Vec<Message>),
    /// The position of pulls has moved to [`TopicState::pull_next`].
    Pulled,
    /// The topic was deleted, or removed because it was not used. It is the topic's last record.
    Deleted,
}

/// The state of a topic besides its messages, after the record that it comes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicState {
    /// The id of the oldest retained message.
    pub first_id: u64,
    /// The id of the next message.
    pub next_id: u64,
    /// How many messages have been appended. Less than `next_id` if ids were left out.
    pub appended: u64,
    /// The id of the next message to pull.
    pub pull_next: u64,
    /// What happened to the messages.
    pub counters: Counters,
}

/// A topic that a store has kept.
#[derive(Debug)]
pub struct RecoveredTopic {
    /// The topic. Its TTL is that of the settings of now, whatever this says.
    pub info: TopicInfo,
    /// What the topic promised so far.
    pub promise: Promise,
    /// The last known state. A store may know the counters of removals, of what was delivered and of what was missed only
    /// from some time before; the bus balances them. Everything else, `counters.pulled` too, is what the records say.
    pub state: TopicState,
    /// The gaps in the ids, in order. Empty if ids are dense.
    pub gaps: Vec<Gap>,
    /// The messages with ids in `state.first_id..state.next_id`, oldest first. Expired ones may be missing. Their
    /// payloads stay in the store until they are read.
    pub messages: Vec<KeptMessage>,
    /// Keeps what comes next.
    pub store: Box<dyn TopicStore>,
}

/// Ids that no message has, such as those that may have been given to messages which a power cut took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first id after the gap.
    pub id: u64,
    /// How many messages were appended before it.
    pub appended: u64,
}

/// What the bus says about a recovered topic.
#[derive(Debug)]
pub struct Adopted {
    /// Is told about commits from now on.
    pub observer: Weak<dyn CommitObserver>,
    /// What the topic promises from now on.
    pub promise: Promise,
}

/// What a bus has to know of a message that a store has kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptMessage {
    /// See [`Message::id`].
    pub id: u64,
    /// See [`Message::created`], in nanoseconds since 1970.
    pub created: i64,
    /// See [`Message::expires`], in nanoseconds since 1970; `i64::MAX` for never.
    pub expires: i64,
    /// See [`Message::accounted_size`].
    pub size: u64,
}

/// A message that a store has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredMessage {
    /// See [`Message::id`].
    pub id: u64,
    /// See [`Message::created`].
    pub created: DateTime<Utc>,
    /// See [`Message::expires`].
    pub expires: Option<DateTime<Utc>>,
    /// See [`Message::headers`].
    pub headers: Headers,
    /// See [`Message::payload`].
    pub payload: Bytes,
}

/// What a topic promises about the messages that it has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Promise {
    /// They are lost when the process ends.
    #[default]
    Memory,
    /// They survive the end of the process, in whatever way. A power cut may take those of the last interval.
    Written {
        /// The maximum time after which they also survive a power cut.
        sync_every: Duration,
    },
    /// They survive a power cut.
    Synced,
}

impl Promise {
    /// The same without its parameters, to be shown to a publisher.
    pub fn durability(self) -> Durability {
        match self {
            Self::Memory => Durability::Memory,
            Self::Written { .. } => Durability::Written,
            Self::Synced => Durability::Synced,
        }
    }
}

/// What an accepted message survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Durability {
    /// Nothing: it is lost when the process ends.
    #[default]
    Memory,
    /// The end of the process, but not certainly a power cut.
    Written,
    /// A power cut.
    Synced,
}

impl Durability {
    /// `memory`, `written` or `synced`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Written => "written",
            Self::Synced => "synced",
        }
    }
}

/// Why a store did not keep something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no room. This may pass.
    #[error("the disk is full")]
    Full,
    /// More is waiting to be written than the store accepts. This passes.
    #[error("the disk does not keep up")]
    Busy,
    /// Writing has failed. The store accepts nothing until it is opened again: after a failed sync it is unknown what
    /// is on the disk.
    #[error("the disk has failed")]
    Failed,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}
