//! Connections on which clients do many things at a time, for all doors: they subscribe, serve, ask and publish, and each
//! of these goes on by itself.
//!
//! A door is a [`Dialect`]: it says what the messages of its clients ask for, and how what happens is written. Everything
//! else is here. [`session`] moves the bytes of one connection, and publishing threads write the messages of its
//! subscriptions themselves if they can ([`shared`]). [`activities`] are what a client has begun and what takes time; each
//! has a waker of its own ([`ready`]), so the work after a wake does not depend on how many others there are. [`serve`]
//! and [`lease`] are the larger ones. [`output`] puts messages into frames, [`names`] finds what has a name.

pub(crate) mod activities;
mod client;
mod lease;
mod names;
pub(crate) mod output;
mod ready;
mod serve;
pub(crate) mod session;
mod shared;

use std::{fmt, hash::Hash};

use msgbus_core::{
    Leased, NewMessage, Position, PublishError, RecvError, Reply, Request, TopicName,
    store::StoreError,
};

use self::activities::Activities;
pub(crate) use self::{
    client::Client,
    lease::{Job, Lease},
    output::Output,
};
use crate::{
    net::wake_queue,
    service::{
        Authority,
        error::ServiceError,
        follower::{self, Follower, Item},
        publisher::{Publishers, Publishing},
    },
    websocket::{end, transport::Outgoing},
};

/// Beyond this many bytes that wait to be written, nothing begins, and no reply is written.
pub(crate) const MAX_UNREAD: usize = 256 << 10;
/// The bytes after which what is ready waits until they are written.
pub(crate) const ENOUGH: usize = 64 << 10;

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

    /// Writes to the client during one turn of its connection.
    type Output<'a>: Output<'a>;
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
        output: &mut Self::Output<'_>,
        allowed: &mut usize,
    ) -> Result<Handled, end::End>;

    /// Whether more may begin while this many bytes wait to be written.
    fn may_begin(conversation: &Conversation<Self>, unwritten: usize) -> bool;

    /// A subscription has begun, or is refused. Returns whether it goes on.
    fn opened(
        &mut self,
        client: &Client,
        name: &Self::Name,
        opening: &mut Self::Opening,
        outcome: Result<&Follower, ServiceError>,
        output: &mut Self::Output<'_>,
    ) -> bool;

    /// A subscription has a message, or has missed some.
    fn item(
        client: &Client,
        name: &Self::Name,
        item: Item,
        next_id: u64,
        output: &mut Self::Output<'_>,
    );

    /// A group has a message for the client.
    fn leased(_: &Client, _: (&Self::Name, Self::Style), _: &Leased, _: &mut Self::Output<'_>) {}

    /// A service has a request for the client: its `number` among all of them. Returns how the client answers it.
    fn request(
        &mut self,
        client: &Client,
        name: (&Self::Name, Self::Style),
        request: &Request,
        number: u64,
        output: &mut Self::Output<'_>,
    ) -> Self::RequestKey;

    /// A request of the client is answered, or failed.
    fn replied(
        &mut self,
        client: &Client,
        waiter: Self::Waiter,
        outcome: Result<Reply, ServiceError>,
        output: &mut Self::Output<'_>,
    );

    /// An operation that waited is over.
    fn done(
        &mut self,
        client: &Client,
        waiter: Self::Waiter,
        outcome: Self::Outcome,
        output: &mut Self::Output<'_>,
    );

    /// A subscription or a service has ended. A subscription could go on at this position.
    fn ended(
        conversation: &mut Conversation<Self>,
        name: Self::Name,
        end: (End, Position),
        output: &mut Self::Output<'_>,
    );

    /// The connection ends: what the client is told first.
    fn ends(&mut self, _: &Client, _: &end::End, _: &mut Self::Output<'_>) {}

    /// Begins what had to wait inside of the door.
    fn resume(_: &mut Conversation<Self>, _: &mut Outgoing) {}

    /// The connection waits for what comes next.
    fn rests(&mut self) {}
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

/// One client of a door, and what it has begun.
#[derive(Debug)]
pub(crate) struct Conversation<D: Dialect> {
    /// What the door knows of the client.
    pub(crate) door: D,
    pub(crate) client: Client,
    pub(crate) activities: Activities<D>,
    publishers: Publishers,
    /// Whether something was published that has not been announced to the wake queue.
    has_published: bool,
    /// Why the connection is to end, if it is.
    pub(crate) ends: Option<end::End>,
}

impl<D: Dialect> Conversation<D> {
    pub(crate) fn new(door: D, client: Client) -> Self {
        let activities = Activities::new(&client.worker);
        let publishers = Publishers::default();
        Self { door, client, activities, publishers, has_published: false, ends: None }
    }

    /// Publishes a message. `topic` is the name that `name` parses.
    pub(crate) fn publish<E: From<ServiceError>>(
        &mut self,
        (topic, name): (&str, impl FnOnce() -> Result<TopicName, E>),
        authority: Authority,
        message: NewMessage,
    ) -> Result<Publishing, E> {
        let call = self.client.call_by(authority);
        let publisher = self.publishers.find(topic, || Ok::<_, E>(call.publisher(&name()?)))?;
        self.has_published = true;
        Ok(call.publish_to(publisher, message)?)
    }

    /// Wakes those that wait for what was published.
    fn announce(&mut self) {
        if std::mem::take(&mut self.has_published) {
            wake_queue::published();
        }
    }

    /// Makes the client another user. What it has begun goes on as the one before.
    pub(crate) fn is_now(&mut self, client: Client) {
        self.client = client;
        self.publishers = Publishers::default();
    }
}
