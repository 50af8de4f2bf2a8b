//! The seam to an engine, in which topics live that several buses share.
//!
//! An engine is a server that others run, such as NATS `JetStream`. It numbers the messages, keeps them and replicates
//! them; a bus is only a door to them. Of a topic that lives in an engine, a bus has nothing but a **window** while somebody
//! follows it: the messages that the engine has [delivered](Engine::tail) lately, with the engine's numbers. What is
//! before the window, followers read from the [history](Engine::history).
//!
//! A service whose name is that of a topic in an engine is served at all buses: a request goes to a responder that waits at
//! the bus where it is [asked](Engine::request), or at another one.
//!
//! Numbers (sequences, the ids on the wire) rise within an epoch and may have gaps. They mean the same to every bus.

use std::{
    fmt::{self, Debug},
    future::ready,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use thiserror::Error;

pub use crate::bus::{ServiceSink, WindowSink};
use crate::{
    model::{
        GroupName, NewMessage, NewRequest, Reply, RequestError, SettledBatch, Settlement,
        TopicName, TopicPattern,
    },
    options::BatchLimit,
    store::RecoveredMessage,
};

/// Holds topics. All methods may be called from any thread, for any topic name, at the same time.
///
/// The futures need whatever runtime the engine needs. An engine waits for its server for a time of its own choice, at
/// most some seconds, and then fails with [`EngineError::Unavailable`] or [`EngineError::Unknown`]: no future of an engine
/// stays pending without a limit. An engine connects to its server again by itself.
pub trait Engine: Debug + Send + Sync {
    /// What the engine is called in errors, such as `nats`.
    fn kind(&self) -> &'static str;

    /// Whether the server can be reached, and serves topics. Must not block.
    fn health(&self) -> Health;

    /// How long messages of a topic live. `None`: for ever. Must not block.
    fn max_age(&self, topic: &TopicName) -> Option<Duration>;

    /// Publishes messages, at least one. They get rising sequences in the order given. Messages of others may come
    /// between them, and it is not one step: when it fails, any of them may have been published. Then a repeat may bring
    /// the others behind them. Ready when the engine has acknowledged all of them.
    ///
    /// A message with the same [`repeat_key`](NewMessage::repeat_key) as one that was published to the topic a short time
    /// before is not published again, if the engine can tell. The receipt is that of the first. Messages of one
    /// call that have the same key are different messages: the first with this key, the second, and so on.
    ///
    /// Dropping the future takes nothing back.
    ///
    /// # Errors
    /// After [`EngineError::Unknown`] a message may have been published. After any other error, the message that it is
    /// about was not.
    fn publish(&self, topic: &TopicName, messages: Vec<NewMessage>) -> Answer<Receipt>;

    /// Leases messages to a worker of a group; `None` is the group of plain pulls. Until a lease ends, nobody else gets
    /// its message for that group, from whatever bus. When it ends without an ack, the message is given again. The first
    /// fetch creates the group, unless the topic has [`GroupSettings::MAX_GROUPS`](crate::GroupSettings::MAX_GROUPS) others
    /// with names. A topic that was never published to has no messages.
    ///
    /// Empty if there is nothing for as long as [`Fetch::wait`]. It may be fewer messages than the limit, and more after
    /// them.
    ///
    /// When the future is dropped, the leases that it has not returned are given back, or end by time.
    ///
    /// # Errors
    /// See [`EngineError`]. Leases may have been given, as when the future is dropped.
    fn fetch(&self, topic: &TopicName, group: Option<&GroupName>, fetch: Fetch) -> Answer<Leases>;

    /// Settles leases, which may have been given to another bus. Ready when the engine has acknowledged that. The result
    /// has the indices of those that are over.
    ///
    /// A lease that has ended must not be prolonged or given back, because another worker may have the message by then. So
    /// a nack that may have been served must not be repeated: the same lease is over then.
    /// An ack after the end may be accepted: the message is done.
    ///
    /// # Errors
    /// See [`EngineError`]. Some may be settled.
    fn settle(
        &self,
        topic: &TopicName,
        group: Option<&GroupName>,
        keys: Vec<LeaseKey>,
        settlement: &Settlement,
    ) -> Answer<SettledBatch>;

    /// Reads retained messages in order, at least one if there is one. It is the only place where losses are counted,
    /// see [`EngineMessage::skipped`].
    ///
    /// # Errors
    /// See [`EngineError`].
    fn history(&self, topic: &TopicName, from: Begin, limit: BatchLimit) -> Answer<Page>;

    /// Delivers the messages of a topic as they are published, until the sink is closed. Must not block. It returns at
    /// once, and whatever the engine runs feeds the sink:
    ///
    /// 1. [`WindowSink::open`] says where the feed begins. If that cannot be found out, [`WindowSink::fail`].
    /// 2. [`WindowSink::append`] takes every message from there on, in order and without exception.
    /// 3. If the engine cannot prove that it has left nothing out, for instance after it was away, it calls `open` again
    ///    and goes on from there.
    /// 4. [`WindowSink::stall`] says that the engine does not deliver, and [`WindowSink::resume`] that it does again.
    ///
    /// Dropping the sink ends the subscriptions of the window.
    fn tail(&self, topic: &TopicName, sink: WindowSink);

    /// Deletes all messages of a topic. Returns whether there were any. Numbers do not begin again within the epoch.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn delete(&self, topic: &TopicName) -> Answer<bool>;

    /// What the engine knows of a topic. `None` if it has no messages.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn stats(&self, topic: &TopicName) -> Answer<Option<EngineStats>>;

    /// Topics that have messages, in the order of the bytes of their names: the first `max` that begin with `prefix` and
    /// come after `after`.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn topics(&self, prefix: &str, after: &str, max: usize) -> Answer<EngineTopics> {
        let _ = (prefix, after, max);
        refuse(self.kind(), "list topics")
    }

    /// A group. `None` if there is no such group.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn group(&self, topic: &TopicName, group: &GroupName) -> Answer<Option<EngineGroup>> {
        let _ = (topic, group);
        refuse(self.kind(), "show groups")
    }

    /// What a group has not acknowledged: at most so many of the messages that it was given. `None` if there is no such group.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn unsettled(
        &self,
        topic: &TopicName,
        group: &GroupName,
        max: usize,
    ) -> Answer<Option<Unsettled>> {
        let _ = (topic, group, max);
        refuse(self.kind(), "show what a group gets next")
    }

    /// Creates a group, or moves it if a position is given: then it begins there, and its leases are over. Returns whether
    /// it is new.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn set_group(&self, topic: &TopicName, group: &GroupName, from: Option<Begin>) -> Answer<bool> {
        let _ = (topic, group, from);
        refuse(self.kind(), "create or move groups")
    }

    /// Changes what a group has of its own, which all buses see, within some seconds. What is `None` stays as it is. It is
    /// kept when the group is moved.
    ///
    /// # Errors
    /// See [`EngineError`]. If there is no such group, [`EngineError::Unavailable`].
    fn change_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        change: EngineGroupSettings,
    ) -> Answer<()> {
        let _ = (topic, group, change);
        refuse(self.kind(), "keep settings of a group")
    }

    /// Removes a group. Its leases are over. Returns whether there was one.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn remove_group(&self, topic: &TopicName, group: &GroupName) -> Answer<bool> {
        let _ = (topic, group);
        refuse(self.kind(), "remove groups")
    }

    /// Tells other buses that a service is served at this one, and asks the sink for them, until the sink is closed. Must
    /// not block. A request that another bus has been promised until then must still be answered, be it with a refusal.
    fn serve(&self, service: &TopicName, sink: ServiceSink) {
        let _ = (service, sink);
    }

    /// Finds a bus that serves a service, which may be this one, takes the request and sends it there. A responder at this
    /// bus may have it before; then there is nothing to take, and the answer is [`Asked::Busy`].
    ///
    /// At most one bus is given the request: after [`Asked::Over`] and [`EngineError::Unknown`] a responder may have it,
    /// after anything else none has. It is pending as long as the responder works, but not longer than the timeout of the
    /// request. When it is dropped, the bus that has the request takes it back from its responders.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn request(&self, service: &TopicName, take: TakeRequest, urgency: Urgency) -> Answer<Asked> {
        let _ = (service, take, urgency);
        refuse(self.kind(), CARRY)
    }

    /// Ends what [`serve`](Self::serve) has begun, and is ready when the last answers have left. A program calls it before it
    /// ends, after it has closed the bus.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn finish(&self) -> Answer<()> {
        Box::pin(ready(Ok(())))
    }

    /// Whether a bus serves a service.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn is_served(&self, service: &TopicName) -> Answer<bool> {
        let _ = service;
        refuse(self.kind(), CARRY)
    }
}

/// What an engine cannot do that does not have services.
const CARRY: &str = "carry requests between servers, and nobody serves this service here";

/// The answer to what an engine cannot do.
fn refuse<T: Send + 'static>(engine: &'static str, operation: &'static str) -> Answer<T> {
    Box::pin(ready(Err(EngineError::NotSupported { engine, operation })))
}

/// What an engine answers.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, EngineError>> + Send>>;

/// Which topics live in which engine.
#[derive(Debug, Clone)]
pub struct EngineRule {
    /// The topics. The rule with the most specific matching pattern counts.
    pub pattern: TopicPattern,
    /// The engine. `None` if these topics do not live in any.
    pub engine: Option<Arc<dyn Engine>>,
}

/// The numbers of accepted messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The epoch of the numbers. If numbers begin again, the epoch is higher. It is never 0.
    pub epoch: u64,
    /// The sequence of the first message.
    pub first: u64,
    /// The sequence of the last message.
    pub last: u64,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// At the oldest retained message. What was before it does not count as skipped.
    First,
    /// At the next message to be published.
    Next,
    /// At the first message with this or a higher sequence.
    Sequence(u64),
    /// At the first retained message that was published at this time or later. What was before it does not count as
    /// skipped.
    Time(DateTime<Utc>),
}

/// How to lease messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// The maximum number of messages, and of their bytes.
    pub limit: BatchLimit,
    /// How long the leases should last. An engine may give others: [`Fetched::expires`] counts.
    pub lease: Duration,
    /// How long to wait for the first message.
    pub wait: Duration,
    /// Where the group begins if it is new.
    pub from: Begin,
}

/// Identifies a lease in its engine: at most [`MAX_LEASE_KEY`] bytes. Who can only read the topic must not be able to guess it.
pub type LeaseKey = Box<[u8]>;

/// The maximum size of a [`LeaseKey`], in bytes.
pub const MAX_LEASE_KEY: usize = 64;

/// Leased messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leases {
    /// The epoch of the sequences.
    pub epoch: u64,
    /// The messages.
    pub messages: Vec<Fetched>,
    /// What the group has of its own.
    pub settings: EngineGroupSettings,
}

/// A leased message.
#[derive(Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The message.
    pub message: RecoveredMessage,
    /// How often the group was given the message, this time included.
    pub deliveries: u32,
    /// Until then, nobody else gets the message.
    pub expires: DateTime<Utc>,
    /// Settles the lease.
    pub key: LeaseKey,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key settles the lease.
        let Self { message, deliveries, expires, key: _ } = self;
        let mut all = f.debug_struct("Fetched");
        all.field("message", message).field("deliveries", deliveries).field("expires", expires);
        all.finish_non_exhaustive()
    }
}

/// Messages of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The epoch of the sequences.
    pub epoch: u64,
    /// The messages, in order. Empty if there are none in `..next`.
    pub messages: Vec<EngineMessage>,
    /// Where to read on. All messages from the beginning of the page up to this sequence are in it, except those that are
    /// gone. At the end of the topic it is the lowest sequence that the next message may get, also if a higher one was
    /// asked for.
    pub next: u64,
    /// How many messages are gone between the last message (or the sequence asked for) and `next`.
    pub skipped: Skipped,
}

/// How many messages are gone. `Some(0)`: certainly none. `None`: there may be some, and nobody knows how many.
pub type Skipped = Option<u64>;

/// A message of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineMessage {
    /// The message. Its id is its sequence.
    pub message: RecoveredMessage,
    /// How many messages are gone between the one before it in the page (or the sequence asked for) and this one.
    pub skipped: Skipped,
}

/// What an engine knows of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineStats {
    /// The epoch of the sequences.
    pub epoch: u64,
    /// Retained messages.
    pub retained: u64,
    /// The sequence of the oldest retained message.
    pub first: u64,
    /// The lowest sequence that the next message may get.
    pub next: u64,
}

/// Whether an engine can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Why it cannot be used now: its server cannot be reached, or does not serve topics.
    pub problem: Option<EngineError>,
    /// How often the connection to it was made again after it had broken.
    pub reconnects: u64,
    /// A setting of the server with which topics may lose messages. The log has it, too.
    pub warning: Option<&'static str>,
}

impl Health {
    /// Whether it can be used now.
    pub fn is_up(&self) -> bool {
        self.problem.is_none()
    }
}

/// Whether a service is served at a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// A responder waits.
    Free,
    /// There are responders, which are busy: a request waits.
    Busy,
    /// There are responders, which are busy, and as many requests wait as may: one more is refused.
    Full,
    /// Nobody serves it.
    Absent,
}

/// Takes a request that is to be sent to another bus. `None` if it is not to be sent any more.
pub type TakeRequest = Box<dyn FnOnce() -> Option<NewRequest> + Send>;

/// Which bus is wanted for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// One where a responder waits, if there is one.
    IfFree,
    /// Any where there are responders.
    Queue,
}

/// What became of a request that was sent to another bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Its outcome.
    Over(Result<Reply, RequestError>),
    /// No bus was found where a responder waits, with [`Urgency::IfFree`]; or there was no request any more.
    Busy,
    /// The bus that was found does not take it. Another one may.
    Refused(RequestError),
    /// All buses that were found are [full](Availability::Full). The request was not taken.
    Full,
    /// No bus serves the service.
    Nobody,
}

impl From<Result<Reply, RequestError>> for Asked {
    /// What a bus that was asked has to say, after [`ServiceSink::ask`].
    fn from(outcome: Result<Reply, RequestError>) -> Self {
        match outcome {
            Err(error) if error.is_refusal() => Self::Refused(error),
            outcome => Self::Over(outcome),
        }
    }
}

/// Topics of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineTopics {
    /// In the order of the bytes of their names, and how many messages each has.
    pub topics: Vec<(TopicName, u64)>,
    /// Whether there are more after them.
    pub has_more: bool,
}

/// What a group has of its own. What is `None` is as in [`GroupSettings::of`](crate::GroupSettings::of).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineGroupSettings {
    /// See [`GroupSettings::max_deliveries`](crate::GroupSettings::max_deliveries).
    pub max_deliveries: Option<u32>,
    /// See [`GroupSettings::dead_letters`](crate::GroupSettings::dead_letters).
    pub dead_letters: Option<TopicName>,
}

impl EngineGroupSettings {
    /// Takes what a change has.
    pub fn change(&mut self, change: Self) {
        self.max_deliveries = change.max_deliveries.or(self.max_deliveries);
        self.dead_letters = change.dead_letters.or(self.dead_letters.take());
    }
}

/// A group of an engine at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineGroup {
    /// Messages that the group has not been given.
    pub pending: u64,
    /// Messages that it was given and has not acknowledged: those that are leased, and those that will be given again.
    pub unacked: u64,
    /// What it has of its own.
    pub settings: EngineGroupSettings,
}

/// What a group of an engine has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unsettled {
    /// Of the messages before `next`, those that it was given and has not acknowledged, in order. Some may be gone.
    pub given: Vec<u64>,
    /// Of the messages from this sequence on, it has acknowledged none. If the engine only knows the first message that is
    /// not acknowledged, it is that one: then some may be acknowledged.
    pub next: u64,
}

/// What a bus has asked of an engine, see [`MessageBus::engine_usage`](crate::MessageBus::engine_usage).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineUsage {
    /// Operations that were answered, whatever the answer. Those that wait for messages are not counted.
    pub answered: u64,
    /// Those of them that failed because the engine was away, busy or silent.
    pub failed: u64,
    /// How long those that were answered have taken together.
    pub time: Duration,
    /// Operations that were not answered yet.
    pub in_flight: usize,
}

/// The window of a topic at one moment, see [`MessageBus::engine_windows`](crate::MessageBus::engine_windows).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowStats {
    /// The topic.
    pub topic: TopicName,
    /// Subscriptions.
    pub followers: usize,
    /// Messages in the window.
    pub retained: u64,
    /// Their size as the limits count it, in bytes.
    pub bytes: u64,
    /// The lowest sequence that the next message may get.
    pub next: u64,
    /// How many messages the engine had not delivered yet when it delivered the last one. 0 if it does not say.
    pub pending: u64,
    /// Why the engine does not deliver.
    pub stalled: Option<EngineError>,
}

/// Why an engine did not do something. Details are for the log of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine cannot be reached, or cannot serve now. Nothing was done. It passes.
    #[error("the engine is not available")]
    Unavailable,
    /// Too much is waiting for the engine. Nothing was done. It passes.
    #[error("too much is waiting for the engine")]
    Busy,
    /// The engine has not answered. It may have done what it was asked for, or still do it.
    #[error("the engine has not answered: it may have accepted what it was sent")]
    Unknown,
    /// The engine has no room.
    #[error("the engine is full")]
    Full,
    /// The engine does not accept a message of this size.
    #[error("the message is too large for the engine, which accepts {limit} bytes")]
    TooLarge {
        /// What it accepts, in bytes.
        limit: u64,
    },
    /// The topic has as many groups as it may have.
    #[error("the topic has {limit} groups, which is the limit")]
    TooManyGroups {
        /// The limit, in groups.
        limit: usize,
    },
    /// The engine refuses the credentials, or what was asked for with them.
    #[error("the engine refuses it: its credentials are wrong, or do not permit this")]
    Denied,
    /// The engine cannot do this.
    #[error("{engine} cannot {operation}")]
    NotSupported {
        /// See [`Engine::kind`].
        engine: &'static str,
        /// What it cannot do.
        operation: &'static str,
    },
    /// A topic that the store has kept would live in an engine.
    #[error(
        "the store has a topic that is to live in an engine: delete it first, or change the rule"
    )]
    Conflict,
    /// The engine was closed.
    #[error("the engine is closed")]
    Closed,
}

impl EngineError {
    /// Whether the same may succeed later.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Unavailable | Self::Busy | Self::Unknown)
    }
}
