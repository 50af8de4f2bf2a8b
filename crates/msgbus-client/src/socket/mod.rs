//! One websocket for everything: `msgbus.v1`. docs/protocol.md, section 16.
//!
//! Handles send commands to a [driver](driver::Driver), a task that owns the connection. Nothing here is locked across an
//! await, and everything that waits is bounded: operations by permits, subscriptions by their queues, leases by credit.

mod answer;
mod command;
mod deliveries;
mod driver;
mod operation;
mod outgoing;
mod queue;
mod requests;
mod responder;
mod services;
mod subscription;
mod subscriptions;
mod topic_positions;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{Stream, stream};
use msgbus_core::{GroupName, Position, TopicName, TopicPattern};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::Instant,
};

pub(crate) use self::deliveries::Credit;
use self::{
    command::Command,
    deliveries::LeaseReceiver,
    driver::Driver,
    queue::Queue,
    subscriptions::{Receiver, Subscribed, Subscriptions},
};
pub use self::{
    deliveries::{Deliveries, WorkOptions},
    requests::Publishing,
    responder::SocketResponder,
    subscription::SocketSubscription,
    topic_positions::TopicPositions,
};
use crate::{client::Client, error::ClientError, websocket};

/// A websocket for everything: any number of subscriptions to topics and patterns, publishes, pulls, leases, requests to
/// services and responders share it.
/// Cheap to clone; the connection ends when the last clone, subscription and delivery has been dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use msgbus_client::{Client, Event, Position, TopicPattern};
///
/// let socket = Client::new("http://localhost:8000")?.connect().await?;
/// let pattern: TopicPattern = "orders/**".parse()?;
/// let mut orders = socket.subscribe(pattern, Position::New).await?;
/// socket.publish(&"orders/eu".parse()?, "one of each").await?;
/// if let Event::Message(message) = orders.next().await? {
///     println!("{}: {:?}", message.topic().name, message.payload());
/// }
/// # Ok(())
/// # }
/// ```
///
/// When the connection is lost, it reconnects with a randomized delay that doubles from half a second to half a minute, and
/// each subscription resumes from its own position. An operation that was not sent yet waits for the next connection. An
/// operation whose answer is lost fails with [`ClientError::Lost`]: it may have been carried out. Only leases are settled
/// again, what [`publish_at_least_once`](Self::publish_at_least_once) publishes is published again, and a request that may be
/// repeated is sent again. If the server
/// refuses a later connection, for example because the key was revoked, everything ends with its error.
///
/// At most [`MAX_OUTSTANDING`](Self::MAX_OUTSTANDING) operations of callers, with at most 16 MiB of payload unless a single
/// one is larger, wait for their answers; others wait before they are sent. What is waiting is sent in frames of up to 64
/// KiB, so many small publishes share a frame. A server accepts 1,024 subscriptions on one connection.
#[derive(Debug, Clone)]
pub struct Socket(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    commands: mpsc::UnboundedSender<Command>,
    /// The next number of an operation or a subscription.
    numbers: Arc<AtomicU64>,
    /// Operations that may be outstanding.
    operations: Arc<Semaphore>,
    /// The size of the operations that may be outstanding, in KiB.
    kib: Arc<Semaphore>,
    /// Requests to services that may be outstanding.
    asked: Arc<Semaphore>,
    asked_kib: Arc<Semaphore>,
    status: watch::Receiver<SocketStatus>,
    /// The time that the server told when the first connection was made, and when that was.
    server_time: Option<(DateTime<Utc>, Instant)>,
}

/// Reads a line of a server.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_line(line: &str) -> Result<(), String> {
    answer::Incoming::read(line).map(|_| ())
}

/// The state of the connection of a [`Socket`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SocketStatus {
    /// It is established.
    Connected,
    /// It was lost, or could not be established again.
    Disconnected {
        /// The cause.
        error: Arc<ClientError>,
        /// The time until the next attempt.
        retry_in: Duration,
    },
}

impl Client {
    /// Connects a websocket for everything. It needs a server with `msgbus.v1`.
    ///
    /// # Errors
    /// See [`ClientError`]. Only later connections are retried.
    pub async fn connect(&self) -> Result<Socket, ClientError> {
        let (websocket, server_time) = websocket::connect_v1(self).await?;
        let (commands, received) = mpsc::unbounded_channel();
        let (status, statuses) = watch::channel(SocketStatus::Connected);
        let numbers = Arc::new(AtomicU64::new(1));
        let subscriptions = Subscriptions::new(Arc::clone(&numbers));
        let driver = Driver::new(self.clone(), received, subscriptions, status);
        tokio::spawn(driver.run(websocket));
        Ok(Socket(Arc::new(Shared {
            client: self.clone(),
            commands,
            numbers,
            operations: Arc::new(Semaphore::new(Socket::MAX_OUTSTANDING)),
            kib: Arc::new(Semaphore::new(Socket::MAX_OUTSTANDING_KIB as usize)),
            asked: Arc::new(Semaphore::new(Socket::MAX_ASKED)),
            asked_kib: Arc::new(Semaphore::new(Socket::MAX_OUTSTANDING_KIB as usize)),
            status: statuses,
            server_time: server_time.map(|time| (time, Instant::now())),
        })))
    }
}

impl Socket {
    /// The maximum number of operations that wait for their answers. The server's limit is 1,024, subscriptions included.
    pub const MAX_OUTSTANDING: usize = 768;
    const MAX_OUTSTANDING_KIB: u32 = 16 << 10;
    /// The maximum number of requests to services that wait for their replies. The server's limit is 1,024.
    pub const MAX_ASKED: usize = 1024;

    /// Subscribes to a topic, or to all topics that match a pattern, those included that are created later. Everything that
    /// is published from then on is received.
    ///
    /// # Errors
    /// The server refuses it, see [`ClientError`], or the socket was closed.
    pub async fn subscribe(
        &self,
        topics: impl Into<TopicPattern>,
        from: Position,
    ) -> Result<SocketSubscription, ClientError> {
        let mut received = TopicPositions::default();
        received.set_begin(self.begin_of(from));
        self.resume(topics, from, received).await
    }

    /// When a subscription begins, by the server's clock, unless it begins with the oldest messages.
    fn begin_of(&self, from: Position) -> Option<DateTime<Utc>> {
        /// The header `Date` is in seconds. A message too many is better than one too few.
        const RESOLUTION: Duration = Duration::from_secs(1);
        let now = || {
            let (time, at) = self.0.server_time?;
            time.checked_add_signed(TimeDelta::from_std(at.elapsed()).ok()?)
        };
        match from {
            Position::New => Some(now()? - RESOLUTION),
            Position::Ago(ago) => {
                now()?.checked_sub_signed(TimeDelta::from_std(ago + RESOLUTION).ok()?)
            }
            Position::At(time) => Some(time),
            _ => None,
        }
    }

    /// Subscribes from the position of an earlier subscription, and, if it was to a pattern, from its
    /// [`topic_positions`](SocketSubscription::topic_positions).
    ///
    /// # Errors
    /// See [`subscribe`](Self::subscribe).
    pub async fn resume(
        &self,
        topics: impl Into<TopicPattern>,
        from: Position,
        received: TopicPositions,
    ) -> Result<SocketSubscription, ClientError> {
        let topics = topics.into();
        let text = topics.to_string();
        let received = text.contains('*').then_some(received);
        let queue = Arc::new(Queue::new(SocketSubscription::MAX_QUEUED));
        let receiver = Receiver::Messages(Arc::clone(&queue));
        let (number, started) = self.start(text, Some(from), receiver);
        // Made before the answer, so that dropping this future ends the subscription.
        let of = (topics, from);
        let mut subscription = SocketSubscription::new(self.clone(), number, queue, of, received);
        let position = started.await.unwrap_or_else(|_| Err(self.closed()))?;
        subscription.set_position(position);
        Ok(subscription)
    }

    /// Takes messages of a group, which the server pushes.
    ///
    /// # Errors
    /// See [`subscribe`](Self::subscribe).
    pub async fn work(
        &self,
        topic: &TopicName,
        group: &GroupName,
        options: WorkOptions,
    ) -> Result<Deliveries, ClientError> {
        let (deliveries, received) = mpsc::unbounded_channel();
        let socket = Arc::downgrade(&self.0);
        let leases = LeaseReceiver::new((group.clone(), options), deliveries, socket);
        let receiver = Receiver::Leases(leases);
        let (number, started) = self.start(topic.to_string(), options.since, receiver);
        let deliveries = Deliveries::new(self.clone(), number, received);
        started.await.unwrap_or_else(|_| Err(self.closed()))?;
        Ok(deliveries)
    }

    fn start(
        &self,
        topics: String,
        from: Option<Position>,
        receiver: Receiver,
    ) -> (u64, oneshot::Receiver<Result<Position, ClientError>>) {
        let number = self.number();
        let (started, answer) = oneshot::channel();
        let subscribed = Subscribed::new(topics, from, receiver, started);
        self.command(Command::Subscribe(number, Box::new(subscribed)));
        (number, answer)
    }

    /// The state of the connection.
    pub fn status(&self) -> SocketStatus {
        self.0.status.borrow().clone()
    }

    /// The changes of the state from now on. A slow reader gets only the latest one. It ends when the connection has ended.
    pub fn statuses(&self) -> impl Stream<Item = SocketStatus> + Send + use<> {
        let mut status = self.0.status.clone();
        status.mark_unchanged();
        stream::unfold(status, |mut status| async {
            status.changed().await.ok()?;
            let now = status.borrow_and_update().clone();
            Some((now, status))
        })
    }

    /// Ends the connection when everything that was sent is answered. All subscriptions end, and later operations fail.
    pub async fn close(self) {
        self.command(Command::Close);
        let mut status = self.0.status.clone();
        while status.changed().await.is_ok() {}
    }

    fn number(&self) -> u64 {
        self.0.numbers.fetch_add(1, Relaxed)
    }

    fn command(&self, command: Command) {
        // If the connection has ended, so has everything that a command could change; the sender of an answer is dropped.
        let _ = self.0.commands.send(command);
    }

    /// The error for a socket that has been closed.
    fn closed(&self) -> ClientError {
        websocket::lost(self.0.client.server(), "the socket is closed")
    }
}
