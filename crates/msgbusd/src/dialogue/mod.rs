//! Connections on which clients do many things at a time, for all doors: they subscribe, serve, ask and publish, and each
//! of these goes on by itself.
//!
//! A door is a [`Dialect`]: it says what the messages of its clients ask for, and how what happens is written. Everything
//! else is here. [`session`] moves the bytes of one connection, and publishing threads write the messages of its
//! subscriptions themselves if they can ([`shared`]). [`activities`] are what a client has begun and what takes time; each
//! has a waker of its own ([`ready`]), so the work after a wake does not depend on how many others there are. They get
//! their turns in [`turns`]. [`follow`], [`serve`] and [`lease`] are the larger ones. [`output`] puts messages into frames,
//! [`names`] finds what has a name, [`refusal`] is what doors refuse in the same way.

pub(crate) mod activities;
mod client;
mod follow;
mod lease;
pub(crate) mod names;
pub(crate) mod output;
mod ready;
mod refusal;
mod serve;
pub(crate) mod session;
mod shared;
mod turns;

use std::{collections::VecDeque, fmt, hash::Hash};

use msgbus_core::{
    Leased, NewMessage, Position, PublishError, RecvError, Reply, Request, TopicName,
    store::StoreError,
};

use self::activities::Activities;
pub(crate) use self::{
    client::Client,
    follow::Following,
    lease::{Job, Lease},
    names::Name,
    output::Output,
    refusal::{MAX_SUBSCRIPTIONS, Refusal},
};
use crate::{
    limits::{inflight::Inflight, quota::QuotaPermit},
    net::wake_queue,
    service::{
        Authority,
        error::ServiceError,
        follower::{self, Follower, Item},
        publisher::{Publishers, Publishing},
    },
    websocket::{end, outgoing::Outgoing},
};

/// Beyond this many bytes that wait to be written, nothing begins, and no reply is written.
pub(crate) const MAX_UNREAD: usize = 256 << 10;
/// The bytes after which what is ready waits until they are written.
pub(crate) const ENOUGH: usize = 64 << 10;

/// The number of operations that have begun and hold up others, after which nothing begins.
pub(crate) const MAX_OUTSTANDING: usize = 1024;

/// The protocol of a door: what clients ask for, and how what happens is written.
pub(crate) trait Dialect: fmt::Debug + Send + Sized + 'static {
    /// The protocol, for the log.
    const NAME: &'static str;
    /// Why a binary message is refused.
    const TEXT_ONLY: &'static str;
    /// The maximum number of requests that a client is given at once.
    const BATCH: usize;
    /// The number of requests that a client has at a time, after which it gets no more.
    const MAX_IN_HAND: usize;

    /// Puts messages to the client into what is sent.
    type Output: Output;
    /// By what the client knows a subscription or a service.
    type Name: Clone + Eq + Hash + fmt::Debug + Send;
    /// How a subscription is answered whose position is not known yet.
    type Opening: fmt::Debug + Send;
    /// How the client wants what a service or a group has for it.
    type Style: Copy + fmt::Debug + Send;
    /// By what the client answers a request.
    type RequestKey: Eq + Hash + fmt::Debug + Send;
    /// What waits for an outcome: a request, or another operation.
    type Waiter: fmt::Debug + Send;
    /// The outcome of an operation.
    type Outcome;

    /// Begins what a message asks for, as far as the limits allow, and takes that off the number of operations that may
    /// begin.
    ///
    /// # Errors
    /// When the connection is to end.
    fn begin(
        conversation: &mut Conversation<Self>,
        message: &[u8],
        allowed: &mut usize,
    ) -> Result<Handled, end::End>;

    /// Whether operations have to wait for those before them, see [`Conversation::is_next`].
    fn is_busy(_: &Conversation<Self>) -> bool {
        false
    }

    /// Begins an operation that had to wait.
    fn go_on(_: &mut Conversation<Self>, _: &[u8]) {}

    /// A subscription has begun, or is refused. Returns whether it goes on.
    fn opened(
        contact: &mut Contact<Self>,
        name: &Self::Name,
        opening: &mut Self::Opening,
        outcome: Result<&Follower, ServiceError>,
    ) -> bool;

    /// A subscription has a message, or has missed some.
    fn item(contact: &mut Contact<Self>, name: &Self::Name, item: Item, next_id: u64);

    /// A group has a message for the client.
    fn leased(_: &mut Contact<Self>, _: (&Self::Name, Self::Style), _: &Leased) {}

    /// A service has a request for the client: its `number` among all of them. Returns how the client answers it.
    fn request(
        contact: &mut Contact<Self>,
        name: (&Self::Name, Self::Style),
        request: &Request,
        number: u64,
    ) -> Self::RequestKey;

    /// A request of the client is answered, or failed.
    fn replied(
        contact: &mut Contact<Self>,
        waiter: Self::Waiter,
        outcome: Result<Reply, ServiceError>,
    );

    /// An operation that waited is over.
    fn done(contact: &mut Contact<Self>, waiter: Self::Waiter, outcome: Self::Outcome);

    /// A subscription or a service has ended. A subscription could go on at this position.
    fn ended(conversation: &mut Conversation<Self>, name: Self::Name, end: (End, Position));

    /// The connection ends: what the client is told first.
    fn ends(_: &mut Contact<Self>, _: &end::End) {}
}

/// How much of a message is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handled {
    All,
    /// So many bytes. The rest has to wait until more may begin.
    UpTo(usize),
    /// So many bytes. The rest is the beginning of something that has not arrived yet.
    Partly(usize),
}

/// Why a subscription or a service ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The keys no longer allow it.
    Revoked,
    /// The bus ended it.
    Over(RecvError),
    /// It cannot go on.
    Failed(ServiceError),
}

impl From<follower::End> for End {
    fn from(end: follower::End) -> Self {
        match end {
            follower::End::Revoked => Self::Revoked,
            follower::End::Over(end) => Self::Over(end),
        }
    }
}

impl From<End> for end::End {
    fn from(end: End) -> Self {
        match end {
            End::Revoked => Self::Revoked,
            End::Over(end) => Self::Over(end),
            End::Failed(error) => Self::Refused(error.code(), error.to_string().into()),
        }
    }
}

impl From<ServiceError> for End {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Store(StoreError::Closed)
            | ServiceError::Publish(PublishError::Closed) => Self::Over(RecvError::Closed),
            ServiceError::NotGranted { .. }
            | ServiceError::KeyNeeded { .. }
            | ServiceError::WrongKey => Self::Revoked,
            error => Self::Failed(error),
        }
    }
}

/// A client, what its door knows of it, and what is written to it.
#[derive(Debug)]
pub(crate) struct Contact<D: Dialect> {
    pub(crate) door: D,
    pub(crate) client: Client,
    pub(crate) output: D::Output,
    /// Why the connection is to end, if it is.
    pub(crate) ends: Option<end::End>,
}

/// One client of a door, and what it has begun.
#[derive(Debug)]
pub(crate) struct Conversation<D: Dialect> {
    pub(crate) contact: Contact<D>,
    pub(crate) activities: Activities<D>,
    publishers: Publishers,
    /// Whether something was published whose first deliveries have not been made.
    has_deliveries: bool,
    held: Held,
}

impl<D: Dialect> Conversation<D> {
    /// `outgoing` has what comes before everything else.
    pub(crate) fn new(door: D, client: Client, outgoing: Outgoing) -> Self {
        Self {
            activities: Activities::new(&client.worker),
            contact: Contact { door, client, output: D::Output::new(outgoing), ends: None },
            publishers: Publishers::default(),
            has_deliveries: false,
            held: Held::default(),
        }
    }

    /// Whether more may begin.
    pub(crate) fn may_begin(&self) -> bool {
        self.has_room() && self.held.size < MAX_UNREAD
    }

    fn has_room(&self) -> bool {
        self.activities.held_up() < MAX_OUTSTANDING && self.contact.output.waiting() < MAX_UNREAD
    }

    /// Whether an operation may begin. If not, it does when those before it are done.
    pub(crate) fn is_next(&mut self, operation: &[u8]) -> bool {
        let is_next = self.held.operations.is_empty() && !D::is_busy(self);
        if !is_next {
            self.held.push(operation);
        }
        is_next
    }

    fn holds_operations(&self) -> bool {
        !self.held.operations.is_empty()
    }

    /// Counts the operations that wait as in flight.
    fn count_held(&mut self) {
        let Held { size, permit, .. } = &mut self.held;
        if *size <= Inflight::SMALL {
            *permit = None;
        } else {
            self.contact.client.worker.inflight.overdraw(permit, *size);
        }
    }

    /// Whether an operation that had to wait may begin.
    fn may_go_on(&self) -> bool {
        !self.held.operations.is_empty() && self.has_room() && !D::is_busy(self)
    }

    /// Begins operations that had to wait, as far as the limits allow. Returns whether there was one.
    fn go_on(&mut self, allowed: &mut usize) -> bool {
        let before = *allowed;
        while *allowed > 0
            && self.may_go_on()
            && let Some(operation) = self.held.pop()
        {
            *allowed -= 1;
            D::go_on(self, &operation);
        }
        *allowed < before
    }

    /// Publishes a message. `topic` is the name that `name` parses.
    pub(crate) fn publish<E: From<ServiceError>>(
        &mut self,
        (topic, name): (&str, impl FnOnce() -> Result<TopicName, E>),
        authority: Authority,
        message: NewMessage,
    ) -> Result<Publishing, E> {
        let call = self.contact.client.call_by(authority);
        let publisher = self.publishers.find(topic, || Ok::<_, E>(call.publisher(&name()?)))?;
        let publishing = call.publish_to(publisher, message)?;
        self.has_deliveries |= publishing.is_delivered_here();
        Ok(publishing)
    }

    /// Makes the first deliveries of what was published since the last call.
    fn deliver(&mut self) {
        if std::mem::take(&mut self.has_deliveries) {
            wake_queue::published();
        }
    }

    /// Makes the client another user. What it has begun goes on as the one before.
    pub(crate) fn is_now(&mut self, client: Client) {
        self.contact.client = client;
        self.publishers = Publishers::default();
    }
}

/// Operations that have to wait for those before them.
#[derive(Debug, Default)]
struct Held {
    operations: VecDeque<Box<[u8]>>,
    /// Their memory in bytes, roughly.
    size: usize,
    permit: Option<QuotaPermit>,
}

impl Held {
    /// What each takes besides its text, in bytes.
    const EACH: usize = 64;

    fn push(&mut self, operation: &[u8]) {
        self.size += operation.len() + Self::EACH;
        self.operations.push_back(operation.into());
    }

    fn pop(&mut self) -> Option<Box<[u8]>> {
        let operation = self.operations.pop_front()?;
        self.size -= operation.len() + Self::EACH;
        Some(operation)
    }
}
