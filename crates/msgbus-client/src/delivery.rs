//! Work on messages of a group: a [`Delivery`] keeps its lease until it is settled.
//!
//! A task for each delivery extends the lease and sends the ack or nack. The caller may therefore
//! block or be cancelled: an ack that it has asked for is still sent.

use std::{future::pending, time::Duration};

use msgbus_core::{GroupName, LeaseToken, Leased, Message, Position, Settlement, TopicName};
use tokio::{
    select,
    sync::{oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{
    client::Client,
    error::ClientError,
    lease::LeaseOptions,
    socket::{Credit, Socket},
};

/// A group of a topic. Its messages are distributed among all who take from it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Group {
    client: Client,
    topic: TopicName,
    name: GroupName,
    lease: Duration,
    since: Option<Position>,
}

/// A message that is leased to the caller. Its lease is extended in the background until it is
/// settled.
///
/// A delivery that is dropped is given back with a nack in the background, so that the message is
/// redelivered at once. If the runtime ends before that, the message is redelivered when its lease is
/// over.
#[derive(Debug)]
#[must_use = "a delivery that is dropped is redelivered"]
pub struct Delivery {
    leased: Leased,
    /// Dropping it makes the task give the message back.
    settle: oneshot::Sender<Request>,
    lost: watch::Receiver<bool>,
}

/// What the caller asks of the task.
#[derive(Debug)]
struct Request {
    settlement: Settlement,
    result: oneshot::Sender<Result<(), ClientError>>,
}

/// How leases are settled.
#[derive(Debug)]
pub(crate) enum Settler {
    Http(Box<Client>),
    Socket { socket: Socket, _credit: Credit },
}

impl Settler {
    /// Settles a lease, and tries again for this long.
    async fn settle(
        &self,
        token: &LeaseToken,
        settlement: &Settlement,
        within: Duration,
    ) -> Result<(), ClientError> {
        match self {
            Self::Http(client) => client.settle_within(token, settlement, within).await?,
            Self::Socket { socket, .. } => socket.settle_within(token, settlement, within).await?,
        };
        Ok(())
    }
}

impl Client {
    /// A group of a topic. The first take creates it if it does not exist.
    pub fn group(&self, topic: &TopicName, name: &GroupName) -> Group {
        Group {
            client: self.clone(),
            topic: topic.clone(),
            name: name.clone(),
            lease: LeaseOptions::DEFAULT_LEASE,
            since: None,
        }
    }
}

impl Group {
    /// How long one request waits. Proxies often close a connection that is silent for a minute.
    const WAIT: Duration = Duration::from_secs(20);
    /// The pause after an empty response that came early.
    const PAUSE: Duration = Duration::from_millis(500);
    /// The shortest wait that servers accept.
    const MIN_WAIT: Duration = Duration::from_millis(1);

    /// Sets the length of leases; 30 s by default. If this process dies, its messages are redelivered
    /// after this time. The server accepts 1 s to 12 h.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// Sets where the group starts if a take creates it; at the oldest message by default.
    #[must_use]
    pub fn since(self, since: Position) -> Self {
        Self { since: Some(since), ..self }
    }

    /// Takes a message, if there is one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn try_take(&self) -> Result<Option<Delivery>, ClientError> {
        Ok(self.request(1, None).await?.pop())
    }

    /// Takes a message, and waits for it up to this long.
    ///
    /// # Errors
    /// See [`ClientError`]. After a temporary one ([`ClientError::is_temporary`]) another call may
    /// succeed.
    ///
    /// # Cancel safety
    /// If the future is dropped while the server responds, the message is redelivered when its lease
    /// is over.
    pub async fn take(&self, wait: Duration) -> Result<Option<Delivery>, ClientError> {
        Ok(self.take_many(1, wait).await?.pop())
    }

    /// Takes up to `max` messages, and waits for the first one up to this long. Each has a lease of
    /// its own, and its own requests to extend it. To settle many with one request, see
    /// [`Client::lease`] and [`Client::settle_all`].
    ///
    /// # Errors
    /// See [`take`](Self::take).
    ///
    /// # Cancel safety
    /// See [`take`](Self::take).
    pub async fn take_many(
        &self,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, ClientError> {
        let start = Instant::now();
        loop {
            let left = wait.saturating_sub(start.elapsed());
            let (asked, sent) = (left.clamp(Self::MIN_WAIT, Self::WAIT), Instant::now());
            let deliveries = self.request(max, Some(asked)).await?;
            if deliveries.is_empty() && sent.elapsed() < asked / 2 {
                // A proxy without its upstream answers at once, for example.
                sleep(Self::PAUSE.min(left)).await;
            }
            if !deliveries.is_empty() || left <= Self::WAIT {
                return Ok(deliveries);
            }
        }
    }

    async fn request(
        &self,
        max: usize,
        wait: Option<Duration>,
    ) -> Result<Vec<Delivery>, ClientError> {
        let options = LeaseOptions { lease: self.lease, max, wait, since: self.since };
        let (begun, leased) = self.client.lease_since(&self.topic, &self.name, options).await?;
        let lease = self.lease.clamp(LeaseOptions::MIN_LEASE, LeaseOptions::MAX_LEASE);
        let end = begun + lease;
        let settler = || Settler::Http(Box::new(self.client.clone()));
        let begin = |leased| Delivery::begin(settler(), leased, lease, end);
        Ok(leased.into_iter().map(begin).collect())
    }
}

impl Delivery {
    /// Keeps a lease, whose end is known, from now on.
    pub(crate) fn begin(settler: Settler, leased: Leased, lease: Duration, end: Instant) -> Self {
        let (settle, request) = oneshot::channel();
        let (is_lost, lost) = watch::channel(false);
        let task = Lease { settler, token: leased.token.clone(), length: lease, end };
        tokio::spawn(task.keep(request, is_lost));
        Self { leased, settle, lost }
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.leased.message
    }

    /// How many times the group was given the message, this time included.
    pub fn deliveries(&self) -> u32 {
        self.leased.deliveries
    }

    /// The token of the lease.
    pub fn token(&self) -> &LeaseToken {
        &self.leased.token
    }

    /// Completes if the lease is lost: the message was or will be given to another. Never completes
    /// otherwise.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut lost = self.lost.clone();
        async move {
            // The task has ended without losing it if this is an error.
            if lost.wait_for(|is_lost| *is_lost).await.is_err() {
                pending::<()>().await;
            }
        }
    }

    /// Acknowledges the message: the group is not given it again. Tries again until the lease is over
    /// while the server cannot be reached. This goes on in the background if the future is dropped.
    ///
    /// # Errors
    /// [`ClientError::LeaseLost`] if the lease is over: the message is redelivered.
    /// [`ClientError::Unconfirmed`] if that is unknown. See [`ClientError`] for others; the message is
    /// then redelivered when its lease is over.
    pub async fn ack(self) -> Result<(), ClientError> {
        self.settle(Settlement::Ack).await
    }

    /// Gives the message back: the group is given it again after this delay, or it becomes a dead
    /// letter, which shows the reason. Tries again as [`ack`](Self::ack) does.
    ///
    /// # Errors
    /// See [`ack`](Self::ack).
    pub async fn nack(self, delay: Duration, reason: Option<String>) -> Result<(), ClientError> {
        self.settle(Settlement::Nack { delay, reason: reason.map(Into::into) }).await
    }

    async fn settle(self, settlement: Settlement) -> Result<(), ClientError> {
        let (result, settled) = oneshot::channel();
        // If the task has ended, so has the runtime, or it will soon.
        let _ = self.settle.send(Request { settlement, result });
        settled.await.unwrap_or(Err(ClientError::LeaseLost))
    }
}

/// A lease that is kept until it is settled.
struct Lease {
    settler: Settler,
    token: LeaseToken,
    length: Duration,
    /// When the lease is over at the latest.
    end: Instant,
}

impl Lease {
    async fn keep(mut self, mut request: oneshot::Receiver<Request>, lost: watch::Sender<bool>) {
        let request = select! {
            biased;
            request = &mut request => request,
            () = self.extend_until_lost() => {
                lost.send_replace(true);
                if let Ok(request) = request.await {
                    // The caller may have gone.
                    let _ = request.result.send(Err(ClientError::LeaseLost));
                }
                return;
            }
        };
        match request {
            Ok(Request { settlement, result }) => {
                let _ = result.send(self.settle(&settlement).await);
            }
            Err(_) => {
                let reason = Some("dropped without an ack".into());
                // If it fails, the lease ends by time.
                let _ = self.settle(&Settlement::Nack { delay: Duration::ZERO, reason }).await;
            }
        }
    }

    async fn settle(&self, settlement: &Settlement) -> Result<(), ClientError> {
        let left = self.end.saturating_duration_since(Instant::now());
        self.settler.settle(&self.token, settlement, left).await
    }

    /// Extends the lease each time that a third of it is over. If the server refuses, because the key
    /// is revoked for example, it tries again until the lease is over.
    async fn extend_until_lost(&mut self) {
        let settlement = Settlement::Extend { lease: self.length };
        let mut sent = Instant::now();
        loop {
            sleep_until((sent + self.length / 3).min(self.end)).await;
            sent = Instant::now();
            if sent >= self.end {
                return;
            }
            let extension = self.settler.settle(&self.token, &settlement, self.end - sent);
            match timeout_at(self.end, extension).await {
                Ok(Ok(())) => self.end = sent + self.length,
                Ok(Err(ClientError::LeaseLost | ClientError::Unconfirmed)) | Err(_) => return,
                Ok(Err(_)) => {}
            }
        }
    }
}
