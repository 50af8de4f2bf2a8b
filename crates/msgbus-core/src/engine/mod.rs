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

use std::{fmt::Debug, future::ready, pin::Pin, sync::Arc, time::Duration};

pub use self::{
    error::EngineError,
    leases::{
        EngineGroup, EngineGroupSettings, Fetch, Fetched, LeaseKey, Leases, MAX_LEASE_KEY,
        Unsettled,
    },
    messages::{Begin, EngineMessage, EngineStats, EngineTopics, Page, Receipt, Skipped},
    services::{Asked, Availability, TakeRequest, Urgency},
    usage::{EngineUsage, Health, WindowStats},
};
pub use crate::bus::{ServiceSink, WindowSink};
use crate::{
    model::{GroupName, NewMessage, SettledBatch, Settlement, TopicName, TopicPattern},
    options::BatchLimit,
};

mod error;
mod leases;
mod messages;
mod services;
mod usage;

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
    /// 2. [`WindowSink::append`] takes every message from there on, in order and without exception. When something
    ///    has come, the engine should wait as long as [`WindowSink::time_to_gather`] says, and append what comes meanwhile, too.
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

    /// Ends what [`serve`](Self::serve) has begun, and is ready when the last answers and publishes have left. A program calls it before it
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
