//! The seam to a store, which keeps the messages of durable topics through a restart.
//!
//! The bus decides: it numbers messages, and it says which of them are gone. A store remembers. Writing takes two
//! steps. **Append**: under the topic's lock, the bus hands the store a record and gets a [`Ticket`]. **Commit**: when
//! the store has kept what the topic promises, it tells the topic's [`CommitObserver`]. In between, nobody sees the
//! message, so nobody has seen what a crash takes back.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use thiserror::Error;

use crate::{
    engine::EngineError,
    model::{GroupName, GroupSettings, Headers, Message, TopicInfo},
    options::BatchLimit,
    stats::{Counters, GroupCounters},
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
    /// A group of the topic has changed.
    Group {
        /// Identifies the group within the topic, at most 63.
        number: u8,
        /// How.
        change: GroupChange,
    },
    /// The topic was deleted, or removed because it was not used. It is the topic's last record.
    Deleted,
}

/// A change to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupChange {
    /// This is the whole group. It replaces what the number stood for, if anything.
    Set(Box<KeptGroup>),
    /// Messages were handed out, given back or settled.
    Update(Box<GroupUpdate>),
    /// The group was removed.
    Removed,
}

/// What has changed in a group that is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupUpdate {
    /// The new [`KeptGroup::next_id`].
    pub next_id: u64,
    /// Messages that were handed out or given back. They replace what was known of them.
    pub open: Vec<OpenMessage>,
    /// Messages that are settled: acknowledged, or dead letters.
    pub settled: Vec<u64>,
    /// The new counters.
    pub counters: GroupCounters,
}

/// A group as a store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptGroup {
    /// The name of the group.
    pub name: GroupName,
    /// Its settings.
    pub settings: GroupSettings,
    /// Whether it was created by itself, and not by a pull.
    pub is_explicit: bool,
    /// How many messages were appended to the topic, without those that are counted for the group.
    pub base: u64,
    /// The id of the next message that the group has not been given.
    pub next_id: u64,
    /// Messages below `next_id` that are not settled, by their ids. A message that is gone may be among them.
    pub open: BTreeMap<u64, OpenMessage>,
    /// What happened to messages.
    pub counters: GroupCounters,
}

impl KeptGroup {
    /// Makes the group what it is after an update.
    pub fn update(&mut self, update: &GroupUpdate) {
        self.next_id = update.next_id;
        self.counters = update.counters;
        self.open.extend(update.open.iter().map(|message| (message.id, message.clone())));
        for id in &update.settled {
            self.open.remove(id);
        }
    }
}

/// A message that a group was given and has not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenMessage {
    /// The id of the message.
    pub id: u64,
    /// The secret of the lease.
    pub nonce: u64,
    /// How often the message was delivered.
    pub deliveries: u32,
    /// Whether it is leased. Otherwise it waits for its next delivery.
    pub is_leased: bool,
    /// When the lease or the delay ends, in nanoseconds since 1970.
    pub until: i64,
    /// Why it was given back last, if it was said.
    pub reason: Option<Box<str>>,
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
    /// The groups and their numbers.
    pub groups: Vec<(u8, KeptGroup)>,
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
    /// What the engine promises in which the topic lives.
    Engine,
}

impl Durability {
    /// `memory`, `written`, `synced` or `engine`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Written => "written",
            Self::Synced => "synced",
            Self::Engine => "engine",
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
    /// The topic lives in an engine, which did not do it.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
